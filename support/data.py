"""Images: a folder, a list, an archive, a named set, or the built-in one.

`load_images(data, split, size)` takes what `--data` takes and returns one split, every image a square of
`size` pixels; `batches(images, batch)` is the endless, resumable stream that training reads, and
`in_order` the finite one that evaluation reads. `data` is one of

    a folder           images at any depth; the first folder below the split names the class
    a .txt file        image paths, one a line, relative ones counted from the file's own folder; a path may
                       lead into an archive, as pictures.tar/cats/1.jpg
    an archive         .zip, .tar, .tar.gz, .tar.bz2, .tar.xz of such a folder; no member is ever extracted
    cifar10            downloaded once, checked, then read from the cache folder
    shapes             ten kinds of drawn things, each with a shape and a texture of its own

Splits are top folders `train` and `test` (or `val`). Without them every tenth image of each class is the
test split; without classes training takes everything, and test is every tenth of it, for pictures only.

The paper decodes each image anew for every view. Here an image is decoded once into one uint8 square, the
views are cut from it on the device (`augment.py`), and a set that is small enough stays in memory.
"""

import bz2
import contextlib
import functools
import gzip
import hashlib
import http.client
import io
import lzma
import os
import shutil
import sys
import tarfile
import urllib.request
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from support import shapes

# ------------------------------------------------------------------------------------------------------
# Constants. All of them are ours: the paper's data set is not public.
# ------------------------------------------------------------------------------------------------------

MEMORY_LIMIT = 2 * 2**30        # bytes of decoded pixels that may stay in memory; a larger set is streamed
QUIET_BELOW = 2000              # images; fewer are loaded before a progress bar could be read
TEST_EVERY = 10                 # where a set has no test split, one image in ten is held out
ALPHA_BACKGROUND = (128, 128, 128)  # grey: on white a white drawing vanishes, on black a black one

# Formats that are not pictures to Pillow (it can only hand them to other software), and EPS, which it
# would open by running Ghostscript, a program interpreter, on whatever the file holds.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
Image.init()
FORMATS = [name for name in ["JPEG", "PNG", *Image.ID] if name not in NOT_PICTURES]  # tried in this order
EXTENSIONS = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
EXTENSIONS |= {".heic", ".heif", ".avif", ".jxl"}  # not to be passed over in silence by a Pillow without them

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # the other version is pickles: code
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"



class DataError(Exception):
    """A bad `--data`. Its text is one line that says what is wrong and what to do about it."""


@dataclass
class Images:
    """One split of N images, S×S. Pixels that do not fit in memory are None, and come from `files`."""

    name: str                   # what the user asked for
    pixels: torch.Tensor        # (N, 3, S, S) uint8, or None
    labels: torch.Tensor        # (N,) int64, or None when there are no classes
    classes: list               # label names, [] when there are none
    masks: torch.Tensor = None  # (N, S, S) bool, the foreground; only `shapes` knows it
    skipped: list = field(default_factory=list)  # (name, reason) of unreadable files; grows while streaming
    names: list = field(default_factory=list)    # N paths inside the folder or archive, [] for drawn ones
    files: object = None        # a `Files` when streamed

    def __len__(self):
        return len(self.files if self.pixels is None else self.pixels)


def load_images(data, split="train", size=64, seed=0):
    """One split of `data` as `Images`, S = size.

    data: a path, "cifar10" or "shapes". split: "train" or "test". The short side of each image becomes
    `size`; along the long side a window is cut, in the centre for test, at a place drawn from `seed` for
    train. Files that cannot be read are left out and listed in `skipped`. Raises DataError.
    """
    assert split in ("train", "test"), f'split is {split!r}, and must be "train" or "test"'
    if data == "shapes":
        pixels, labels, masks = shapes.draw_shapes(split, size, seed)
        return Images("shapes", pixels, labels, list(shapes.KINDS), masks)
    if data == "cifar10":
        return read_cifar10(split, size)
    names, read = find_files(data)
    rows, classes = choose_split(names, split)
    if not rows:
        found = f"{len(names)} images, but none for the {split} split" if names else "no image"
        raise DataError(f"{data}: found {found}; give a folder or an archive of .jpg, .png or other images")
    names = [name for name, _ in rows]
    number = {kind: i for i, kind in enumerate(classes)}
    labels = torch.tensor([number[kind] for _, kind in rows]) if classes else None
    places = np.random.default_rng(seed).random(len(names)) if split == "train" else np.full(len(names), 0.5)
    files = Files(names, read, places, size)
    if len(files) * 3 * size * size > MEMORY_LIMIT:
        skipped = files[0][1]  # reads on to the first good image, so that a set without any fails here
        return Images(str(data), None, labels, classes, skipped=skipped, names=names, files=files)
    pixels, skipped = files.load_all()
    if skipped:
        broken = dict(skipped)
        good = torch.tensor([name not in broken for name in names])
        pixels, labels = pixels[good], labels[good] if classes else None
        names = [name for name in names if name not in broken]
    return Images(str(data), pixels, labels, classes, skipped=skipped, names=names)


# ------------------------------------------------------------------------------------------------------
# Batches
# ------------------------------------------------------------------------------------------------------

def batches(images, batch, seed=0, start=0, device="cpu", workers=2, shard=(0, 1)):
    """Endless (batch, 3, S, S) uint8 on `device`: batches number start, start + 1, ...

    Batch t depends on (seed, t) alone, so a resumed run sees what an unbroken one would have seen. With
    shard = (rank, world) it is the rank's part of a global batch of batch·world images.
    """
    return serve(images, shuffled_rows(len(images), batch, seed, start, *shard), device, workers)


def in_order(images, batch, device="cpu", workers=2):
    """Every image once, in the order of `images.labels`: (≤ batch, 3, S, S) uint8 on `device`."""
    rows = np.arange(len(images))
    return serve(images, np.array_split(rows, rows[batch::batch]), device, workers)


def shuffled_rows(n, batch, seed, start, rank, world):
    """Endless (batch,) int64: consecutive pieces of epoch 0's permutation of n, epoch 1's, and so on."""
    epoch, order, step = -1, None, start
    while True:
        places = (step * world + rank) * batch + np.arange(batch)
        rows = np.empty(batch, dtype=np.int64)
        for e in range(places[0] // n, places[-1] // n + 1):  # several at an epoch's end, or if n < batch
            if e != epoch:
                epoch, order = e, np.random.default_rng((seed, e)).permutation(n)
            here = places // n == e
            rows[here] = order[places[here] % n]
        yield rows
        step += 1


def serve(images, rows, device, workers):
    """Yields the images of each array in `rows`, from memory, from the device's memory, or from files."""
    device = torch.device(device)
    if images.pixels is not None:
        pixels = images.pixels
        if device.type != "cuda" or pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4:
            pixels = pixels.to(device)  # once: from now on a batch costs one gather
        for r in rows:
            yield send(pixels[send(torch.from_numpy(r), pixels.device)], device)
        return
    loader = torch.utils.data.DataLoader(
        images.files, batch_sampler=rows, num_workers=workers, collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator())  # of its own: the global one must not depend on how images are read
    for pixels, skipped in loader:
        images.skipped += [entry for entry in dict.fromkeys(skipped) if entry not in images.skipped]
        yield pixels.to(device, non_blocking=True)


def send(x, device):
    """x on `device`; from pinned memory to a GPU, so that the host does not wait for the copy."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def collate(items):
    """[((3, S, S), skipped)] of one batch -> (B, 3, S, S) uint8, one list of all that were skipped."""
    squares, skipped = zip(*items)
    return torch.from_numpy(np.stack(squares)), [entry for entries in skipped for entry in entries]


# ------------------------------------------------------------------------------------------------------
# Finding the files, and splitting them
# ------------------------------------------------------------------------------------------------------

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


def choose_split(names, split):
    """Sorted names -> ([(name, class or None)] of one split, class names, the same for both splits)."""
    parts = [name.split("/") for name in names]
    while parts and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]  # one folder that wraps everything says nothing
    tops = {p[0] for p in parts if len(p) > 1}
    held_out = "test" if "test" in tops else "val"
    if {"train", held_out} <= tops:
        rows = [(n, p[0] == held_out, p[1:]) for n, p in zip(names, parts) if p[0] in ("train", held_out)]
    else:
        rows = [(n, None, p) for n, p in zip(names, parts)]
    kinds = [p[0] if len(p) > 1 else None for *_, p in rows]
    classes = sorted(set(kinds)) if None not in kinds and len(set(kinds)) > 1 else []
    kinds = kinds if classes else [None] * len(rows)
    totals, seen, chosen = Counter(kinds), Counter(), []
    for (name, held, _), kind in zip(rows, kinds):
        wanted = held == (split == "test")
        if held is None:
            held = seen[kind] % TEST_EVERY == 0 and (totals[kind] > 1 or not classes)
            wanted = held if split == "test" else not held or not classes
            seen[kind] += 1
        if wanted:
            chosen.append((name, kind))
    return chosen, classes


# ------------------------------------------------------------------------------------------------------
# Archives. Members are read where they lie, so that their names can do no harm.
# ------------------------------------------------------------------------------------------------------

def read_from_folder(folder, name):
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
    return find_files(archive)[1]


def read_from_zip(path, members, name):
    return open_zip(path, os.getpid()).read(members[name])


@functools.lru_cache(maxsize=8)
def open_zip(path, pid):
    """One handle a process: ZipFile locks its threads, but forked workers would share one file position."""
    return zipfile.ZipFile(path)


def read_from_tar(path, members, name):
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


# ------------------------------------------------------------------------------------------------------
# Decoding
# ------------------------------------------------------------------------------------------------------

class Files:
    """Images read and decoded when asked for: what a DataLoader takes, and what its workers get."""

    def __init__(self, names, read, places, size):
        self.names, self.read, self.places, self.size = names, read, places, size

    def __len__(self):
        return len(self.names)

    def load(self, i):
        """Image i as ((3, S, S) uint8, None), or (None, why it cannot be read)."""
        try:
            return decode(self.read(self.names[i]), self.size, self.places[i]), None
        except Exception as error:  # damaged files make Pillow raise almost anything
            return None, reason_of(error)

    def __getitem__(self, i):
        """Image i, or the next readable one, and the (name, reason) of those passed over."""
        skipped = []
        for j in range(i, i + len(self)):
            j %= len(self)
            pixels, reason = self.load(j)
            if reason is None:
                return pixels, skipped
            skipped.append((self.names[j], reason))
        raise nothing_readable(skipped)

    def load_all(self):
        """All of them, on all cores: (N, 3, S, S) uint8, zeros where skipped, [(name, reason)]."""
        pixels = torch.zeros(len(self), 3, self.size, self.size, dtype=torch.uint8)
        out = pixels.numpy()

        def load_some(rows):
            reasons = []
            for i in rows:
                square, reason = self.load(i)
                if reason is None:
                    out[i] = square
                else:
                    reasons.append((self.names[i], reason))
            return reasons

        pieces = [range(i, min(i + 64, len(self))) for i in range(0, len(self), 64)]
        skipped = []
        with ThreadPoolExecutor(os.cpu_count()) as pool, \
                tqdm(total=len(self), desc="images", disable=len(self) < QUIET_BELOW) as bar:
            for rows, reasons in zip(pieces, pool.map(load_some, pieces)):
                skipped += reasons
                bar.update(len(rows))
        if len(skipped) == len(self):
            raise nothing_readable(skipped)
        return pixels, skipped


def nothing_readable(skipped):
    name, reason = skipped[0]
    return DataError(f"none of the {len(skipped)} images can be read (the first, {name}: {reason}); "
                     "give a set with undamaged images")


def reason_of(error):
    """An exception as a few words on one line, the same in each run."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that Pillow reads"
    return " ".join(str(error).split()) or type(error).__name__


TURNS = {orientation: Image.Transpose[name] for orientation, name in enumerate(
    "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(), start=2)}


def decode(raw, size, place):
    """The bytes of an image file -> (3, size, size) uint8; place in [0, 1], the window's on the long side."""
    return resize(picture(raw, size), size, place)


def picture(raw, size):
    """The bytes of an image file -> upright RGB image, whole; a JPEG may be smaller than stored, but ≥ 2·size."""
    if not raw:
        raise ValueError("empty file")
    image = Image.open(io.BytesIO(raw), formats=FORMATS)
    short = min(image.size)
    image.draft(None, [2 * size * side // short for side in image.size])  # JPEG: at ½, ¼ or ⅛, still ≥ 2·size
    image.load()
    turn = TURNS.get(image.getexif().get(0x0112))  # EXIF orientation; after load, where a TIFF turns itself
    image = to_rgb(image)
    return image if turn is None else image.transpose(turn)


def to_rgb(image):
    """Any mode of Pillow's -> RGB. Transparent parts show grey; deep pixels keep their tones."""
    if image.mode[0] in "IF":  # 16 and 32 bits and floats, which `convert` would clip to white
        x = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        low, high = x.min(), x.max()
        tops = (1, 255, 65535) if image.mode == "F" else (65535,)
        if low >= 0 and high <= tops[-1]:  # otherwise no usual scale: the picture's own range
            low, high = 0, next(top for top in tops if high <= top)
        x = np.rint((x - low) * (255 / max(high - low, 1e-9)))
        return Image.fromarray(x.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ALPHA_BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def resize(image, size, place):
    """RGB image -> (3, size, size) uint8: the window is cut and scaled at once, however long the image."""
    width, height = image.size
    short = min(width, height)
    left, top = place * (width - short), place * (height - short)
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    return np.asarray(square).transpose(2, 0, 1)  # (3, S, S)


# ------------------------------------------------------------------------------------------------------
# CIFAR-10
# ------------------------------------------------------------------------------------------------------

def read_cifar10(split, size):
    """The official archive: records of one byte of label and 3·32·32 of pixels."""
    path = cache_folder() / CIFAR10_URL.split("/")[-1]
    if not path.exists():
        download(CIFAR10_URL, path)
    if md5_of(path) != CIFAR10_MD5:
        raise DataError(f"{path} is not what {CIFAR10_URL} serves (wrong checksum); delete it and run again")
    with tarfile.open(path) as tar:
        parts = {os.path.basename(m.name): tar.extractfile(m).read() for m in tar
                 if m.name.endswith((".bin", "batches.meta.txt"))}
    classes = parts.pop("batches.meta.txt").decode().split()
    chosen = sorted(name for name in parts if name.startswith("test") == (split == "test"))
    raw = b"".join(parts[name] for name in chosen)
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    if size != 32:
        squares = (Image.fromarray(x) for x in pixels.permute(0, 2, 3, 1).numpy())
        pixels = torch.from_numpy(np.stack([resize(x, size, 0.5) for x in squares]))
    return Images("cifar10", pixels, labels, classes)


def download(url, path):
    """`url` into `path`, whole and with the right checksum, or not at all. Raises DataError."""
    by_hand = f"download {url} yourself and put it at {path}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, replacing(path) as f, \
                tqdm(total=int(answer.headers.get("Content-Length") or 0), desc=path.name, unit="B",
                     unit_scale=True) as bar:
            while piece := answer.read(2**20):
                f.write(piece)
                bar.update(len(piece))
            f.flush()
            if md5_of(f.name) != CIFAR10_MD5:
                raise DataError(f"what {url} sent is damaged (wrong checksum); run again, or {by_hand}")
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"cifar10 cannot be downloaded ({reason_of(error)}); {by_hand}") from None


def md5_of(path):
    return hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
