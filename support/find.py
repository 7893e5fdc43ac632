"""Image files of a folder, a list, an archive or shards: their names, and a function that reads one.

Archive members are read in place and never extracted, so no name can write outside the archive.  Names have "/" between
folders on every system.
"""

import bz2
import csv
import functools
import gzip
import io
import lzma
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from support.files import MAX_BYTES, UserError, check_regular, printable, read_bytes, reason_of, say_once, write_safely

# Pillow hands some of these to other programs (EPS runs Ghostscript) and opens the others as data without pixels.
UNSAFE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
Image.init()
FORMATS = [name for name in ["JPEG", "PNG", *Image.ID] if name not in UNSAFE]  # tried in this order
EXTENSIONS = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
EXTENSIONS |= {".heic", ".heif", ".avif", ".jxl"}  # skipped with a reason where this Pillow cannot read them
IMAGE_THEN_CLASS = re.compile(rf"(.*(?:{'|'.join(map(re.escape, sorted(EXTENSIONS)))}))\s+(.+)", re.IGNORECASE)
OPENERS = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7z": lzma.open}  # by the first bytes of a file
MANY = 20  # ours: shards; fewer are listed too fast for a progress bar


def find_files(data):
    """A path -> (sorted image names, function from a name to the file's bytes, {name: (split, class)}).

    The dict holds what a list or `.cls` files say, None where they do not; it is empty for folders.  Raises UserError.
    """
    try:
        path = Path(data).expanduser()
        if path.is_dir():
            return find_in_folder(path)
        if path.suffix.lower() in (".txt", ".csv", ".tsv"):
            return find_in_list(path)
        return find_in_archive(path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{data}: no such file or folder; give a path, or one of: cifar10, shapes") from None
    except Exception as error:  # damaged archives make Python's modules raise almost anything
        raise UserError(f"{data}: cannot be read ({reason_of(error)}); give a folder, a .txt or .csv list, or an "
                        "undamaged .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz archive") from None


def tidy(name, extensions=EXTENSIONS):
    """A name as "a/b/c.jpg"; None for a hidden name, another extension, or a name with ".."."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if any(part[0] == "." or part == "__MACOSX" for part in parts):
        return None
    return "/".join(parts) if os.path.splitext(name)[1].lower() in extensions else None


def by_folder(name):
    """Sort key: all of a/ comes before a-b/, as in a file tree."""
    return name.split("/")


def find_in_folder(folder):
    """`find_files` of a folder of images, or of a folder of shards."""
    files, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(here) in seen:  # a link back to a parent folder
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        folders.sort()
        files += [f"{Path(here).relative_to(folder).as_posix()}/{name}" for name in names]
    names = sorted(filter(None, map(tidy, files)), key=by_folder)
    shards = sorted(filter(None, (tidy(name, {".tar"}) for name in files)))
    if shards and not names:
        return find_in_shards(folder, shards)
    if shards:
        say_once(f"{folder}: {len(shards)} .tar files are skipped, because there are images beside them")
    return names, functools.partial(read_from_folder, folder), {}


def read_from_folder(folder, name):
    """The bytes of a file below the folder."""
    return read_bytes(folder / name)


def find_in_list(path):
    """`find_files` of a list of images or of shards; relative paths start at the list's folder."""
    check_regular(path)
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # file names may be any bytes
    if path.suffix.lower() == ".txt":
        rows = [split_line(line.strip()) for line in text.split("\n")]
    else:
        header = text.split("\n", 1)[0]
        table = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
        table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
        if "path" not in table.fieldnames:
            raise UserError(f"{path}: its header is {', '.join(table.fieldnames) or 'empty'}; it must have the column "
                            "path, and can have label and split")
        rows = [[(row.get(key) or "").strip() for key in ("path", "label", "split")] for row in table]
    listed = {}
    for name, label, split in rows:
        if name:
            full = Path(os.path.abspath(path.parent / name)).as_posix()
            listed.setdefault(full, (split or None, label or None))
    names = sorted(listed, key=by_folder)
    if names and all(name.lower().endswith(".tar") for name in names):
        return find_in_shards(Path(), names)
    return names, read_from_list, listed if any(map(any, listed.values())) else {}


def split_line(line):
    """A line of a .txt list -> (path, class or None, no split); a line that ends as an image does is a path alone."""
    found = None if line.lower().endswith(tuple(EXTENSIONS)) else IMAGE_THEN_CLASS.fullmatch(line)
    return (*found.groups(), None) if found else (line, None, None)


def read_from_list(name):
    """The bytes of a file, or of a member of an archive: `curate.py` writes names like /a/b.tar/c.jpg."""
    archive = next((path for path in reversed(Path(name).parents) if path.is_file()), None)
    return archive_reader(archive)(Path(name).relative_to(archive).as_posix()) if archive else read_bytes(name)


@functools.lru_cache(maxsize=2**14)
def archive_reader(path):
    """The function from a member's name to its bytes."""
    return find_files(path)[1]


def find_in_archive(path):
    """`find_files` of a .zip or of a .tar, plain or compressed."""
    check_regular(path)
    with open(path, "rb") as f:
        head = f.read(4)
    if head == b"PK\3\4":
        with zipfile.ZipFile(path) as archive:  # some programs on Windows write backslashes
            members = {tidy(name.replace("\\", "/")): name for name in archive.namelist()}
        members.pop(None, None)
        return sorted(members, key=by_folder), functools.partial(read_from_zip, path, members), {}
    if head[:3] in OPENERS:
        path = unpacked(path, OPENERS[head[:3]])
    members, classes = list_tar(path, path.stat().st_mtime_ns)
    return sorted(members, key=by_folder), functools.partial(read_from_tars, members), classes


def find_in_shards(folder, shards):
    """`find_files` of .tar files of one dataset (WebDataset, img2dataset); damaged ones are skipped with a reason."""
    members, classes = {}, {}
    for shard in tqdm(shards, "shards", disable=len(shards) < MANY):
        path = folder / shard
        try:
            found, kinds = list_tar(path, path.stat().st_mtime_ns)
        except Exception as error:  # tarfile raises almost anything
            say_once(f"skipped {printable(str(path))}: {printable(getattr(error, 'strerror', 0) or reason_of(error))}")
            continue
        members |= {f"{shard}/{name}": place for name, place in found.items()}
        classes |= {f"{shard}/{name}": pair for name, pair in kinds.items()}
    if not members:
        raise UserError(f"none of the {len(shards)} shards ({shards[0]}, ...) has a readable image")
    return sorted(members, key=by_folder), functools.partial(read_from_tars, members), classes


@functools.lru_cache(maxsize=2**14)  # listing takes seconds, and both splits need it
def list_tar(path, modified):
    """A plain .tar -> {image name: (path, byte offset of its header)}, {image name: (None, class)}.

    In WebDataset the class of 1.jpg is the content of 1.cls.  Links are skipped.
    """
    members, classes = {}, {}
    with tarfile.open(path, "r:") as tar:
        for member in filter(tarfile.TarInfo.isreg, tar):
            if member.size < 0:
                raise tarfile.ReadError(f"{printable(member.name)} has a negative size")
            if name := tidy(member.name):
                members[name] = (path, member.offset)
            elif name := tidy(member.name, {".cls"}):
                classes[sample_of(name)] = tar.extractfile(member).read(100).decode().strip()
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(512)
        if end.strip(b"\0"):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"damaged at byte {tar.offset}")
        if not end:
            say_once(f"{printable(str(path))}: has no end mark; the file may be cut short")
    return members, {name: (None, classes[sample_of(name)]) for name in members if sample_of(name) in classes}


def sample_of(name):
    """The part of a name that the files of one WebDataset sample share: up to the first dot after the folders."""
    return re.match(r"(.*/)?[^./]*", name)[0]


def check_size(size):
    """ValueError for a member that would fill the memory."""
    if size > MAX_BYTES:
        raise ValueError(f"larger than the limit of {MAX_BYTES // 2**20} MiB")


def read_from_tars(members, name):
    """The bytes of a member of `list_tar`'s."""
    path, offset = members[name]
    with open(path, "rb") as f:  # a new handle, because threads and forked workers would share its position
        f.seek(offset)
        with tarfile.open(fileobj=f, mode="r:") as tar:  # to tarfile the archive begins here
            member = tar.next()
            check_size(member.size)
            return tar.extractfile(member).read()


def read_from_zip(path, members, name):
    """The bytes of a member; members: {tidy name: name in the archive}."""
    archive = open_zip(path, os.getpid())
    check_size(archive.getinfo(members[name]).file_size)
    return archive.read(members[name])


@functools.lru_cache(maxsize=128)
def open_zip(path, pid):
    """One handle per process: ZipFile locks its threads, but forked workers would share one file position."""
    return zipfile.ZipFile(path)


def unpacked(path, opener):
    """The plain .tar of a compressed one, which has no random access; unpacked once, into the cache folder."""
    target = cache_folder() / f"{path.name}.{path.stat().st_size}.{path.stat().st_mtime_ns}.tar"

    def unpack(temporary):
        with opener(path) as packed, open(temporary, "wb") as plain:
            shutil.copyfileobj(packed, plain, 2**20)
        tarfile.open(temporary, "r:").close()  # raises if this is no .tar, and nothing stays in the cache

    if not target.exists():
        print(f"unpacking {path} to {target}, once", file=sys.stderr)
        write_safely(target, unpack, shared=True)
    return target


def cache_folder():
    """The folder of downloads and unpacked archives, created if necessary."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanodinov2"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
