"""Where images lie: `find_files` takes a folder, a list or an archive, and gives names and a way to read each.

Archive members are read where they lie and never extracted, so that their names can do no harm.
"""

import bz2
import contextlib
import functools
import gzip
import hashlib
import lzma
import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

from support.pictures import EXTENSIONS, reason_of


class DataError(Exception):
    """A bad `--data`. Its text is one line that says what is wrong and what to do about it."""


# ---------------------------------------------------------------------------- finding

def find_files(data):
    """A path -> (sorted image names, function from a name to the file's bytes). Raises DataError."""
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            names = filter(None, map(tidy, walk(path)))
            return sorted(names, key=by_folder), functools.partial(read_from_folder, str(path))
        if path.suffix.lower() == ".txt":
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            names = [os.path.abspath(path.parent / line) for line in lines if line]
            return sorted(names, key=by_folder), read_from_list
        with open(path, "rb") as f:
            head = f.read(6)
        if head[:4] == b"PK\3\4":
            with zipfile.ZipFile(path) as archive:
                members = {tidy(name): name for name in archive.namelist() if tidy(name)}
            read = functools.partial(read_from_zip, str(path), members)
        else:
            opener = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7z": lzma.open}.get(head[:3])
            path = unpacked(path, opener) if opener else path
            members = tar_members(path, path.stat().st_mtime_ns)
            read = functools.partial(read_from_tar, str(path), members)
        return sorted(members, key=by_folder), read
    except FileNotFoundError:
        raise DataError(f"{data}: no such file or folder; give a path, or one of: cifar10, shapes") from None
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError, tarfile.TarError,
            zipfile.BadZipFile) as error:
        raise DataError(f"{data}: cannot be read ({reason_of(error)}); give a folder, a .txt list, or an "
                        "undamaged .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz archive") from None


def walk(folder):
    """Paths of all files below `folder`, relative to it, through links, but into no folder twice."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(here) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        folders.sort()
        yield from (os.path.relpath(os.path.join(here, name), folder) for name in names)


def tidy(name):
    """A name as "a/b/c.jpg", or None if it is no image, is hidden, or leads out of the archive by ".."."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or any(part[0] == "." or part == "__MACOSX" for part in parts):
        return None
    return "/".join(parts) if os.path.splitext(name)[1].lower() in EXTENSIONS else None


def by_folder(name):
    """Sorts as a file tree does: all of a/ before a-b/."""
    return name.split("/")


# ---------------------------------------------------------------------------- archives


def read_from_folder(folder, name):
    """The bytes of a file below the folder."""
    return Path(folder, name).read_bytes()


def read_from_list(name):
    """A file, or a member of the archive that is the first file on the way to it."""
    if not os.path.exists(name):
        for archive in reversed(Path(name).parents):
            if archive.is_file():
                return member_reader(str(archive), archive.stat().st_mtime_ns)(os.path.relpath(name, archive))
    return Path(name).read_bytes()


@functools.lru_cache(maxsize=8)
def member_reader(archive, modified):
    """find_files' function from a member's name to its bytes; listed once, until the archive is modified."""
    return find_files(archive)[1]


def read_from_zip(path, members, name):
    """The bytes of a member, by its tidy name."""
    return open_zip(path, os.getpid()).read(members[name])


@functools.lru_cache(maxsize=8)
def open_zip(path, pid):
    """One handle a process: ZipFile locks its threads, but forked workers would share one file position."""
    return zipfile.ZipFile(path)


def read_from_tar(path, members, name):
    """The bytes of a member, from where they lie in a plain tar."""
    start, count = members[name]
    with open(path, "rb") as f:
        f.seek(start)
        return f.read(count)


@functools.lru_cache(maxsize=2)  # a large archive takes seconds to list, and both splits want the list
def tar_members(path, modified):
    """A plain tar file -> {image name: (offset, bytes)}. Links are no files and are left out."""
    with tarfile.open(path, "r:") as tar:
        members = {tidy(m.name): (m.offset_data, m.size) for m in tar if m.isreg() and tidy(m.name)}
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(512).strip(b"\0"):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    return members


def unpacked(path, opener):
    """The plain tar behind a compressed one, which has no random access; made once, in the cache folder."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_folder() / f"{path.name}.{key}.tar"
    if not target.exists():
        print(f"decompressing {path} to {target}, once", file=sys.stderr)
        with replacing(target) as f, opener(path) as packed:
            shutil.copyfileobj(packed, f, 2**20)
            f.flush()
            tarfile.open(f.name, "r:").close()  # no archive, no file in the cache
    return target


def cache_folder():
    """Where downloads and decompressed archives stay; made if it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanodinov2"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def replacing(target):
    """A new binary file that takes the place of `target` at the end; on an error nothing is left of it."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as f:
            yield f
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
