"""Results that outlive a killed run: arrays in files, whole or known to be half, the same for all ranks.

A result's file is named by a digest of all that decides it (but not of the images' bytes: delete the folder after
changing pictures under their old names).  Small results are renamed into place when whole; large ones grow in a
mapped file, beside a second one that says which blocks are done, and so need no memory.
"""

import hashlib
import json
import time

import numpy as np
from tqdm import tqdm

import distributed
from support.files import write_safely

ROWS = 64  # of a growing file, that are computed and written at once


def digest(*things):
    """Twelve hex digits of anything that JSON can write."""
    return hashlib.sha256(json.dumps(things).encode()).hexdigest()[:12]


def is_whole(path, shape=None, dtype=None):
    """Whether there is a .npy file that is not cut short, of this shape and type where they are given."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, EOFError, ValueError):
        return False
    return (shape is None or found.shape == shape) and (dtype is None or found.dtype == dtype)


def once(path, compute):
    """The array that compute() gives on every rank alike, from the file if there is one."""
    if not distributed.from_first_rank(lambda: is_whole(path)):
        result = compute()
        if distributed.rank() == 0:
            write_safely(path, lambda new: np.save(open(new, "wb"), result))
        distributed.wait()
    return np.load(path)


def mapped(path, shape, dtype):
    """A .npy file of this shape, mapped for reading and writing; a new one is zero."""
    if distributed.rank() == 0 and not is_whole(path, shape, dtype):
        write_safely(path, lambda new: np.lib.format.open_memmap(new, "w+", dtype, shape).flush())
    distributed.wait()
    return np.lib.format.open_memmap(path, "r+")


def in_blocks(path, n, shape, dtype, compute, name):
    """Fill a mapped array (n, *shape) with compute(range of rows), ROWS at a time, going on where it was.

    A second file holds a 1 for each block that is whole; ranks take turns, so a run may go on with other ranks.
    """
    marks = path.with_suffix(".done.npy")
    if distributed.rank() == 0 and not is_whole(path, (n, *shape), dtype):
        marks.unlink(missing_ok=True)  # of another file
    distributed.wait()
    out, done = mapped(path, (n, *shape), dtype), mapped(marks, (-(-n // ROWS),), np.uint8)
    mine = range(distributed.rank(), len(done), distributed.world_size())
    left = {block: range(block * ROWS, min((block + 1) * ROWS, n)) for block in mine if not done[block]}
    with tqdm(total=sum(map(len, left.values())), desc=name, unit="img", disable=distributed.rank() > 0) as bar:
        for block, rows in left.items():
            out[rows.start : rows.stop] = compute(rows)
            out.flush()
            done[block] = 1
            bar.update(len(rows))
    distributed.wait()
    return out


def rows_of(x, rows, path):
    """x[rows] as a mapped file, copied piece by piece."""

    def compute(out):
        for at in range(0, len(rows), 2**16):
            out[at : at + 2**16] = x[rows[at : at + 2**16]]
        out.flush()

    shape = (len(rows), x.shape[1])
    if not distributed.from_first_rank(lambda: is_whole(path, shape, x.dtype)):
        distributed.from_first_rank(lambda: write_safely(
            path, lambda new: compute(np.lib.format.open_memmap(new, "w+", x.dtype, shape))))  # fmt: skip
    return np.load(path, mmap_mode="r")


class Stages:
    """The stages so far: the folder of their results, a digest of all that decided them, and a table of them."""

    def __init__(self, folder, key):
        self.folder, self.key, self.table = folder, key, []

    def decided_by(self, *things):
        """What the results from here on depend on, too."""
        self.key = digest(self.key, *things)

    def file(self, name):
        """Where a result is kept."""
        return self.folder / f"{name}-{self.key}.npy"

    def run(self, name, before, compute):
        """compute(), and a line of the table: images before and after, seconds."""
        started = time.perf_counter()
        result = compute()
        self.table.append((name, before, len(result), time.perf_counter() - started))
        return result
