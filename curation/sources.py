"""The images that `curate.py` selects from and compares with: paths, hashes and features."""

import hashlib
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from augment import normalize
from curation.pca_hash import WINDOWS, S, T, windows
from curation.work_files import in_blocks, read_array
from support.device import autocast
from support.files import UserError, reason_of
from support.find import find_files, read_file
from support.images import decode, open_image, picture

THUMBNAIL = np.dtype([("grey", np.float32, (len(WINDOWS), S * S)), ("pixels", np.int64)])  # 0 pixels: not readable


def find_images(place):
    """A folder, archive or list -> absolute paths of its images; one may lead into an archive, as /a/b.tar/c.jpg."""
    place = os.path.expanduser(place)
    paths = [os.path.abspath(os.path.join(place, name)) for name in find_files(place)[0]]
    if wrong := next((path for path in paths if "\n" in path or "\r" in path), None):
        raise UserError(f"{wrong!r}: a list cannot hold a name with a line break; rename it")
    return paths


def read_or_skip(path, convert, otherwise):
    """convert(bytes of the image file); if that fails, `otherwise` and a line on the screen."""
    try:
        return convert(read_file(path))
    except Exception as error:  # damaged files make Pillow raise almost anything
        tqdm.write(f"skipped {path}: {reason_of(error)}", file=sys.stderr)
        return otherwise


def thumbnails(paths, scale, folder):
    """Files of THUMBNAILs, a block in each; an image that cannot be read has 0 pixels."""

    def thumbnail(raw):
        width, height = open_image(raw).size
        return np.array((windows(picture(raw, T, scale)), width * height), dtype=THUMBNAIL)

    def compute(block):
        return np.array([read_or_skip(path, thumbnail, np.zeros((), THUMBNAIL)) for path in block], dtype=THUMBNAIL)

    return in_blocks(folder, "PCA hash", paths, scale, compute)


def embed(vit, paths, size, scale, folder):
    """(N, D) float32 [CLS] features of length 1, or 0 where an image cannot be read; bf16 arithmetic on a GPU."""
    device, black = next(vit.parameters()).device, np.zeros((3, size, size), dtype=np.uint8)
    weights = [hashlib.sha256(p.detach().cpu().numpy().tobytes()).hexdigest() for p in vit.parameters()]

    @torch.inference_mode()
    def compute(block):
        squares = [read_or_skip(path, lambda raw: decode(raw, size, 0.5, scale), black) for path in block]
        readable = np.array([[square is not black] for square in squares])  # (n, 1)
        with autocast(device, "auto" if device.type == "cuda" else "none"):
            cls = vit(normalize(torch.from_numpy(np.stack(squares)).to(device)))
        return F.normalize(cls.float(), dim=1).cpu().numpy() * readable

    files = in_blocks(folder, "embed", paths, [scale, size, weights], compute)
    return np.concatenate([read_array(file) for file in files])
