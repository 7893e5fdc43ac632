"""The images that `curate.py` selects from and compares with: paths, hashes and features."""

import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from augment import normalize
from curation.pca_hash import T
from curation.work_files import in_blocks
from support.device import autocast
from support.files import UserError, reason_of
from support.find import find_files, read_file
from support.images import decode, open_image, picture, skipped_line

THUMBNAIL = np.dtype([("grey", np.uint8, (T, T)), ("pixels", np.int64)])  # 0 pixels: not readable


def find_images(place):
    """A folder, archive or list -> absolute paths of its images; one may lead into an archive, as /a/b.tar/c.jpg."""
    place = os.path.expanduser(place)
    paths = [os.path.abspath(os.path.join(place, name)) for name in find_files(place)[0]]
    paths = [path for path in paths if "\n" not in path and "\r" not in path]  # a list cannot hold other names
    if not paths:
        raise UserError(f"no images in {place}")
    return paths


def read_or_skip(path, convert, otherwise=None):
    """convert(bytes of the image file); if that fails, `otherwise` and a line on the screen."""
    try:
        return convert(read_file(path))
    except Exception as error:  # damaged files make Pillow raise almost anything
        tqdm.write(skipped_line(path, reason_of(error)), file=sys.stderr)
        return otherwise


def thumbnails(paths, decoding, folder):
    """Files of THUMBNAILs, a block in each; an image that cannot be read has 0 pixels."""

    def thumbnail(raw):
        width, height = open_image(raw).size
        grey = picture(raw, T, *decoding).convert("L").resize((T, T), Image.Resampling.BILINEAR)
        return np.array((np.asarray(grey), width * height), dtype=THUMBNAIL)

    def compute(rows):
        return np.array([read_or_skip(paths[i], thumbnail, np.zeros((), THUMBNAIL)) for i in rows], dtype=THUMBNAIL)

    return in_blocks(folder, len(paths), compute, "thumbnails")


def embed(vit, paths, size, decoding, folder):
    """(N, D) float32 [CLS] features of length 1, or 0 where an image cannot be read; bf16 arithmetic on a GPU."""
    device = next(vit.parameters()).device

    @torch.inference_mode()
    def compute(rows):
        features = np.zeros((len(rows), vit.embed_dim), dtype=np.float32)
        squares = [read_or_skip(paths[i], lambda raw: decode(raw, size, 0.5, *decoding)) for i in rows]
        good = [place for place, square in enumerate(squares) if square is not None]
        if good:
            x = normalize(torch.from_numpy(np.stack([squares[place] for place in good])).to(device))
            with autocast(device, device.type == "cuda"):
                cls = vit(x)
            features[good] = F.normalize(cls.float(), dim=1).cpu().numpy()
        return features

    return np.concatenate([np.load(file) for file in in_blocks(folder, len(paths), compute, "embed")])
