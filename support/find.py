"""Image files of a folder, a list, an archive or shards: their names, and a function that reads one.

Archive members are read in place and never extracted, so no name can write outside the archive.
"""

import contextlib
import csv
import functools
import os
import posixpath
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from support.files import MAX_BYTES, UserError, check_regular, read_bytes, reason_of, say_once, write_safely

# Pillow hands some of these to other programs (EPS runs Ghostscript) and opens the others as data without pixels.
UNSAFE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
Image.init()
MISREAD = {"DDS", "FITS", "ICNS", "ICO", "SGI"}  # Pillow can change their values; each file is skipped and named
FORMATS = [name for name in ["JPEG", "PNG", *Image.ID] if name not in UNSAFE | MISREAD]  # tried in this order
EXTENSIONS = {end for end, name in Image.registered_extensions().items() if name in {*FORMATS, *MISREAD}}
EXTENSIONS |= {".heic", ".heif", ".avif", ".jxl"}  # skipped with a reason where this Pillow cannot read them
PATH_AND_CLASS = re.compile(rf"(.*(?:{'|'.join(map(re.escape, EXTENSIONS))})|.*)(?:\s+(.+))?", re.IGNORECASE)
HIDDEN = re.compile(r"(?i)\.|(__MACOSX|[@#](eaDir|recycle|snapshot)|\$RECYCLE.BIN|System Volume \w+|lost.found)$")
ARCHIVE = re.compile(r"(?i).*\.(zip|7z|rar|cbz|t[gbx]z2?|tar(\.\w+)?)")
OWN_PICTURES = {"pca.png", "curves.png", "ablation.png"}  # of runs whose --out lies in --data
SAMPLE = re.compile(r"(.*/)?[^./]*")  # WebDataset: 1.cls holds the class of 1.jpg; names agree up to the first dot


def find_files(data):
    """A path -> (image names, function from a name to the file's bytes, {name: (split, class)}).

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
        raise UserError(f"{data}: cannot be read ({reason_of(error)}); give a folder, a .txt, .csv or .tsv list, or a "
                        ".zip, .tar, .tar.gz, .tar.bz2 or .tar.xz archive") from None
    names = sorted(names, key=lambda name: name.split("/"))  # all of a/ comes before a-b/, as in a file tree
    return names, functools.partial(read_file, folder=folder), given


def read_file(name, folder=""):
    """The bytes of an image file, or of a member of an archive, whose name is like /a/b.tar/c.jpg."""
    path = Path(folder, name)
    with contextlib.suppress(NotADirectoryError, FileNotFoundError):  # the second on Windows
        return read_bytes(path)
    archive = next((parent for parent in path.parents if parent.is_file()), path)
    archive, info, size = list_archive(archive, archive.stat().st_mtime_ns)[0][path.relative_to(archive).as_posix()]
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
    hidden = any(map(HIDDEN.match, parts))
    return "/".join(parts) if os.path.splitext(name)[1].lower() in extensions and not hidden else None


def find_in_folder(folder):
    """A folder of images or of shards -> image names, the folder that they start from, {name: (None, class)}."""
    files, seen, skipped, errors = [], set(), [], []
    for here, folders, names in os.walk(folder, onerror=errors.append, followlinks=True):
        if os.path.realpath(here) in seen:  # a link to a folder that is read already
            skipped.append(here)
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        folders[:] = sorted(name for name in folders if not HIDDEN.match(name))
        own = OWN_PICTURES | {Path(name[:-5]).with_suffix(".png").name for name in folders if name.endswith(".work")}
        files += [f"{Path(here).relative_to(folder).as_posix()}/{name}" for name in names if name not in own]
        skipped += [os.path.join(here, name) for name in names if name in own or not (
            tidy(name) or HIDDEN.match(name) or os.path.exists(os.path.join(here, name)))]
    if errors:
        raise errors[0]
    if skipped:
        say_once(f"{folder}: skipped {len(skipped)} pictures that train.py or curate.py drew, links to nothing, or "
                 f"links to folders that are read already, for example {skipped[0]}")
    names, shards = (list(filter(None, (tidy(name, ends) for name in files))) for ends in (EXTENSIONS, {".tar"}))
    note_archives(folder, [name for name in files if names or not name.lower().endswith(".tar")])
    return find_in_shards(folder, sorted(shards)) if shards and not names else (names, folder, {})


def note_archives(place, names):
    """Print that archives inside of `place` are not read, and files whose names lead out of it, if there are any."""
    if inside := [name for name in names if ARCHIVE.fullmatch(name) and tidy(name, {Path(name).suffix.lower()})]:
        say_once(f"{place}: skipped {len(inside)} archives in it, for example {inside[0]}; unpack them, or give one")
    if outside := [name for name in names if ".." in name.split("/")]:
        say_once(f"{place}: skipped {len(outside)} files whose names have .., for example {outside[0]}; rename them")


def find_in_list(path):
    """A list of images or of shards -> absolute names, "", {name: (split, class)}; names are relative to its folder."""
    lines = re.split("\r\n?|\n", read_bytes(path).decode("utf-8-sig", "surrogateescape"))  # names may be any bytes
    if path.suffix.lower() == ".txt":
        rows = [(*PATH_AND_CLASS.fullmatch(line.strip()).groups(), None) for line in lines]
    else:
        delimiter = max(",;\t", key=lines[0].count)
        first, *table = [next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), []) for line in lines]
        header = [name.strip().lower() for name in first]
        if "path" not in header:
            raise ValueError(f"its header is {', '.join(header) or 'empty'}; it must have the column path")
        if len(set(header)) < len(header):
            raise ValueError(f"its header is {', '.join(header)}; each name must be there once")
        if unread := set(header) - {"path", "label", "split"}:
            say_once(f"{path}: only the columns path, label and split are read, not {', '.join(sorted(unread))}")
        for number, (line, row) in enumerate(zip(lines[1:], table), 2):
            if line.count('"') % 2 or any(row[len(header):]):
                raise ValueError(f"line {number} has a quote that is not closed, or more values than the header")
        rows = [[dict(zip(header, row)).get(key, "").strip() for key in ("path", "label", "split")] for row in table]
    listed = {}
    for name, label, split in filter(any, rows):
        place, pair = Path(os.path.abspath(path.parent / name)).as_posix(), (split or None, label or None)
        if listed.setdefault(place, pair) != pair:
            raise ValueError(f"it lists {name} twice, with other labels or splits")
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
            names += [f"{shard}/{name}" for name in members]
            classes |= {f"{shard}/{name}": pair for name, pair in kinds.items()}
        except Exception as error:  # tarfile raises almost anything
            say_once(f"skipped {path}: {reason_of(error)}")
    return names, folder, classes


@functools.lru_cache(maxsize=2**14)  # listing takes seconds, and each image that is read needs it
def list_archive(path, modified):
    """A .zip or .tar -> {image name: (path, ZipInfo or TarInfo, size)}, {image name: (None, class of a .cls file)}."""
    check_regular(path)
    with open(path, "rb") as f:
        head = f.read(3)
    if head == b"PK\3":
        with zipfile.ZipFile(path) as archive:  # some programs on Windows write backslashes
            names = {info: tidy(info.filename.replace("\\", "/")) for info in archive.infolist()}
            end = zipfile._EndRecData(archive.fp)  # its item 4 is the number of members, modulo 2¹⁶ in old programs
            if (end[4] - len(names)) % 2**16 or min((info.header_offset for info in names), default=0):
                raise zipfile.BadZipFile("its directory does not list all of its files")
        found = [name for name in names.values() if name]
        if len(set(found)) < len(found):
            raise zipfile.BadZipFile("it holds two files of one name")
        note_archives(path, [info.filename for info in names])
        return {name: (path, info, info.file_size) for info, name in names.items() if name}, {}
    if head in (b"\x1f\x8b\x08", b"BZh", b"\xfd7z"):  # .gz, .bz2, .xz
        plain = unpacked(path)
        try:
            return list_archive(plain, modified)
        except Exception:
            plain.unlink(missing_ok=True)  # damaged; the next call unpacks it again
            raise
    found, members, classes, lost = {}, {}, {}, []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.size < 0:  # older versions of Python would hang
                raise tarfile.ReadError(f"{member.name} has a negative size")
            if member.isreg() or member.issym() or member.islnk():
                start = posixpath.dirname(member.name) if member.issym() else ""
                target = posixpath.normpath(posixpath.join(start, member.linkname))
                found[posixpath.normpath(member.name)] = member if member.isreg() else target
        for _ in range(8):  # follow links, and links to links
            found = {name: found.get(to) if isinstance(to, str) else to for name, to in found.items()}
        for path_in_tar, member in found.items():
            if not isinstance(member, tarfile.TarInfo):
                lost.append(path_in_tar)
            elif name := tidy(path_in_tar):
                members[name] = (path, member, member.size)
            elif name := tidy(path_in_tar, {".cls"}):
                classes[SAMPLE.match(name)[0]] = tar.extractfile(member).read(100).decode().strip()
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(2**15)  # zeros; tarfile takes a damaged header for the end
        if len(end) < 512 or end.strip(b"\0"):
            raise tarfile.ReadError(f"damaged, cut short or joined at byte {tar.offset}")
    note_archives(path, found)
    if lost:
        say_once(f"{path}: skipped {len(lost)} links to no file in it, like {lost[0]}; pack with tar --dereference")
    return members, {name: (None, classes[key]) for name in members if (key := SAMPLE.match(name)[0]) in classes}


def unpacked(path):
    """The plain .tar of a compressed one, which has no random access; unpacked once, into the cache folder."""
    def unpack(temporary):
        with tarfile.open(path) as packed, open(temporary, "wb") as plain:  # raises unless it is a .tar
            packed.fileobj.seek(0)
            shutil.copyfileobj(packed.fileobj, plain, 2**20)

    target = cache_folder() / f"{path.name}.{path.stat().st_ino}.{path.stat().st_size}.{path.stat().st_mtime_ns}.tar"
    if not target.exists():
        print(f"unpacking {path} to {target}, once", file=sys.stderr)
        write_safely(target, unpack, shared=True)
    return target


def cache_folder():
    """The folder of downloads and unpacked archives, created if necessary."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanodinov2"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
