"""Images: a folder, a list, an archive, a named set, or the built-in one.

`load_images(data, split, size)` takes what `--data` takes and returns one split, every image a square of
`size` pixels; `batches(images, batch)` is the endless, resumable stream that training reads, and
`in_order` the finite one that evaluation reads. `data` is one of

    a folder           images at any depth; the first folder below the split names the class
    a .txt file        image paths, one a line, relative ones counted from the file's own folder; a path may
                       lead into an archive, as pictures.tar/cats/1.jpg; a class may follow it
    a .csv file        with the header path,label,split or only path, or path and label; .tsv the same
    an archive         .zip, .tar, .tar.gz, .tar.bz2, .tar.xz of such a folder; no member is ever extracted
    shards             a folder or a list of .tar files, and no image beside them; the class of 000.jpg is what
                       000.cls says (WebDataset)
    cifar10            downloaded once, checked, then read from the cache folder
    shapes             ten kinds of drawn things made of parts, which part each pixel shows known

Which images are for training, and what their classes are, says `splits.py`.

The paper decodes each image anew for every view. Here an image is decoded once into one uint8 square, the
views are cut from it on the device (`augment.py`), and a set that is small enough stays in memory. A larger
one is streamed, and in each epoch the square is another window along the picture's long side.
"""

import contextlib
import functools
import io
import logging
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

import distributed
from augment import move
from support import shapes
from support.files import UserError, printable, read_bytes, reason_of
from support.find import EXTENSIONS, FORMATS, find_files
from support.splits import choose_splits

MAX_MEGAPIXELS = 178  # above which Pillow suspects that a small file shall fill the memory
MEMORY_LIMIT = 2 * 2**30  # ours: bytes of decoded pixels that may stay in memory; a larger set is streamed
QUITE_A_FEW = 64  # ours: training images shown where no test image can be
QUIET_BELOW = 2000  # ours: images; fewer are loaded before a progress bar could be read


@dataclass
class Images:
    """One split of N images, S×S. Pixels that do not fit in memory are None, and come from `files`."""

    name: str                   # what the user asked for
    pixels: torch.Tensor        # (N, 3, S, S) uint8, or None
    labels: torch.Tensor        # (N,) int64, or None when there are no classes
    classes: list               # label names, [] when there are none
    parts: torch.Tensor = None  # (N, S, S) uint8, part of each pixel, 0 the ground; only `shapes` knows it
    skipped: list = field(default_factory=list)  # (name, reason) of unreadable files; grows while streaming
    names: list = field(default_factory=list)    # N paths inside the folder or archive, [] for drawn ones
    files: object = None        # a `Files` when streamed
    sample: object = None       # of a streamed split: some of its images in memory, once `in_memory` was called
    notes: list = field(default_factory=list)  # lines to be said of the set

    def __len__(self):
        return len(self.files if self.pixels is None else self.pixels)

    def readable(self):
        """(N,) bool, False where a streamed file was skipped and its neighbour was read in its place."""
        broken = {name for name, _ in self.skipped}
        return torch.tensor([name not in broken for name in self.names] or [True] * len(self))


def load_images(data, split="train", size=64, seed=0, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """One split of `data` as `Images`, S = size.

    data: a path, "cifar10" or "shapes". split: "train" or "test". The short side of each image becomes
    `size`; along the long side a window is cut, in the centre for test, at a place drawn from `seed` for
    train. scale: the values of deep pictures that become 0 and 255, or what the set shows (`survey`). Files
    that cannot be read are left out and listed in `skipped`. Raises UserError.
    """
    assert split in ("train", "test"), f'split is {split!r}, and must be "train" or "test"'
    if not data:
        raise UserError("there is no --data: give a folder, an archive or a list of images, or one of: cifar10, shapes")
    if data == "shapes":
        pixels, labels, parts = shapes.draw_shapes(split, size, seed)
        return Images("shapes", pixels, labels, list(shapes.KINDS), parts)
    if data == "cifar10":
        from support.cifar10 import read_cifar10
        return Images("cifar10", *read_cifar10(split, size))
    names, read, given = find_files(data)
    try:
        splits, classes, notes = choose_splits(names, given)
    except ValueError as error:
        raise UserError(f"{data}: {error}") from None
    scale, seen = survey(names, read, scale, max_megapixels)
    rows, notes = splits[split], notes + seen
    if not rows:
        if names:
            raise UserError(f"{data}: {len(names)} images, of which none is in the {split} split")
        raise UserError(f"{data}: found no image; give a folder or an archive of .jpg, .png or other images")
    names = [name for name, _ in rows]
    number = {kind: i for i, kind in enumerate(classes)}
    labels = torch.tensor([number.get(kind, -1) for _, kind in rows]) if classes else None
    if classes and labels.min() < 0:  # a flat val/ beside a train/ of folders
        labels, notes = None, [*notes, f"the {split} split has images without a class, so none of it are labelled"]
    files = Files(names, read, size, seed if split == "train" else None, scale, max_megapixels)
    if len(files) * 3 * size * size > MEMORY_LIMIT:
        skipped = files[0][1]  # reads on to the first good image, so that a set without any fails here
        return Images(str(data), None, labels, classes, skipped=skipped, names=names, files=files, notes=notes)
    return decoded(Images(str(data), None, labels, classes, names=names, files=files, notes=notes))


def decoded(images):
    """A streamed split -> the same in memory, without what cannot be read."""
    pixels, skipped = images.files.load_all()
    labels, names, broken = images.labels, images.names, dict(skipped)
    if skipped:
        good = torch.tensor([name not in broken for name in names])
        pixels, labels = pixels[good], labels[good] if labels is not None else None
        names = [name for name in names if name not in broken]
    return replace(images, pixels=pixels, labels=labels, names=names, skipped=skipped, files=None)


def in_memory(images, n, size):
    """The split, or of a streamed one n images, or as many as memory takes, drawn once, kept as (n, 3, size, size)."""
    if images.pixels is None and images.sample is None:
        n = min(n, len(images), MEMORY_LIMIT // (3 * size * size))
        rows = np.sort(np.random.default_rng(0).choice(len(images), n, replace=False))
        names = [images.names[row] for row in rows]
        files = replace(images.files, names=names, size=size)
        labels = images.labels[rows] if images.labels is not None else None
        images.sample = decoded(replace(images, labels=labels, names=names, files=files))
        note_skipped(images, images.sample.skipped)
    return images if images.sample is None else images.sample


def for_pictures_alone(train, note):
    """A few training images without their labels, in the place of a test split."""
    names, files, pixels = train.names[:QUITE_A_FEW], train.files, train.pixels
    files = files and replace(files, names=names, seed=None)
    pixels = None if pixels is None else pixels[:QUITE_A_FEW]
    return Images(train.name, pixels, None, train.classes, names=names, files=files, notes=[note])


@functools.lru_cache(maxsize=1)
def load_splits(data, size, seed, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """The training and the test images at one size; what is to be known of them stands on the screen."""
    options = (size, seed, scale, max_megapixels)
    train = load_images(data, "train", *options)
    try:
        splits = [train, load_images(data, "test", *options)]
    except UserError as error:  # none is held out, or all of those are broken
        splits = [train, for_pictures_alone(train, f"no k-NN, and pca.png of training images ({error})")]
    if distributed.rank() > 0:
        return splits
    skipped = dict(pair for images in splits for pair in images.skipped)  # a file can be in both
    for name, reason in skipped.items():
        print(skipped_line(name, reason), file=sys.stderr)
    labels = f"{len(splits[0].classes)} classes" if splits[0].classes else "no labels"
    counts = f"{len(splits[0])} training and {len(splits[1])} test images"
    streamed = ", read as they are needed" * any(images.pixels is None for images in splits)
    print(f"{data}: {counts}, {labels}, {len(skipped)} broken files skipped{streamed}")
    for note in dict.fromkeys(note for images in splits for note in images.notes):
        print(f"{data}: {note}")
    return splits


# ---------------------------------------------------------------------------- batches


def batches(images, batch, seed=0, start=0, device="cpu", workers=None, shard=(0, 1)):
    """Endless (batch, 3, S, S) uint8 on `device`: batches number start, start + 1, ...

    Batch t depends on (seed, t) alone, so a resumed run sees what an unbroken one would have seen. With
    shard = (rank, world) it is the rank's part of a global batch of batch·world images.  workers: processes
    that decode a streamed set, one for each core if None, none if 0.
    """
    return serve(images, shuffled_rows(len(images), batch, seed, start, *shard), device, workers)


def in_order(images, batch, device="cpu", workers=None):
    """Every image once, in the order of `images.labels`: (≤ batch, 3, S, S) uint8 on `device`."""
    rows = np.arange(len(images))
    return serve(images, np.array_split(rows, rows[batch::batch]), device, workers)


def shuffled_rows(n, batch, seed, start, rank, world):
    """Endless (batch,) int64: consecutive pieces of epoch 0's permutation of n, epoch 1's, and so on.

    Image i of epoch e is number e·n + i, for in each epoch it may be seen otherwise.
    """
    epoch, order, step = -1, None, start
    while True:
        places = (step * world + rank) * batch + np.arange(batch)
        rows = np.empty(batch, dtype=np.int64)
        for e in range(places[0] // n, places[-1] // n + 1):  # several at an epoch's end, or if n < batch
            if e != epoch:
                epoch, order = e, np.random.default_rng((seed, e)).permutation(n)
            here = places // n == e
            rows[here] = e * n + order[places[here] % n]
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
            yield move(pixels[move(torch.from_numpy(r % len(pixels)), pixels.device)], device)
        return
    loader = torch.utils.data.DataLoader(
        images.files, batch_sampler=rows, num_workers=cores() if workers is None else workers, collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator())  # of its own: the global one must not depend on how images are read
    for pixels, skipped in loader:
        note_skipped(images, skipped)
        yield move(pixels, device)


def note_skipped(images, skipped):
    """Adds the (name, reason) of files that could not be read to the split's own, and names new ones on the screen."""
    for name, reason in dict.fromkeys(skipped):
        if (name, reason) not in images.skipped:
            images.skipped.append((name, reason))
            tqdm.write(skipped_line(name, reason), file=sys.stderr)


def skipped_line(name, reason):
    """What is said of a file that cannot be read, whatever its name holds."""
    return f"skipped {printable(str(name))}: {printable(reason)}"


def collate(items):
    """[((3, S, S), skipped)] of one batch -> (B, 3, S, S) uint8, one list of all that were skipped."""
    squares, skipped = zip(*items)
    return torch.from_numpy(np.stack(squares)), [entry for entries in skipped for entry in entries]


# ---------------------------------------------------------------------------- images read when asked for


@dataclass
class Files:
    """Images read and decoded when asked for: what a DataLoader takes, and what its workers get."""

    names: list            # N paths
    read: object           # a path -> the file's bytes
    size: int              # S
    seed: object           # of the windows along the long side, drawn anew in each epoch; None: the middle
    scale: object          # of deep pictures: the values that become 0 and 255, or None
    max_megapixels: int    # larger pictures are not decoded

    def __len__(self):
        return len(self.names)

    def load(self, i, epoch=0):
        """Image i as ((3, S, S) uint8, None), or (None, why it cannot be read)."""
        place = 0.5 if self.seed is None else windows(len(self), self.seed, epoch)[i]
        try:
            raw = self.read(self.names[i])
            return decode(raw, self.size, place, self.scale, self.max_megapixels), None
        except Exception as error:  # damaged files make Pillow raise almost anything
            return None, reason_of(error)

    def __getitem__(self, number):
        """Image i of epoch e, number e·N + i, or the next readable one; the (name, reason) of those passed over."""
        epoch, i = divmod(int(number), len(self))
        skipped = []
        for j in range(i, i + len(self)):
            j %= len(self)
            pixels, reason = self.load(j, epoch)
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
        with ThreadPoolExecutor(cores()) as pool, \
                tqdm(total=len(self), desc="images", disable=len(self) < QUIET_BELOW) as bar:
            for rows, reasons in zip(pieces, pool.map(load_some, pieces)):
                skipped += reasons
                bar.update(len(rows))
        if len(skipped) == len(self):
            raise nothing_readable(skipped)
        return pixels, skipped


@functools.lru_cache(maxsize=2)
def windows(n, seed, epoch):
    """(n,) in [0, 1]: where along the long side each image's window lies in an epoch."""
    return np.random.default_rng((seed, epoch, 1)).random(n)  # (seed, epoch) alone draws the order


def cores():
    """How many cores this process may use: its share of a machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def nothing_readable(skipped):
    """The error for a set of which every file was skipped."""
    name, reason = skipped[0]
    return UserError(f"none of the {len(skipped)} images can be read (the first, {name}: {reason}); "
                     "give a set with undamaged images")


# ---------------------------------------------------------------------------- whole images, for pictures


def read_images(paths, size, patch, keep_aspect, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """Files and folders -> (3, H, W) uint8 images, whole patches wide and high; broken files are named.

    The short side becomes `size`, rounded to whole patches; of the long side the middle, or with keep_aspect all.
    """
    size = whole_patches(size, patch)
    images, skipped, files = [], {}, []
    for path in paths:
        if Path(path).is_dir():
            names, read, _ = find_files(path)
            files += [(os.path.join(path, name), functools.partial(read, name)) for name in names]
        else:
            files.append((str(path), functools.partial(read_bytes, path)))
    reader = dict(files)
    scale, notes = survey([name for name, _ in files], lambda name: reader[name](), scale, max_megapixels)
    for note in notes:
        print(note, file=sys.stderr)
    for name, read in files:
        try:
            raw = read()
            images.append(resized(picture(raw, size, scale, max_megapixels), size, patch, keep_aspect))
        except Exception as error:  # Pillow raises every kind on a broken file
            skipped[name] = reason_of(error)
    if not images:
        name, reason = next(iter(skipped.items()), (paths[0], "an empty folder"))
        raise UserError(f"none of the images can be read (the first, {name}: {reason})")
    for name, reason in skipped.items():
        print(skipped_line(name, reason), file=sys.stderr)
    return images


ALPHA_BACKGROUND = (128, 128, 128)  # grey: on white a white drawing vanishes, on black a black one
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong with a file is said once, by us
Image.MAX_IMAGE_PIXELS = None  # Pillow's own guard looks before a JPEG is asked for at a fraction; ours after
USUAL_BITS = (8, 10, 12, 14, 16)  # of cameras, scanners and microscopes
NODATA = (-9999.0, -32768.0, float(np.finfo(np.float32).min))  # of maps and heights: no value, if the least one

# Formats that are not pictures to Pillow (it can only hand them to other software), and EPS, which it
# would open by running Ghostscript, a program interpreter, on whatever the file holds.




TIFF = (b"II*\0", b"MM\0*")  # how such a file begins
PHOTOMETRIC, SAMPLES, EXTRA = 262, 277, 338  # tags of a TIFF: what its channels are, how many, what those besides are
GDAL_NODATA = 42113  # tag of a TIFF: the value that is none

TURNS = {orientation: Image.Transpose[name] for orientation, name in enumerate(
    "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(), start=2)}


def decode(raw, size, place, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """The bytes of an image file -> (3, size, size) uint8; place in [0, 1], the window's on the long side."""
    return resize(picture(raw, size, scale, max_megapixels), size, place)


def picture(raw, size, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """The bytes of an image file -> upright RGB image, whole; a JPEG may be smaller than stored, but ≥ 2·size.

    scale: values of a deep picture that become 0 and 255; None: those that this picture alone suggests.
    """
    image = opened(raw)
    short = min(image.size)
    image.draft(None, [2 * size * side // short for side in image.size])  # JPEG: at ½, ¼ or ⅛, still ≥ 2·size
    if image.width * image.height > max_megapixels * 1e6:
        megapixels = math.ceil(image.width * image.height / 1e6)
        raise ValueError(f"{megapixels} megapixels, and the limit is {max_megapixels}; --max_megapixels raises it")
    image.load()
    turn = TURNS.get(image.getexif().get(0x0112))  # EXIF orientation; after load, where a TIFF turns itself
    image = to_rgb(image, scale)
    return image if turn is None else image.transpose(turn)


def opened(raw):
    """The bytes of an image file -> Pillow's image, of which nothing is decoded yet."""
    if not raw:
        raise ValueError("empty file")
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        if raw[:4] in TIFF:
            raise ValueError("a TIFF that Pillow does not read, as those of more than five channels") from None
        raise
    if image.format == "TIFF":
        check_channels(image.tag_v2)
    return image


def check_channels(tags):
    """ValueError where a TIFF has more channels than colours and a declared alpha: near-infrared is neither."""
    colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(tags.get(PHOTOMETRIC), 1)  # RGB, CMYK, YCbCr, Lab; grey or a palette
    channels, alpha = tags.get(SAMPLES, 1), sum(kind in (1, 2) for kind in tags.get(EXTRA, ()))
    if channels > colours + alpha:
        raise ValueError(f"{channels} channels, of which {colours} are colours; write the three to be seen as RGB")


def to_rgb(image, scale=None):
    """Any mode of Pillow's -> RGB. Transparent parts, and those without a value, show grey."""
    if is_deep(image):
        x = deep_values(image)
        low, high = scale or usual_scale(x[~np.isnan(x)])
        x = np.nan_to_num((x - low) / (high - low) * 255, nan=ALPHA_BACKGROUND[0])
        return Image.fromarray(np.rint(x.clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ALPHA_BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def is_deep(image):
    """Whether a picture has values of more than 8 bits, which Pillow's `convert` would clip to white."""
    return image.mode[0] in "IF"


def deep_values(image):
    """The values of a deep picture: (H, W) float64, NaN where there is none."""
    x = np.asarray(image).astype(np.float64)
    x[np.isinf(x)] = np.nan
    declared = image.tag_v2.get(GDAL_NODATA, "") if image.format == "TIFF" else ""
    with contextlib.suppress(ValueError):
        x[x == float(declared)] = np.nan
    if not np.isnan(x).all() and np.nanmin(x) in NODATA:
        x[x == np.nanmin(x)] = np.nan
    return x


def usual_scale(x):
    """Values (P,) of deep pictures -> (low, high): the range of the fewest usual bits that holds them.

    0 to 1 stays so; negative ones, fractions and larger ones have no usual range: all but 0.1 % at either end.
    """
    low, high = (x.min(), x.max()) if len(x) else (0, 1)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    bits = next((b for b in USUAL_BITS if high < 2**b), None)
    if low >= 0 and bits and (x == np.rint(x)).all():
        return 0.0, 2.0**bits - 1
    low, high = np.percentile(x, (0.1, 99.9))
    return float(low), float(high) if high > low else float(low) + 1


def resize(image, size, place):
    """RGB image -> (3, size, size) uint8: the window is cut and scaled at once, however long the image."""
    width, height = image.size
    short = min(width, height)
    left, top = place * (width - short), place * (height - short)
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    return np.asarray(square).transpose(2, 0, 1)  # (3, S, S)


def resized(image, size, patch, keep_aspect):
    """RGB image -> (3, H, W) uint8, its short side `size` and its long side as much or, kept, a multiple of patch."""
    short = min(image.size)
    width, height = (whole_patches(side * size / short, patch) if keep_aspect else size for side in image.size)
    factor = min(image.width / width, image.height / height)  # the box has the shape of the result
    left, top = (image.width - factor * width) / 2, (image.height - factor * height) / 2
    box = (left, top, left + factor * width, top + factor * height)
    square = np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    return torch.from_numpy(square.transpose(2, 0, 1).copy())


def whole_patches(size, patch_size):
    """The multiple of patch_size that is nearest to size, at least one patch."""
    return max(1, round(size / patch_size)) * patch_size


LOOKED_AT = 64  # ours: files; a set of 8 bits costs their headers
VALUES = 2**16  # ours: of each of them
SHALLOW = {".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif"}  # 8 bits to Pillow
DEEP = tuple(EXTENSIONS - SHALLOW)


def survey(names, read, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """Names and a function to a file's bytes -> (scale or None, lines to be said).

    scale: (low, high) of deep pictures as asked; otherwise the usual range of what files all over the set hold.
    """
    names = [name for name in names if name.lower().endswith(DEEP)]
    values, paged = [], 0
    some = [names[i] for i in np.linspace(0, len(names) - 1, min(LOOKED_AT, len(names))).astype(int)]
    for name in some:
        try:
            image = opened(read(name))
            paged += image.format == "TIFF" and image.n_frames > 1
            if is_deep(image) and image.width * image.height <= max_megapixels * 1e6:
                x = deep_values(image).ravel()
                x = x[~np.isnan(x)]
                if len(x) > VALUES:  # the ends are exact, for bits; what lies between, for percentiles, a sample
                    x = np.concatenate([[x.min(), x.max()], x[:: len(x) // VALUES]])
                values.append(x)
        except Exception:  # Pillow raises every kind on a broken file, which is named when it is read
            continue
    notes = [f"{paged} of {len(some)} files looked at have several pages, of which the first is read"] if paged else []
    if values:
        scale = scale or usual_scale(np.concatenate(values))
        notes += [f"deep pictures, their values {scale[0]:g} to {scale[1]:g} shown as 0 to 255 (--scale LOW HIGH)"]
    return scale, notes
