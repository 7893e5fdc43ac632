"""What a person looks at: the curves of a run, the images that a curation selected."""

import csv
import math

from einops import rearrange
from matplotlib.figure import Figure

from support.checkpoint import write_safely
from support.pictures import decode

SHOWN_SIZE = 112  # pixels, of an image among the selected ones


def draw_curves(rows, recipe, path):
    """curves.png: losses beside ln K, the collapse meter, and k-NN over the steps."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = {
        "losses": ("dino", "ibot"),
        "collapse meter": ("entropy_image", "entropy_mean", "cosine"),
        "k-NN accuracy of the teacher": ("knn_20", "knn_200"),
    }
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-" if "knn" in name else "-", label=name)
        if title == "losses":
            axes.axhline(math.log(recipe.n_prototypes), color="grey", linestyle=":", label="ln K (uniform)")
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend()
    write_safely(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def write_selected(path, paths, mode, near, cosines):
    """A line for each selected image: its path, the retrieval that chose it, the nearest curated image, the cosine."""

    def write(new):
        with open(new, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "stage", "nearest_curated", "cosine"])
            writer.writerows((p, mode, n, f"{c:.6f}") for p, n, c in zip(paths, near, cosines))

    write_safely(path, write)


def draw_selected(rows, path):
    """A PNG: in each row a curated image, framed, and the selected ones nearest to it.  rows: bytes of image files."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.2 * columns, 1.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for line, files in zip(axes, rows):
        for ax, raw in zip(line, files):
            ax.imshow(rearrange(decode(raw, SHOWN_SIZE, 0.5), "c h w -> h w c"))
        line[0].axis("on")
        line[0].set(xticks=[], yticks=[])
    write_safely(path, lambda new: figure.savefig(new, dpi=100, format="png"))
