"""Image files of a folder, a list, an archive or shards: their names, and a function that reads one.

Archive members are read in place and never extracted, so no name can write outside the archive.
"""

import contextlib
import csv
import functools
import io
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
PATH_AND_CLASS = re.compile(rf"(.*(?:{'|'.join(map(re.escape, EXTENSIONS))})|.*)(?:\s+(.+))?", re.IGNORECASE)
SAMPLE = re.compile(r"(.*/)?[^./]*")  # the files of one WebDataset sample share their name up to the first dot


def find_files(data):
    """A path -> (sorted image names, function from a name to the file's bytes, {name: (split, class)}).

    The dict holds what a list or `.cls` files say, None where they do not; it is empty for folders.  Raises UserError.
    """
    try:
        path = Path(os.path.expanduser(data))
        if path.is_dir():
            names, folder, given = find_in_folder(path)
        elif path.suffix.lower() in (".txt", ".csv", ".tsv"):
            names, folder, given = find_in_list(path)
        else:
            (names, given), folder = list_archive(path, path.stat().st_mtime_ns), path
        if not names:
            raise ValueError("found no image")
    except Exception as error:  # damaged archives make Python's modules raise almost anything
        raise UserError(f"{data}: cannot be read ({reason_of(error)}); give a folder, a .txt or .csv list, or a .zip, "
                        ".tar, .tar.gz, .tar.bz2 or .tar.xz archive; or cifar10, or shapes") from None
    names = sorted(names, key=lambda name: name.split("/"))  # all of a/ comes before a-b/, as in a file tree
    return names, functools.partial(read_file, folder=folder), given


def read_file(name, folder=""):
    """The bytes of an image file, or of a member of an archive, whose name is like /a/b.tar/c.jpg."""
    path = Path(folder, name)
    with contextlib.suppress(NotADirectoryError, FileNotFoundError):  # the second on Windows
        return read_bytes(path)
    archive = next((parent for parent in path.parents if parent.is_file()), path)
    members, _ = list_archive(archive, archive.stat().st_mtime_ns)
    archive, info, size = members[path.relative_to(archive).as_posix()]
    if size > MAX_BYTES:
        raise ValueError(f"larger than the limit of {MAX_BYTES // 2**20} MiB")
    if isinstance(info, zipfile.ZipInfo):
        return open_zip(archive, os.getpid()).read(info)
    with tarfile.open(archive, "r:") as tar:  # a new handle: others would share its position
        return tar.extractfile(info).read()


@functools.lru_cache(maxsize=128)
def open_zip(path, pid):
    """One handle per process: ZipFile locks its threads, but forked workers would share one file position."""
    return zipfile.ZipFile(path)


def tidy(name, extensions=EXTENSIONS):
    """A name as "a/b/c.jpg"; None for a hidden name, another extension, or a name with ".."."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    hidden = any(part[0] == "." or part == "__MACOSX" for part in parts)
    return "/".join(parts) if os.path.splitext(name)[1].lower() in extensions and not hidden else None


def find_in_folder(folder):
    """A folder of images or of shards -> image names, the folder that they start from, {name: (None, class)}."""
    files, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(here) in seen:  # a link back to a parent folder
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        folders.sort()
        files += [f"{Path(here).relative_to(folder).as_posix()}/{name}" for name in names]
    names, shards = (list(filter(None, (tidy(name, ends) for name in files))) for ends in (EXTENSIONS, {".tar"}))
    if shards and not names:
        return find_in_shards(folder, sorted(shards))
    if shards:
        say_once(f"{folder}: {len(shards)} .tar files are skipped, because there are images beside them")
    return names, folder, {}


def find_in_list(path):
    """A list of images or of shards -> absolute names, "", {name: (split, class)}; relative names start at it."""
    check_regular(path)
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # file names may be any bytes
    if path.suffix.lower() == ".txt":
        rows = [(*PATH_AND_CLASS.fullmatch(line.strip()).groups(), None) for line in text.split("\n")]
    else:
        header = text.split("\n", 1)[0]
        table = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
        table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
        if "path" not in table.fieldnames:
            raise ValueError(f"its header is {', '.join(table.fieldnames) or 'empty'}; it must have the column path")
        rows = [[(row.get(key) or "").strip() for key in ("path", "label", "split")] for row in table]
    listed = {Path(os.path.abspath(path.parent / name)).as_posix(): (split or None, label or None)
              for name, label, split in reversed(rows) if name}  # the first line of a name counts
    if listed and all(name.lower().endswith(".tar") for name in listed):
        return find_in_shards("", sorted(listed))
    return list(listed), "", listed if any(map(any, listed.values())) else {}


def find_in_shards(folder, shards):
    """.tar files of one dataset (WebDataset, img2dataset) -> as `find_in_folder`; damaged ones are skipped."""
    names, classes = [], {}
    for shard in tqdm(shards, "shards", delay=1):
        path = Path(folder, shard)
        try:
            members, kinds = list_archive(path, path.stat().st_mtime_ns)
        except Exception as error:  # tarfile raises almost anything
            say_once(skipped_line(path, reason_of(error)))
            continue
        names += [f"{shard}/{name}" for name in members]
        classes |= {f"{shard}/{name}": pair for name, pair in kinds.items()}
    return names, folder, classes


def skipped_line(name, reason):
    """The line that reports a broken file."""
    return f"skipped {printable(str(name))}: {printable(reason)}"


@functools.lru_cache(maxsize=2**14)  # listing takes seconds, and each image that is read needs it
def list_archive(path, modified):
    """A .zip or .tar -> {image name: (path, ZipInfo or TarInfo, size)}, {image name: (None, class)}.

    In WebDataset the class of 1.jpg is the content of 1.cls.  Links are skipped.
    """
    check_regular(path)
    with open(path, "rb") as f:
        head = f.read(3)
    if head == b"PK\3":
        with zipfile.ZipFile(path) as archive:  # some programs on Windows write backslashes
            names = {info: tidy(info.filename.replace("\\", "/")) for info in archive.infolist()}
        return {name: (path, info, info.file_size) for info, name in names.items() if name}, {}
    if head in (b"\x1f\x8b\x08", b"BZh", b"\xfd7z"):  # .gz, .bz2, .xz
        path = unpacked(path)
    members, classes = {}, {}
    with tarfile.open(path, "r:") as tar:
        for member in filter(tarfile.TarInfo.isreg, tar):
            if member.size < 0:  # older versions of Python would hang
                raise tarfile.ReadError(f"{printable(member.name)} has a negative size")
            if name := tidy(member.name):
                members[name] = (path, member, member.size)
            elif name := tidy(member.name, {".cls"}):
                classes[SAMPLE.match(name)[0]] = tar.extractfile(member).read(100).decode().strip()
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(2**15)  # zeros; tarfile takes a damaged header for the end
        if len(end) < 512 or end.strip(b"\0"):
            raise tarfile.ReadError(f"damaged, cut short or joined at byte {tar.offset}")
    samples = {name: SAMPLE.match(name)[0] for name in members}
    return members, {name: (None, classes[sample]) for name, sample in samples.items() if sample in classes}


def unpacked(path):
    """The plain .tar of a compressed one, which has no random access; unpacked once, into the cache folder."""
    def unpack(temporary):
        with tarfile.open(path) as packed, open(temporary, "wb") as plain:  # raises unless it is a .tar
            packed.fileobj.seek(0)
            shutil.copyfileobj(packed.fileobj, plain, 2**20)

    target = cache_folder() / f"{path.name}.{path.stat().st_size}.{path.stat().st_mtime_ns}.tar"
    if not target.exists():
        print(f"unpacking {path} to {target}, once", file=sys.stderr)
        write_safely(target, unpack, shared=True)
    return target


def cache_folder():
    """The folder of downloads and unpacked archives, created if necessary."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanodinov2"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
