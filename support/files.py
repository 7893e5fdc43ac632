"""File helpers: expected errors, atomic writes, folder locks."""

import contextlib
import functools
import http.client
import os
import stat
import sys
from pathlib import Path

import torch
from PIL import UnidentifiedImageError

MAX_BYTES = 2**30  # ours: the largest image file that is read


class UserError(ValueError):
    """A wrong flag, path or file: one line that says what is wrong and what to do, exit status 2."""


def reason_of(error):
    """An exception as a few words on one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a format that is read here; convert it to PNG"
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def say_once(line):
    """Print a line to stderr, once, and only on the first rank."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def check_regular(path):
    """Raise ValueError unless the path leads to a regular file; reading another kind can take forever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")


def read_bytes(path):
    """The bytes of a file; ValueError for a file that would hang the program or fill the memory."""
    check_regular(path)
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"larger than the limit of {MAX_BYTES // 2**20} MiB")
    return Path(path).read_bytes()


def download(url, path):
    """Download a file, if it is not there; returns its path, or raises UserError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not path.exists():
            torch.hub.download_url_to_file(url, str(path))
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {url} ({reason_of(error)}); put the file at {path}") from None
    return path


def write_safely(path, write, shared=False):
    """Call write(temporary path), then rename it: a crash leaves the old file or the new one, never half a file.

    shared: several processes may write this file at once, so each has a temporary name of its own.
    """
    path = Path(path)
    check_out(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # it may be a link to another file
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # the bytes must reach the disk before the new name does
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path, *files):
    """Make the folder; UserError if `files` cannot be written in it."""
    path.mkdir(parents=True, exist_ok=True)
    for name in files:
        check_out(path / name)


def check_out(path):
    """UserError unless a file can be written at `path`; called before the long work, too, not only after it."""
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first")
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise UserError(f"{path} is a folder, a link or a device; choose the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write into {path.parent}; choose another folder")


@contextlib.contextmanager
def lock_folder(folder):
    """Lock a folder until the block or the process ends, on the first rank; UserError if another process holds it."""
    if sys.platform == "win32" or os.environ.get("RANK", "0") != "0":
        yield
        return
    import fcntl  # not on Windows

    check_out(folder / ".lock")
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"another process writes into {folder}; choose another --out") from None
        except OSError:
            pass  # a file system without locks
        yield
