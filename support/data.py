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

import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import distributed
from augment import move
from support import shapes
from support.cifar10 import read_cifar10
from support.files import DataError, find_files, plain, read_bytes
from support.pictures import MAX_MEGAPIXELS, decode, picture, reason_of, resized, whole_patches
from support.splits import choose_splits
from support.survey import survey

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
    that cannot be read are left out and listed in `skipped`. Raises DataError.
    """
    assert split in ("train", "test"), f'split is {split!r}, and must be "train" or "test"'
    if not data:
        raise DataError("there is no --data: give a folder, an archive or a list of images, or one of: cifar10, shapes")
    if data == "shapes":
        pixels, labels, parts = shapes.draw_shapes(split, size, seed)
        return Images("shapes", pixels, labels, list(shapes.KINDS), parts)
    if data == "cifar10":
        return Images("cifar10", *read_cifar10(split, size))
    names, read, given = find_files(data)
    try:
        splits, classes, notes = choose_splits(names, given)
    except ValueError as error:
        raise DataError(f"{data}: {error}") from None
    scale, seen = survey(names, read, scale, max_megapixels)
    rows, notes = splits[split], notes + seen
    if not rows:
        if names:
            raise DataError(f"{data}: {len(names)} images, of which none is in the {split} split")
        raise DataError(f"{data}: found no image; give a folder or an archive of .jpg, .png or other images")
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
    except DataError as error:  # none is held out, or all of those are broken
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
    return f"skipped {plain(str(name))}: {plain(reason)}"


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
    return DataError(f"none of the {len(skipped)} images can be read (the first, {name}: {reason}); "
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
        raise DataError(f"none of the images can be read (the first, {name}: {reason})")
    for name, reason in skipped.items():
        print(skipped_line(name, reason), file=sys.stderr)
    return images
