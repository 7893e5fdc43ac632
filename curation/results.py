"""What `curate.py` writes: lists, a table and a picture."""

import csv
import io

import numpy as np
from einops import rearrange
from PIL import Image, ImageOps

import distributed
from curation.neighbours import nearest
from curation.sources import read_or_skip
from support.files import write_safely
from support.images import decode

ROWS, COLUMNS = 8, 7  # curated images in the picture, and selected ones beside each
SIZE, MARGIN = 112, 4  # pixels: side of an image in the picture, and the frame around it


def write_text(path, text):
    """A text file, whole or not at all; its names may be no UTF-8."""
    write_safely(path, lambda new: new.write_text(text, encoding="utf-8", errors="surrogateescape", newline=""))


def write_reasons(out, paths, e, curated, e_curated, mode, decoding, seed):
    """Why each image was selected: the nearest curated image in OUT.csv, and a picture of some in OUT.png.

    paths (N), e (N, D): selected images and their features.  curated (C), e_curated (C, D): the curated ones.
    """
    cosines, closest = nearest(e, e_curated, 1, seed)
    shown = np.linspace(0, len(curated) - 1, min(len(curated), ROWS)).astype(int)
    found = nearest(e_curated[shown], e, COLUMNS, seed)[1]  # (rows, COLUMNS)
    if distributed.rank() == 0:
        table = io.StringIO()
        csv.writer(table).writerow(["path", "stage", "nearest_curated", "cosine"])
        csv.writer(table).writerows(
            (path, mode, curated[i], f"{c:.6f}") for path, [i], [c] in zip(paths, closest, cosines))
        write_text(out.with_suffix(".csv"), table.getvalue())
        rows = [[curated[c], *(paths[i] for i in ids)] for c, ids in zip(shown, found)]
        draw_selected(rows, out.with_suffix(".png"), decoding)


def draw_selected(rows, path, decoding):
    """A PNG: in each row a curated image with a black frame, and the selected images nearest to it.

    rows: lists of paths.  An image that cannot be read any more leaves its place empty.
    """
    step = SIZE + 2 * MARGIN
    sheet = Image.new("RGB", (step * max(map(len, rows)), step * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, name in enumerate(row):
            pixels = read_or_skip(name, lambda raw: decode(raw, SIZE, 0.5, *decoding))
            if pixels is not None:
                image = Image.fromarray(rearrange(pixels, "c h w -> h w c"))
                sheet.paste(ImageOps.expand(image, MARGIN, "white" if x else "black"), (step * x, step * y))
    write_safely(path, lambda new: sheet.save(new, format="png"))
