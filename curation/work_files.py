"""Results in files, so that a run that was killed continues where it stopped.

Each file is named by a digest of all that decides its content, except the bytes of the images.  So delete the work
folder after you change images and keep their names.  All ranks read the same files.
"""

import hashlib
import json

import numpy as np
from tqdm import tqdm

import distributed
from support.files import write_safely

ROWS = 64  # ours: images of one block, which is computed and written at once


def write_array(path, array):
    """Write a .npy file, whole or not at all."""
    write_safely(path, lambda new: np.save(open(new, "wb"), array), shared=True)


def in_blocks(folder, name, paths, settings, compute):
    """Compute a row for each image, in blocks with a file each; ranks take turns, and files that exist are kept.

    compute: paths of a block -> array, which depends on them and on `settings` alone.  Returns the files, in order.
    """
    blocks = [paths[start : start + ROWS] for start in range(0, len(paths), ROWS)]
    digests = [hashlib.sha256(json.dumps([name, block, settings]).encode()).hexdigest()[:16] for block in blocks]
    files = [folder / f"{name.replace(' ', '-')}-{digest}.npy" for digest in digests]
    mine = list(zip(files, blocks))[distributed.rank() :: distributed.world_size()]
    for path, block in tqdm(mine, name, leave=False, disable=distributed.rank() > 0):
        if not path.exists():
            write_array(path, compute(block))
    distributed.gather(None)  # wait until all files are there
    return files
