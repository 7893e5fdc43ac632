"""Images: a folder, a list, an archive, a named set, or the built-in one.

`load_images(data, split, size)` takes what `--data` takes and returns one split, every image a square of
`size` pixels; `batches(images, batch)` is the endless, resumable stream that training reads, and
`in_order` the finite one that evaluation reads. `data` is one of

    a folder           images at any depth; the first folder below the split names the class
    a .txt file        image paths, one a line, relative ones counted from the file's own folder; a path may
                       lead into an archive, as pictures.tar/cats/1.jpg
    an archive         .zip, .tar, .tar.gz, .tar.bz2, .tar.xz of such a folder; no member is ever extracted
    cifar10            downloaded once, checked, then read from the cache folder
    shapes             ten kinds of drawn things made of parts, which part each pixel shows known

Splits are top folders `train` and `test` (or `val`). Without them every tenth image of each class is the
test split; without classes training takes everything, and test is every tenth of it, for pictures only.

The paper decodes each image anew for every view. Here an image is decoded once into one uint8 square, the
views are cut from it on the device (`augment.py`), and a set that is small enough stays in memory.
"""

import functools
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import distributed
from augment import move
from support import shapes
from support.cifar10 import read_cifar10
from support.files import DataError, find_files
from support.pictures import decode, picture, reason_of, resized, whole_patches

MEMORY_LIMIT = 2 * 2**30  # ours: bytes of decoded pixels that may stay in memory; a larger set is streamed
QUIET_BELOW = 2000  # ours: images; fewer are loaded before a progress bar could be read
TEST_EVERY = 10  # ours: where a set has no test split, one image in ten is held out


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

    def __len__(self):
        return len(self.files if self.pixels is None else self.pixels)

    def readable(self):
        """(N,) bool, False where a streamed file was skipped and its neighbour was read in its place."""
        broken = {name for name, _ in self.skipped}
        return torch.tensor([name not in broken for name in self.names] or [True] * len(self))


def load_images(data, split="train", size=64, seed=0):
    """One split of `data` as `Images`, S = size.

    data: a path, "cifar10" or "shapes". split: "train" or "test". The short side of each image becomes
    `size`; along the long side a window is cut, in the centre for test, at a place drawn from `seed` for
    train. Files that cannot be read are left out and listed in `skipped`. Raises DataError.
    """
    assert split in ("train", "test"), f'split is {split!r}, and must be "train" or "test"'
    if data == "shapes":
        pixels, labels, parts = shapes.draw_shapes(split, size, seed)
        return Images("shapes", pixels, labels, list(shapes.KINDS), parts)
    if data == "cifar10":
        return Images("cifar10", *read_cifar10(split, size))
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


@functools.lru_cache(maxsize=1)
def load_splits(data, size, seed):
    """The training and the test images at one size; broken files are named on the screen."""
    splits = [load_images(data, split, size, seed) for split in ("train", "test")]
    if distributed.rank() > 0:
        return splits
    skipped = dict(pair for images in splits for pair in images.skipped)  # a file can be in both
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    labels = f"{len(splits[0].classes)} classes" if splits[0].classes else "no labels"
    counts = f"{len(splits[0])} training and {len(splits[1])} test images"
    print(f"{data}: {counts}, {labels}, {len(skipped)} broken files skipped")
    return splits


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


# ---------------------------------------------------------------------------- batches


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
            yield move(pixels[move(torch.from_numpy(r), pixels.device)], device)
        return
    loader = torch.utils.data.DataLoader(
        images.files, batch_sampler=rows, num_workers=workers, collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator())  # of its own: the global one must not depend on how images are read
    for pixels, skipped in loader:
        images.skipped += [entry for entry in dict.fromkeys(skipped) if entry not in images.skipped]
        yield move(pixels, device)


def collate(items):
    """[((3, S, S), skipped)] of one batch -> (B, 3, S, S) uint8, one list of all that were skipped."""
    squares, skipped = zip(*items)
    return torch.from_numpy(np.stack(squares)), [entry for entries in skipped for entry in entries]


# ---------------------------------------------------------------------------- images read when asked for


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
    """The error for a set of which every file was skipped."""
    name, reason = skipped[0]
    return DataError(f"none of the {len(skipped)} images can be read (the first, {name}: {reason}); "
                     "give a set with undamaged images")


# ---------------------------------------------------------------------------- whole images, for pictures


def read_images(paths, size, patch, keep_aspect):
    """Files and folders -> (3, H, W) uint8 images, whole patches wide and high; broken files are named.

    The short side becomes `size`, rounded to whole patches; of the long side the middle, or with keep_aspect all.
    """
    size = whole_patches(size, patch)
    images, skipped = [], {}
    for path in paths:
        names, read = find_files(path) if Path(path).is_dir() else ([path], lambda name: Path(name).read_bytes())
        for name in names:
            try:
                images.append(resized(picture(read(name), size), size, patch, keep_aspect))
            except Exception as error:  # Pillow raises every kind on a broken file
                skipped[name] = reason_of(error)
    if not images:
        name, reason = next(iter(skipped.items()), (paths[0], "an empty folder"))
        raise DataError(f"none of the images can be read (the first, {name}: {reason})")
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    return images
