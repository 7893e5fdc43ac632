"""Where images lie: `find_files` takes a folder, a list, an archive or shards, and gives names and a way to read each.

Archive members are read where they lie and never extracted, so that their names can do no harm.  Names have "/" between
folders on every system.
"""

import bz2
import csv
import functools
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from support.files import MAX_BYTES, UserError, check_regular, printable, read_bytes, reason_of, say_once, write_safely
from support.splits import HELD_OUT, TRAIN, unwrapped

NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
Image.init()
FORMATS = [name for name in ["JPEG", "PNG", *Image.ID] if name not in NOT_PICTURES]  # tried in this order
EXTENSIONS = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
EXTENSIONS |= {".heic", ".heif", ".avif", ".jxl"}  # not to be passed over in silence by a Pillow without them
LISTS = (".txt", ".csv", ".tsv")
COLUMNS = {  # of a list, as people call them
    **dict.fromkeys(("filename", "file_name", "file", "image", "image_path", "filepath"), "path"),
    **dict.fromkeys(("class", "category", "target"), "label"), **dict.fromkeys(("set", "subset"), "split"),
}  # fmt: skip
MANY = 20  # ours: shards; fewer are listed before a progress bar could be read












# ---------------------------------------------------------------------------- finding

def find_files(data):
    """A path -> (sorted image names, function from a name to the file's bytes, what else is known). Raises UserError.

    What else: {name: (split or None, class or None)} where a list or a shard says it, {} where folders do.  A class of
    "" is none, whatever the folders are called.
    """
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            files = list(walk(path))
            shards = sorted(name for name in files if name.lower().endswith(".tar"))
            if names := list(filter(None, map(tidy, files))):
                if shards:
                    say_once(f"{data}: {len(shards)} .tar files are not read, since there are images beside them")
                return sorted(names, key=by_folder), functools.partial(read_from_folder, str(path)), {}
            return find_in_shards(path, shards)
        if path.suffix.lower() in LISTS:
            listed = read_list(path)
            given = listed if any(map(any, listed.values())) else {}
            if listed and all(name.lower().endswith(".tar") for name in listed):
                if given:
                    raise UserError(f"{data}: a shard has no class; `.cls` files beside its images have them")
                return find_in_shards(Path(), sorted(listed))
            return sorted(listed, key=by_folder), read_from_list, given
        check_regular(path)
        with open(path, "rb") as f:
            head = f.read(6)
        if head[:4] == b"PK\3\4":
            members = zip_members(path)
            return sorted(members, key=by_folder), functools.partial(read_from_zip, str(path), members), {}
        opener = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7z": lzma.open}.get(head[:3])
        path = unpacked(path, opener) if opener else path
        members, classes = tar_members(path, path.stat().st_mtime_ns)
        given = {name: (None, kind) for name, kind in classes.items()} if len(classes) == len(members) else {}
        return sorted(members, key=by_folder), functools.partial(read_from_tar, str(path), members), given
    except FileNotFoundError:
        raise UserError(f"{data}: no such file or folder; give a path, or one of: cifar10, shapes") from None
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError, tarfile.TarError,
            zipfile.BadZipFile, csv.Error) as error:
        raise UserError(f"{data}: cannot be read ({reason_of(error)}); give a folder, a .txt or .csv list, or an "
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
        yield from (posix(os.path.relpath(os.path.join(here, name), folder)) for name in names)


def posix(path):
    """A path of this system with "/" between its parts."""
    return path.replace(os.sep, "/")


def tidy(name):
    """A name as "a/b/c.jpg", or None if it is no image, is hidden, or leads out of the archive by ".."."""
    parts = clean(name).split("/")
    if not parts[0] or any(part[0] == "." or part == "__MACOSX" for part in parts):
        return None
    return "/".join(parts) if os.path.splitext(name)[1].lower() in EXTENSIONS else None


def clean(name):
    """A member's name without what says nothing in it."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def by_folder(name):
    """Sorts as a file tree does: all of a/ before a-b/."""
    return name.split("/")


# ---------------------------------------------------------------------------- lists


def read_list(path):
    """{absolute path: (split or None, class or None)}: of a .csv with a header, or of a .txt, a path a line.

    Header: path, label, split, or what people call them, of which path must be there; commas, semicolons or tabs.  In a
    .txt a class may follow the path; a line that ends as an image file does is a path alone.  Relative paths count from
    the list's folder.
    """
    check_regular(path)
    # Editors on Windows put a mark before the first line; a name may be no UTF-8.
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if path.suffix.lower() == ".txt":
        rows = [(*split_line(line.strip()), None) for line in text.split("\n")]
    else:
        header = text.split("\n", 1)[0]
        rows = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
        names = [name.strip().lower() for name in rows.fieldnames or ()]
        rows.fieldnames = [COLUMNS.get(name, name) for name in names]
        if "path" not in rows.fieldnames:
            raise UserError(f"{path}: its header is {', '.join(names) or 'empty'}; it must have a path, and may have a "
                            "label and a split")
        rows = [[(row.get(name) or "").strip() for name in ("path", "label", "split")] for row in rows]
    listed, again = {}, set()
    for name, label, split in rows:
        if name:
            name = posix(os.path.abspath(path.parent / name))
            if listed.setdefault(name, (split or None, label or None)) != (split or None, label or None):
                again.add(name)
    if again:
        say_once(f"{path}: {len(again)} images stand there more than once, as different things; the first counts")
    return listed


IMAGE_THEN_CLASS = re.compile(rf"(.*(?:{'|'.join(map(re.escape, sorted(EXTENSIONS)))}))\s+(.+)", re.IGNORECASE)


def split_line(line):
    """A line of a .txt list -> (path, class or None)."""
    found = IMAGE_THEN_CLASS.fullmatch(line)
    alone = os.path.splitext(line)[1].lower() in EXTENSIONS
    return found.groups() if found and not alone else (line, None)


# ---------------------------------------------------------------------------- archives


def read_from_folder(folder, name):
    """The bytes of a file below the folder."""
    return read_bytes(Path(folder, name))


def read_from_list(name):
    """A file, or a member of the archive that is the first file on the way to it."""
    if not os.path.exists(name):
        for archive in reversed(Path(name).parents):
            if archive.is_file():
                return member_reader(str(archive), archive.stat().st_mtime_ns)(posix(os.path.relpath(name, archive)))
    return read_bytes(name)


@functools.lru_cache(maxsize=2**14)
def member_reader(archive, modified):
    """find_files' function from a member's name to its bytes; listed once, until the archive is modified."""
    return find_files(archive)[1]


def zip_members(path):
    """A .zip -> {tidy image name: member}."""
    with zipfile.ZipFile(path) as archive:
        if b"PK\3\4" in archive.comment or b"PK\1\2" in archive.comment:
            raise zipfile.BadZipFile("its comment holds an archive, so its end is not where it says")
        names = {tidy(name.replace("\\", "/")): name for name in archive.namelist()}  # some tools on Windows write \
        return {name: member for name, member in names.items() if name}


def read_from_zip(path, members, name):
    """The bytes of a member, by its tidy name."""
    archive = open_zip(path, os.getpid())
    if archive.getinfo(members[name]).file_size > MAX_BYTES:
        raise ValueError(f"unpacked over the limit of {MAX_BYTES // 2**20} MiB")
    return archive.read(members[name])


@functools.lru_cache(maxsize=128)  # an archive takes a moment to open
def open_zip(path, pid):
    """One handle a process: ZipFile locks its threads, but forked workers would share one file position."""
    return zipfile.ZipFile(path)


def read_from_tar(path, members, name):
    """The bytes of a member, from where they lie in a plain tar."""
    start, count = members[name]
    if count > MAX_BYTES:
        raise ValueError(f"over the limit of {MAX_BYTES // 2**20} MiB")
    with open(path, "rb") as f:
        f.seek(start)
        return f.read(count)


@functools.lru_cache(maxsize=2**14)  # archives take seconds to list, and both splits want the lists
def tar_members(path, modified):
    """A plain tar file -> {image name: (offset, bytes)}, {image name: class}. Links are no files and are left out.

    Classes stand in files beside the images, of the same name but for what follows its first dot: `.cls` (WebDataset).
    """
    members, classes, size = {}, {}, os.stat(path).st_size
    with tarfile.open(path, "r:") as tar:
        for m in tar:
            if not 0 <= m.size <= size - m.offset_data:
                raise tarfile.ReadError(f"{printable(m.name)} would reach beyond the end: cut short, or damaged")
            if m.isreg() and tidy(m.name):
                members[tidy(m.name)] = (m.offset_data, m.size)
            elif m.isreg() and m.name.lower().endswith(".cls"):
                classes[sample_of(m.name)] = tar.extractfile(m).read(100).decode().strip()
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(512)
        if end.strip(b"\0"):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"damaged at byte {tar.offset}")
        if not end:
            say_once(f"{printable(str(path))}: has no end mark, and may be cut short")
    classes = {name: classes[sample_of(name)] for name in members if sample_of(name) in classes}
    if len(set(map(sample_of, classes))) < len(classes):
        say_once(f"{printable(str(path))}: samples with several images; each of them counts as an image of the class")
    return members, classes


def sample_of(name):
    """The name of a WebDataset's sample: that of a member up to the first dot after its folders."""
    folders, slash, last = clean(name).rpartition("/")
    return folders + slash + last.split(".")[0]


def find_in_shards(folder, names):
    """find_files for tar files of one set, as WebDataset and img2dataset write them.

    Splits as words in the names of the shards say, or folders in them; classes as .cls does, or such folders.
    """
    members, inside, classes = {}, {}, {}
    for shard in tqdm(names, "shards", disable=len(names) < MANY):
        path = folder / shard
        try:
            places, kinds = tar_members(path, path.stat().st_mtime_ns)
        except (OSError, ValueError, tarfile.TarError) as error:
            reason = printable(getattr(error, "strerror", None) or reason_of(error))
            say_once(f"skipped {printable(str(shard))}: {reason}")
            continue
        members |= {f"{shard}/{name}": (str(path), *place) for name, place in places.items()}
        inside |= {f"{shard}/{name}": name for name in places}
        classes |= {f"{shard}/{name}": kind for name, kind in kinds.items()}
    if names and not members:
        raise UserError(f"none of the {len(names)} shards ({names[0]}, ...) holds an image that can be read")
    given, words = {}, re.compile(rf"(?:^|[^a-z])({'|'.join(TRAIN + HELD_OUT)})(?:[^a-z]|$)", re.IGNORECASE)
    said = dict(zip(names, map(words.search, map("/".join, unwrapped([name.split("/") for name in names])))))
    for name, parts in zip(inside, unwrapped([name.split("/") for name in inside.values()])):
        word = said[name.removesuffix("/" + inside[name])]
        split = word[1] if word else parts.pop(0) if parts[0].lower() in TRAIN + HELD_OUT else None
        given[name] = (split, classes.get(name, "") if classes else parts[0] if len(parts) > 1 else "")
    return sorted(members, key=by_folder), functools.partial(read_from_shards, members), given


def read_from_shards(members, name):
    """The bytes of an image of a set in shards."""
    path, *place = members[name]
    return read_from_tar(path, {name: place}, name)


def unpacked(path, opener):
    """The plain tar behind a compressed one, which has no random access; made once, in the cache folder."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_folder() / f"{path.name}.{key}.tar"
    if not target.exists():
        print(f"decompressing {path} to {target}, once", file=sys.stderr)
        write_safely(target, functools.partial(unpack, path, opener), shared=True)
    return target


def unpack(path, opener, target):
    """A compressed tar to a plain one; tarfile.TarError if there is none in it."""
    with opener(path) as packed, open(target, "wb") as f:
        shutil.copyfileobj(packed, f, 2**20)
    tarfile.open(target, "r:").close()  # no archive, no file in the cache


def cache_folder():
    """Where downloads and decompressed archives stay; made if it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanodinov2"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
