"""Images of a folder, a list, an archive or a built-in dataset, decoded to uint8 squares.

`load_splits` returns both splits, `batches` the endless stream of training, `in_order` the single pass of evaluation.
An image is decoded once in a run, to its centre square.  A split above MEMORY_LIMIT is streamed: training then decodes
another random square of each image in each epoch.  The official code decodes every image again in each epoch.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import logging
import os
import sys
import warnings
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

import distributed
from augment import move
from support import shapes
from support.cifar10 import read_cifar10
from support.files import UserError, reason_of, say_once
from support.find import FORMATS, find_files, read_file
from support.splits import choose_splits, unwrapped

MEMORY_LIMIT = 2 * 2**30  # ours: bytes of decoded pixels in memory; a larger dataset is streamed
SAMPLED_FILES, SAMPLED_VALUES = 64, 2**16  # ours: files of a dataset, values of a file: for the intensity range
PERCENTILES = (0.1, 99.9)  # ours: these percentiles of the sampled values become black and white
GREY = 128  # for transparent pixels and missing values: white would hide white drawings, black would hide black ones
logging.getLogger("PIL").addHandler(logging.NullHandler())  # broken files are reported once, here
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # above 89 MP; above 179 MP Pillow refuses


@dataclass
class Images:
    """One split of N images, S×S: in memory as `pixels`, or streamed from files, as a DataLoader's dataset."""

    pixels: torch.Tensor        # (N, 3, S, S) uint8, or None
    labels: torch.Tensor        # (N,) int64, or None without classes
    classes: list               # class names, [] without classes
    parts: torch.Tensor = None  # (N, S, S) uint8, the part of each pixel, 0 for the background; only of `shapes`
    names: list = ()            # N paths in the folder or archive; () for built-in datasets
    read: object = None         # function from a path to the file's bytes
    size: int = 0               # S
    seed: object = None         # of the random squares of streamed training; None: the centre
    scale: tuple = None         # intensity range, see `picture`
    skipped: dict = field(default_factory=dict)  # {name: reason} of broken files, of both splits; grows while streaming
    digest: str = ""            # of the names, wherever the set lies, and their classes; "" for built-in datasets
    sample: object = None       # the result of `in_memory`

    def __len__(self):
        return len(self.names if self.pixels is None else self.pixels)

    def readable(self):
        """(N,) bool, False for each broken file of a streamed split: it was replaced by the next readable image."""
        return torch.tensor([name not in self.skipped for name in self.names] or [True] * len(self))

    def load(self, number):
        """Image i, of number epoch·N + i, as ((3, S, S) uint8, None), or (None, why it cannot be read)."""
        place = 0.5 if self.seed is None else np.random.default_rng((self.seed, number)).random()
        try:
            return decode(self.read(self.names[number % len(self.names)]), self.size, place, self.scale), None
        except Exception as error:  # broken files make Pillow raise almost anything
            return None, reason_of(error)

    def __getitem__(self, numbers):
        """A batch (B, 3, S, S) uint8, or None if every file is broken; and the broken files, {name: reason}."""
        squares, skipped, n = [], {}, len(self)
        for first in numbers:
            for number in range(first, first + n):  # the next readable image replaces a broken one
                square, reason = self.load(number)
                if reason is None:
                    squares.append(square)
                    break
                skipped[self.names[number % n]] = reason
            else:
                return None, skipped
        return torch.from_numpy(np.stack(squares)), skipped


def load_images(data, split="train", size=64, seed=0, scale=None, skipped=None, labels="auto"):
    """One split of `data`, which is a path, "cifar10", or "shapes" drawn from `seed`; S = size.  Raises UserError."""
    if not data:
        raise UserError("there is no --data: give a folder, an archive or a list of images, or one of: cifar10, shapes")
    if labels == "none" and data in ("shapes", "cifar10"):
        raise UserError(f"{data} has classes; leave --labels none out")
    if data == "shapes":
        pixels, labels, parts = shapes.draw_shapes(split, size, seed)
        return Images(pixels, labels, list(shapes.KINDS), parts)
    if data == "cifar10":
        pixels, labels, classes = read_cifar10(split)
        if size != pixels.shape[-1]:
            squares = map(Image.fromarray, pixels.permute(0, 2, 3, 1).numpy())
            pixels = torch.from_numpy(np.stack([resize(square, size, size) for square in squares]))
        return Images(pixels, labels, classes)
    found, read, given = find_files(data)
    splits, classes = choose_splits(found, given, data, labels)
    if not splits[split]:
        raise UserError(f"{data}: none of the {len(found)} images is in the {split} split")
    scale = estimate_scale(found, read, scale)
    names, kinds = map(list, zip(*splits[split]))
    number = {kind: i for i, kind in enumerate(classes)}
    labels = torch.tensor([number.get(kind, -1) for kind in kinds]) if classes else None
    if classes and labels.min() < 0:  # a flat val/ beside a train/ with class folders
        say_once(f"{data}: the {split} split has images without a class, so it has no labels")
        labels = None
    skipped = {} if skipped is None else skipped  # of the other split
    digest = hashlib.sha256(repr((kinds, unwrapped([name.split("/") for name in names]))).encode()).hexdigest()
    images = Images(None, labels, classes, None, names, read, size, None, scale, skipped, digest)
    if len(images) * 3 * size * size <= MEMORY_LIMIT:
        return decode_rows(images, range(len(images)))
    next(in_order(images, 1, workers=0))  # raises UserError if no image is readable
    return images


def decode_rows(images, rows):
    """The images of a streamed split with these numbers, decoded into memory, without the broken ones."""
    pixels = torch.empty(len(rows), 3, images.size, images.size, dtype=torch.uint8)
    kept, skipped = [], {}
    with ThreadPool(count_cores()) as pool:
        loaded = pool.imap(images.load, rows, chunksize=64)
        for i, (square, reason) in zip(rows, tqdm(loaded, "images", len(rows), delay=1)):
            if reason:
                skipped[images.names[i]] = reason
            else:
                pixels[len(kept)] = torch.from_numpy(square)
                kept.append(i)
    add_skipped(images.skipped, skipped, not kept, distributed.rank() == 0)  # all ranks decode the same images
    labels = None if images.labels is None else images.labels[kept]
    return replace(images, pixels=pixels[: len(kept)], labels=labels, names=[images.names[i] for i in kept])


def in_memory(images, n, size):
    """The split; of a streamed one n random images, fewer if memory is short, the same ones in each call."""
    if images.pixels is not None:
        return images
    if images.sample is None:
        n = min(n, len(images), MEMORY_LIMIT // (3 * size * size))
        rows = sorted(np.random.default_rng(0).choice(len(images), n, replace=False).tolist())
        images.sample = decode_rows(replace(images, size=size), rows)
    return images.sample


@functools.lru_cache(maxsize=1)
def load_splits(data, size, seed, scale=None, labels="auto"):
    """The training and the test images at one size; prints what they are."""
    train = load_images(data, "train", size, seed, scale, None, labels)
    try:
        test = load_images(data, "test", size, seed, scale, train.skipped, labels)
    except UserError as error:  # none, or all of them broken
        say_once(f"{data}: no test images ({error}); training images stand in for them, without labels")
        test = replace(train, labels=None)
    labels = f"{len(train.classes)} classes" if train.classes else "no labels"
    streamed = ", streamed" if train.pixels is None or test.pixels is None else ""
    counts = f"{len(train)} training and {len(test)} test images, {labels}, {len(train.skipped)} broken files skipped"
    distributed.print_first(f"{data}: {counts}{streamed}")
    return [train, test]


def batches(images, batch, seed=0, start=0, device="cpu", workers=None, shard=(0, 1)):
    """Endless (batch, 3, S, S) uint8 on `device`: batches start, start + 1, ...; each depends on its number alone.

    shard: (rank, world), the rank's part of a global batch of batch·world images.
    workers: processes that decode a streamed split, one per core if None.
    """
    n = len(images)

    @functools.lru_cache(maxsize=4)
    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(n)

    def numbers():  # of image i in epoch e: e·N + i
        for step in itertools.count(start):
            places = np.arange(batch) + (step * shard[1] + shard[0]) * batch
            yield np.array([place - place % n + order(place // n)[place % n] for place in places])
    return serve(replace(images, seed=seed), numbers(), device, workers)


def in_order(images, batch, device="cpu", workers=None):
    """Every image once, in the order of `images.labels`: (≤ batch, 3, S, S) uint8 on `device`."""
    rows = np.arange(len(images))
    return serve(images, np.array_split(rows, rows[batch::batch]), device, workers)


def serve(images, rows, device, workers):
    """Yield the images of each array in `rows`, from memory, from the device's memory, or from files."""
    device = torch.device(device)
    if images.pixels is not None:
        pixels = images.pixels
        if device.type != "cuda" or pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4:
            pixels = pixels.to(device)  # once; then a batch costs one gather
        for r in rows:
            yield move(pixels[move(torch.from_numpy(r % len(pixels)), pixels.device)], device)
        return
    loader = torch.utils.data.DataLoader(
        images, batch_size=None, sampler=rows, num_workers=count_cores() if workers is None else workers,
        collate_fn=tuple, pin_memory=device.type == "cuda",
        generator=torch.Generator())  # its own, so that the global one does not depend on how images are loaded
    for pixels, skipped in loader:
        add_skipped(images.skipped, skipped, pixels is None)
        yield move(pixels, device)


def add_skipped(known, skipped, all_broken, say=True):
    """Add broken files, {name: reason}, to the known ones, and print the new ones; UserError if all were broken."""
    new = {name: reason for name, reason in skipped.items() if name not in known}
    known.update(new)
    if all_broken:
        name, reason = next(iter(skipped.items()))
        raise UserError(f"none of the {len(skipped)} images can be read (the first, {name}: {reason}); give others")
    for name, reason in new.items() if say else ():
        tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)


def count_cores():
    """The cores that this process may use: its share of the machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def read_images(paths, size, patch, keep_aspect=False, scale=None, most=None):
    """Files and folders -> list of (3, H, W) uint8, H and W multiples of `patch`; prints the broken files.

    The short side becomes `size`, rounded to whole patches.  The long side is cropped to it, or kept with keep_aspect.
    most: read only the first `most` images.
    """
    size, names, images, skipped = whole_patches(size, patch), [], [], {}
    for path in map(str, [paths] if isinstance(paths, (str, Path)) else paths):
        names += [os.path.join(path, name) for name in find_files(path)[0]] if os.path.isdir(path) else [path]
    names = list(dict.fromkeys(names))
    if most and len(names) > most:
        say_once(f"only the first {most} of {len(names)} images, up to {names[most - 1]}; name others to see those")
        names = names[:most]
    scale = estimate_scale(names, read_file, scale)
    for name in names:
        try:
            image = picture(read_file(name), size, scale)
            sides = [whole_patches(size * s / min(image.size), patch) if keep_aspect else size for s in image.size]
            images.append(torch.from_numpy(resize(image, *sides)))
        except Exception as error:  # broken files make Pillow raise almost anything
            skipped[name] = reason_of(error)
    add_skipped({}, skipped, not images)
    return images


def whole_patches(size, patch_size):
    """The multiple of patch_size nearest to size, at least one patch."""
    return max(1, round(size / patch_size)) * patch_size


def decode(raw, size, place, scale=None):
    """The bytes of an image file -> (3, size, size) uint8; place in [0, 1]: where on the long side it is cropped."""
    return resize(picture(raw, size, scale), size, size, place)


def resize(image, width, height, place=0.5):
    """RGB image -> (3, height, width) uint8: the largest window of that shape, at `place` in [0, 1], resized."""
    window = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, centering=(place, place))
    return np.asarray(window).transpose(2, 0, 1).copy()


def picture(raw, size, scale=None):
    """The bytes of an image file -> upright RGB image; a large JPEG is decoded smaller, but not below 2·size.

    scale: (low, high), the values that become 0 and 255 in grey images deeper than 8 bits; None: from this image alone.
    """
    image = open_image(raw)
    image.draft(None, (2 * size, 2 * size))  # JPEG: at ½, ¼ or ⅛ of its sides
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF; Pillow rotates before it writes the tags again
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":  # integers or floats, grey
        x = np.asarray(image).astype(np.float64)  # (H, W)
        if not scale:
            say_once("grey images of more than 8 bits: each gets its own range; --scale LOW HIGH gives all the same")
        low, high = scale or intensity_range(x)
        x = np.nan_to_num((x - low) / (high - low) * 255, nan=GREY, posinf=GREY, neginf=GREY)
        image = Image.fromarray(np.rint(x.clip(0, 255)).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (GREY, GREY, GREY)), image)
    return image.convert("RGB")


BITS = {  # of a colour in the file, for the formats that can have more than 8; Pillow's mode does not tell
    "AVIF": lambda image, raw: 10 if raw[raw.index(b"av1C") + 6] & 64 else 8,  # or 12
    "JPEG2000": lambda image, raw: raw[raw.index(b"\xff\x4f\xff\x51") + 42] % 128 + 1,
    "PNG": lambda image, raw: raw[raw.index(b"IHDR") + 12],
    "PPM": lambda image, raw: image.tile[0][3][1].bit_length() if type(image.tile[0][3]) is tuple else 8,
    "TIFF": lambda image, raw: max(image.tag_v2.get(258, (1,)))}


def open_image(raw):
    """The bytes of an image file -> Pillow's image, not decoded yet; ValueError if Pillow would change its values."""
    image = Image.open(io.BytesIO(raw), formats=FORMATS)
    bits = BITS[image.format](image, raw) if image.format in BITS else 8
    if image.format == "TIFF":  # Pillow would drop channels that are neither colour nor alpha, such as near-infrared
        photometric, channels, extra, sign = (image.tag_v2.get(tag) for tag in (262, 277, 338, 339))
        colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)  # RGB, CMYK, YCbCr, Lab; otherwise grey or a palette
        if (channels or 1) > colours + sum(kind in (1, 2) for kind in extra or ()):  # 1, 2: alpha
            raise ValueError(f"{channels} channels, but {colours} are colours; choose three and save them as RGB")
        if photometric == 0 and bits > 8 or (bits, sign) in ((8, (2,)), (32, (1,)), (32, None)):
            raise ValueError("Pillow misreads signed bytes, unsigned 32 bits and 0 as white; convert it to 16 bits")
    if bits > 8 and (image.mode[0] not in "IF" or image.format == "PPM" and bits < 16):  # those are stretched
        raise ValueError(f"{bits} bits a colour, and Pillow reads 8; convert it to 8 bits a colour")
    return image


def intensity_range(x):
    """(low, high) of the values of deep images, without NaN and infinity."""
    x = x[np.isfinite(x)]
    low, high = np.percentile(x, PERCENTILES).tolist() if len(x) else (0.0, 1.0)
    return low, high if high > low else low + 1


def estimate_scale(names, read, scale=None):
    """The intensity range of a dataset's deep images, from a sample of them: (low, high), or None without any."""
    names = [name for name in names if not name.lower().endswith((".jpg", ".jpeg"))]  # never deep
    values = []
    for i in np.linspace(0, len(names) - 1, min(SAMPLED_FILES, len(names))).astype(int):
        with contextlib.suppress(Exception):  # reported when the image is loaded
            image = open_image(read(names[i]))
            if image.mode[0] in "IF":
                x = np.asarray(image, dtype=np.float64).ravel()
                values.append(x[:: max(1, len(x) // SAMPLED_VALUES)])
    if values:
        scale = scale or intensity_range(np.concatenate(values))
        say_once(f"grey images deeper than 8 bits: {scale[0]:g} is black, {scale[1]:g} white (--scale LOW HIGH)")
    return scale
