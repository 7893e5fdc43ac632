"""What `curate.py` writes: lists, a table and a picture."""

import csv
import io

import numpy as np
from einops import rearrange
from PIL import Image

import distributed
from curation.neighbours import nearest
from curation.sources import read_or_skip
from support.files import write_safely
from support.images import decode

ROWS, COLUMNS = 8, 7  # curated images in the picture, and selected ones beside each
SIZE = 112  # pixels: side of an image in the picture


def write_text(path, text):
    """A text file, whole or not at all; its names may be no UTF-8."""
    write_safely(path, lambda new: new.write_text(text, encoding="utf-8", errors="surrogateescape", newline=""))


def write_table(path, header, rows):
    """A .csv file."""
    table = io.StringIO()
    csv.writer(table).writerows([header, *rows])
    write_text(path, table.getvalue())


def write_reasons(out, paths, e, curated, e_curated, mode, scale):
    """Why each image was selected: the nearest curated image in OUT.csv, and a picture of some in OUT.png.

    paths (N), e (N, D): selected images and their features.  curated (C), e_curated (C, D): the curated ones.
    """
    cosines, closest = nearest(e, e_curated, 1)
    shown = np.linspace(0, len(curated) - 1, min(len(curated), ROWS)).astype(int)
    found = nearest(e_curated[shown], e, COLUMNS)[1]  # (rows, COLUMNS)
    if distributed.rank() == 0:
        rows = [(path, mode, curated[i], f"{c:.6f}") for path, [i], [c] in zip(paths, closest, cosines)]
        write_table(out.with_suffix(".csv"), ["path", "stage", "nearest_curated", "cosine"], rows)
        white = np.full((3, SIZE, SIZE), 255, dtype=np.uint8)  # for images that are gone
        drawn = [[curated[c], *(paths[i] for i in ids)] for c, ids in zip(shown, found)]
        images = [[read_or_skip(path, lambda raw: decode(raw, SIZE, 0.5, scale), white) for path in row]
                  for row in drawn]  # fmt: skip
        picture = Image.fromarray(rearrange(np.array(images), "y x c h w -> (y h) (x w) c"))
        write_safely(out.with_suffix(".png"), lambda new: picture.save(new, format="png"))
