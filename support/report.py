"""What a person looks at: the curves of a run, the images that a curation selected."""

import csv
import math

from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from support.files import write_safely
from support.images import MAX_MEGAPIXELS, decode

SHOWN_SIZE, MARGIN = 112, 4  # pixels, of an image among the selected ones, and around it


def draw_curves(rows, recipe, path):
    """curves.png: losses beside ln K and the collapse meter over the steps, k-NN over the arithmetic that they took."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    knn = sorted({name for row in rows for name in row if name.startswith("knn_")}, key=len)
    panels = {
        "losses": ("dino", "ibot"),
        "collapse meter": ("entropy_image", "entropy_mean", "cosine"),
        "k-NN accuracy of the teacher": knn,
    }
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        x, unit = ("training_flops", 1e12) if names is knn else ("step", 1)  # so runs of different shape compare
        for name in names:
            points = [(row[x] / unit, row[name]) for row in rows if name in row and x in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-" if "knn" in name else "-", label=name)
        if title == "losses":
            axes.axhline(math.log(recipe.n_prototypes), color="grey", linestyle=":", label="ln K (uniform)")
        axes.set(title=title, xlabel="TFLOP of training" if names is knn else "step")
        if axes.lines:
            axes.legend()
    write_safely(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def scores_in_words(scores):
    """The scores of an evaluation, for its line."""
    words = ["no labels"]
    knn = [f"{value:.1%} (k = {name[4:]})" for name, value in scores.items() if name.startswith("knn_")]
    if knn:
        words = [f"k-NN {', '.join(knn)}"]
    if "iou" in scores:
        words += [f"foreground IoU {scores['iou']:.2f}"]
        words += [f"part agreement {scores['agreement']:.2f} (by chance {scores['agreement_chance']:.2f})"]
    return ", ".join(words)


def write_selected(path, paths, mode, near, cosines):
    """A line for each selected image: its path, the retrieval that chose it, the nearest curated image, the cosine."""

    def write(new):
        with open(new, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "stage", "nearest_curated", "cosine"])
            writer.writerows((p, mode, n, f"{c:.6f}") for p, n, c in zip(paths, near, cosines))

    write_safely(path, write)


def draw_selected(rows, path, scale=None, max_megapixels=MAX_MEGAPIXELS):
    """A PNG: in each row a curated image, framed, and the selected ones nearest to it.  rows: bytes of image files."""
    step = SHOWN_SIZE + 2 * MARGIN
    sheet = Image.new("RGB", (step * max(map(len, rows)), step * len(rows)), "white")
    for y, files in enumerate(rows):
        for x, raw in enumerate(files):
            try:
                pixels = decode(raw, SHOWN_SIZE, 0.5, scale, max_megapixels)
            except Exception:  # it was whole when it was chosen, or in the size that was asked for
                continue
            image = Image.fromarray(rearrange(pixels, "c h w -> h w c"))
            sheet.paste(ImageOps.expand(image, MARGIN, "white" if x else "black"), (step * x, step * y))
    write_safely(path, lambda new: sheet.save(new, format="png"))
