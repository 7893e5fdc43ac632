"""What a person looks at: the curves of a run, the images that a curation selected, the matches of two."""

import csv
import math

import numpy as np
from einops import rearrange
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from PIL import Image, ImageOps

from support.files import write_safely
from support.images import MAX_MEGAPIXELS, decode

PAIRS_PER_ROW = 4  # image and colours side by side, four times in a row
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


MEASURES = {  # of an ablation: name, in words, times what
    "knn_20": ("k-NN, %", 100), "linear": ("linear, %", 100), "iou": ("foreground IoU", 1),
    "agreement": ("part agreement", 1), "tflop": ("TFLOP", 1),
}  # fmt: skip


def by_arm(rows, arms):
    """The rows of an ablation -> {arm: {measure: its values, one a seed}}, in the order of `arms`."""
    found = {arm: [row for row in rows if row["arm"] == arm] for arm in arms}
    measures = [name for name in MEASURES if any(name in row for row in rows)]
    return {arm: {m: [MEASURES[m][1] * row[m] for row in some if m in row] for m in measures}
            for arm, some in found.items() if some}  # fmt: skip


def ablation_table(rows, arms):
    """Markdown: a line for each arm, with the mean of its seeds and from the least to the most."""

    def cell(values):
        digits = 1 if max(values) > 1.5 else 2
        mean, *ends = (f"{v:.{digits}f}" for v in (sum(values) / len(values), min(values), max(values)))
        return mean if len(values) == 1 else f"{mean} ({ends[0]} to {ends[1]})"

    found = by_arm(rows, arms)
    measures = list(next(iter(found.values())))
    lines = [["arm", "seeds", *(MEASURES[m][0] for m in measures)], ["---"] * (2 + len(measures))]
    for arm, values in found.items():
        seeds = max(map(len, values.values()))
        lines.append([arm, str(seeds), *(cell(values[m]) if values[m] else "" for m in measures)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def draw_ablation(rows, arms, path):
    """A PNG with a panel for each measure: a dot for each seed, a line at the mean."""
    found = by_arm(rows, arms)
    measures = [m for m in next(iter(found.values())) if m != "tflop"] or ["tflop"]  # without labels and parts
    figure = Figure(figsize=(1.5 + 2.6 * len(measures), 1 + 0.3 * len(found)), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for y, values in enumerate(found[arm][measure] for arm in found):
            axes.plot(values, [y] * len(values), "o", color="tab:blue", alpha=0.5)
            if values:
                axes.plot([sum(values) / len(values)], [y], "|", color="black", markersize=14)
        axes.set(title=MEASURES[measure][0], yticks=range(len(found)), yticklabels=list(found))
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
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


def draw_pca(images, colours, path, columns=PAIRS_PER_ROW, raw=False):
    """A PNG of each image beside the colours of its patches, written whole or not at all.

    Colours are interpolated between the middles of patches, for the eye; raw: each patch as it is.

    images: I of (3, H, W) uint8, or None where a place stays empty. colours: I of (h, w, 3) in [0, 1], drawn over the
    same area as the image. columns: pairs in a row.
    """
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    shapes = [image.shape for image in images if image is not None]
    height = 1.6 * max(h / w for _, h, w in shapes)  # inches, of a picture 1.6 wide
    # Figure rather than pyplot, which keeps every figure of the process and picks a window system.
    figure = Figure(figsize=(3.4 * columns, (height + 0.1) * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, 2 * columns)).reshape(-1)
    for ax in axes:
        ax.axis("off")
    for i, (image, colour) in enumerate(zip(images, colours, strict=True)):
        if image is None:
            continue
        axes[2 * i].imshow(rearrange(image, "c h w -> h w c").cpu().numpy())
        extent = (0, image.shape[2], image.shape[1], 0)
        axes[2 * i + 1].imshow(colour.cpu().numpy(), extent=extent, interpolation="nearest" if raw else "bilinear")
    write_safely(path, lambda new: figure.savefig(new, dpi=150, format="png"))


def draw_attention(images, maps, path):
    """A PNG with a row for each image: itself, the mean of its maps, and each of them, from 0 to its own largest value.

    images: I of (3, H, W) uint8.  maps: I of (heads, h, w), at least 0.
    """
    columns = 2 + len(maps[0])
    height = 1.5 * max(image.shape[1] / image.shape[2] for image in images)  # inches, of a picture 1.5 wide
    figure = Figure(figsize=(1.6 * columns, (height + 0.2) * len(images)), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image, found in zip(axes, images, maps, strict=True):
        row[0].imshow(rearrange(image, "c h w -> h w c").cpu().numpy())
        for ax, a in zip(row[1:], [found.mean(0), *found]):
            ax.imshow(a.numpy(), vmin=0, cmap="viridis")
        for ax in row:
            ax.axis("off")
    for ax, title in zip(axes[0], ["", "mean", *(f"head {i}" for i in range(len(maps[0])))]):
        ax.set_title(title, fontsize=8)
    write_safely(path, lambda new: figure.savefig(new, dpi=150, format="png"))


def draw_matches(images, grids, pairs):
    """A figure of two images (3, H, W) uint8 side by side, and a line for each pair of patch numbers (P, 2)."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, image in zip(axes, images):
        ax.imshow(rearrange(image, "c h w -> h w c").cpu().numpy())
        ax.axis("off")
    for n, pair in enumerate(pairs.tolist()):
        ends = []
        for patch, image, (h, w) in zip(pair, images, grids):
            row, column = divmod(patch, w)
            ends.append(((column + 0.5) * image.shape[2] / w, (row + 0.5) * image.shape[1] / h))
        colour = colormaps["hsv"](n / len(pairs))
        figure.add_artist(ConnectionPatch(ends[0], ends[1], "data", "data", axesA=axes[0], axesB=axes[1],
                                          color=colour, linewidth=1.2))  # fmt: skip
        for ax, (x, y) in zip(axes, ends):
            ax.plot(x, y, "o", color=colour, markersize=3)
    return figure
