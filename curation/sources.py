"""The images that curate.py selects from and holds against: their names and bytes, thumbnails, and features."""

import io
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from augment import normalize
from curation import pca_hash
from curation.work_files import in_blocks
from distributed import print_first
from support.device import autocast
from support.files import UserError, reason_of
from support.find import find_files
from support.images import MAX_MEGAPIXELS, decode, picture, skipped_line, survey


def fits_a_list(name):
    """Whether a list of one path a line gives this path back."""
    return "\n" not in name and "\r" not in name and name == name.strip()


class Source:
    """The images of folders, archives and lists: their full names, and the bytes of each."""

    def __init__(self, places):
        found = [(place, *find_files(place)) for place in places]
        files = [(place, name, read) for place, names, read, _ in found for name in names]
        self.files = [file for file in files if fits_a_list(file[1])]
        for _, name, _ in set(files) - set(self.files):
            print_first(skipped_line(name, "a list cannot hold its name"), file=sys.stderr)
        if not self.files:
            raise UserError(f"no images in {', '.join(map(str, places))}")

    def __len__(self):
        return len(self.files)

    def name(self, i):
        """What a list for train.py holds: a path, that may lead into an archive."""
        place, name, _ = self.files[i]
        return name if os.path.isabs(name) else os.path.abspath(os.path.join(place, name))

    def names(self):
        """All names, in order."""
        return [self.name(i) for i in range(len(self))]

    def raw(self, i):
        _, name, read = self.files[i]
        return read(name)


def look_at(sources, args):
    """What `picture` needs to know of all sources together: the scale of deep ones, or None; the megapixels allowed."""
    files = {source.name(i): (source, i) for source in sources for i in range(len(source))}
    scale, notes = survey(list(files), lambda name: files[name][0].raw(files[name][1]), args.scale, args.max_megapixels)
    for note in notes:
        print_first(note)
    return scale, args.max_megapixels


def thumbnail(raw, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """The bytes of an image file -> a THUMBNAIL: grey levels and the number of pixels of the file."""
    width, height = Image.open(io.BytesIO(raw)).size
    grey = picture(raw, pca_hash.T, scale, max_megapixels).convert("L")
    grey = grey.resize((pca_hash.T, pca_hash.T), Image.Resampling.BILINEAR)
    return np.array((np.asarray(grey), width * height), dtype=pca_hash.THUMBNAIL)


def thumbnails(source, path, how):
    """Grey thumbnails and pixel counts (N,) of dtype THUMBNAIL; a picture that cannot be read has 0 pixels."""

    def compute(rows):
        block = np.zeros(len(rows), dtype=pca_hash.THUMBNAIL)
        for at, i in enumerate(rows):
            try:
                block[at] = thumbnail(source.raw(i), *how)
            except Exception:  # Pillow raises every kind; 0 pixels say it, and name_broken the file
                pass
        return block

    return in_blocks(path, len(source), (), pca_hash.THUMBNAIL, compute, "collect")


def name_broken(source, thumbs, how):
    """A line for each picture of which there is no thumbnail: it is tried once more, for the reason."""
    for i in np.flatnonzero(thumbs["pixels"] == 0):
        try:
            thumbnail(source.raw(i), *how)
            reason = "could not be read a moment ago"
        except Exception as error:  # as above
            reason = reason_of(error)
        print_first(skipped_line(source.name(i), reason), file=sys.stderr)


def embed(vit, source, chosen, size, path, name, how):
    """[CLS] features of length 1 (len(chosen), D) float32 of the chosen images; bf16 where there is a GPU."""
    device = next(vit.parameters()).device

    @torch.inference_mode()
    def compute(rows):
        pixels = np.stack([picture_or_grey(source, chosen[row], size, how) for row in rows])
        with autocast(device, device.type == "cuda"):
            features = vit(normalize(torch.from_numpy(pixels).to(device)))
        return F.normalize(features.float(), dim=1).cpu().numpy()

    return in_blocks(path, len(chosen), (vit.embed_dim,), np.float32, compute, name)


def picture_or_grey(source, i, size, how):
    """(3, size, size) uint8; grey if the picture breaks only here, past the thumbnail."""
    try:
        return decode(source.raw(i), size, 0.5, *how)
    except Exception:  # as above
        return np.full((3, size, size), 128, dtype=np.uint8)
