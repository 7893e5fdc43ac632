"""Results in files, so that a run that was killed continues where it stopped.

Each file is named by a digest of all that decides its content, except the bytes of the images.  So delete the work
folder after you change images and keep their names.  All ranks read the same files.
"""

import hashlib
import io
import json
import sys

import numpy as np
from tqdm import tqdm

import distributed
from support.files import write_safely

ROWS = 64  # ours: images of one block, which is computed and written at once


def write_array(path, array):
    """Write a .npz file, whole or not at all.  It is a .zip, with a checksum; the array in it has the file's name."""
    file = io.BytesIO()
    np.savez(file, **{path.stem: array})
    write_safely(path, lambda new: new.write_bytes(file.getvalue()), shared=True)


def read_array(path):
    """The array of a file; None if there is no file, or a damaged one, which is then named."""
    try:
        with np.load(path) as file:
            return file[path.stem]
    except Exception:  # damage makes NumPy and zipfile raise almost anything
        if path.exists():
            tqdm.write(f"{path} is damaged; it is computed again", file=sys.stderr)
        return None


def in_blocks(folder, name, paths, settings, compute):
    """Compute a row for each image, in blocks with a file each; ranks take turns, and files that exist are kept.

    compute: paths of a block -> array, which depends on them and on `settings` alone.  Returns the files, in order.
    """
    blocks = [paths[start : start + ROWS] for start in range(0, len(paths), ROWS)]
    digests = [hashlib.sha256(json.dumps([name, block, settings]).encode()).hexdigest()[:16] for block in blocks]
    files = [folder / f"{name.replace(' ', '-')}-{digest}.npz" for digest in digests]
    mine = list(zip(files, blocks))[distributed.rank() :: distributed.world_size()]
    for path, block in tqdm(mine, name, leave=False, disable=distributed.rank() > 0):
        if read_array(path) is None:
            write_array(path, compute(block))
    distributed.gather(None)  # wait until all files are there
    return files
