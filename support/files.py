"""Files and folders: errors in one line, whole files or none, one process a folder."""

import contextlib
import functools
import math
import os
import stat
import sys
from pathlib import Path

from PIL import UnidentifiedImageError


class UserError(Exception):
    """A wrong flag, path or file: one line for the person, exit status 2."""


def make_folder(path, *files):
    """The folder --out of a run, made if it is not there; UserError if it cannot be, or `files` not written in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"nothing can be written into {path}")
    for name in files:
        if (path / name).is_dir():
            raise UserError(f"{path / name} is a folder, where a file shall be")


@contextlib.contextmanager
def lock_folder(folder):
    """Hold a folder until the block ends, or the process, however it does; UserError if another process holds it.

    By the first rank, with a lock of the system's; where it has none, nothing is held.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        fcntl = None
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    file = locked(folder / ".lock", fcntl)
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        file.close()


def locked(path, fcntl):
    """An open file with a lock; UserError if another process has it.  A file that its last holder has meanwhile taken
    away is no use: the next one would make another, and hold that."""
    while True:
        file = open(path, "w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"another process trains in {path.parent}; --out for another folder") from None
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def check_out(path, flag="--out"):
    """UserError unless a file can be written at `path`, before hours are spent on what belongs into it."""
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {flag}")
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag}: nothing can be written into {path.parent}")


MAX_BYTES = 2**30  # ours: of an image file


def printable(text):
    """A text of which a terminal shows each character, and obeys none."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


@functools.cache
def say_once(line):
    """A line on the screen, not again in this process."""
    print(line, file=sys.stderr)


def read_bytes(path):
    """The bytes of an image file; ValueError for what would hang or fill the memory."""
    check_regular(path, MAX_BYTES)
    return Path(path).read_bytes()


def check_regular(path, limit=math.inf):
    """ValueError unless this is a regular file, or leads to one, of at most `limit` bytes."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{status.st_size / 2**20:.0f} MiB, and the limit is {limit / 2**20:.0f}")


def write_safely(path, write, shared=False):
    """Call write(temporary path), then rename: a crash leaves the old file or the new one, never half of one.

    shared: several processes may write this file at once, each by a temporary name of its own.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # a machine that crashes has the bytes before the name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of an error on the way


def reason_of(error):
    """An exception as a few words on one line, the same in each run."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    return " ".join(str(error).split()) or type(error).__name__
