"""Results in files, so that a run that was killed continues where it stopped.

Each file is named by a digest of all that decides its content, except the bytes of the images.  So delete the work
folder after you change images and keep their names.  All ranks read the same files.
"""

import hashlib
import json
import shutil
import time

import numpy as np
from tqdm import tqdm

import distributed
from support.files import write_safely

ROWS = 64  # ours: images of one block, which is computed and written at once


def write_array(path, array):
    """Write a .npy file, whole or not at all."""
    write_safely(path, lambda new: np.save(open(new, "wb"), array))


def in_blocks(folder, n, compute, name):
    """Compute rows 0 to n in blocks, each in a file of its own; ranks take turns, and files that exist are kept.

    compute: range of rows -> array.  Returns the files, in order.
    """
    distributed.from_first_rank(lambda: folder.mkdir(exist_ok=True))
    files = [folder / f"{start}.npy" for start in range(0, n, ROWS)]
    mine = files[distributed.rank() :: distributed.world_size()]
    for path in tqdm(mine, name, leave=False, disable=distributed.rank() > 0):
        if not path.exists():
            start = int(path.stem)
            write_array(path, compute(range(start, min(start + ROWS, n))))
    distributed.wait()
    return files


def run_stage(work, name, paths, settings, compute):
    """Load the array of a stage from the folder `work`, or call compute(folder for its blocks) on all ranks.

    The array depends on the images at `paths` and on `settings` alone.
    """
    started = time.perf_counter()
    digest = hashlib.sha256(json.dumps([paths, settings]).encode()).hexdigest()[:12]
    path = work / f"{name.replace(' ', '-')}-{digest}.npy"
    if not distributed.from_first_rank(path.exists):
        array = compute(path.with_suffix(""))
        if distributed.rank() == 0:
            write_array(path, array)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        distributed.wait()
    array, seconds = np.load(path), time.perf_counter() - started
    distributed.print_first(f"{name}: {len(paths)} images in, {len(array)} out, {seconds:.1f} s")
    return array
