"""What the book's pictures are drawn with: one width, one look, SVG that takes the page's colours."""

import io
import re
import warnings
from contextlib import redirect_stderr

import matplotlib
import torch
from einops import rearrange
from matplotlib.figure import Figure

from augment import MEAN, STD
from support import shapes

WIDTH = 4.5  # inches, so that letters are as large as the text's on a phone
BLUE, ORANGE, GREEN, RED, GREY = "#3f86c6", "#d98324", "#3c9f60", "#d05050", "#8c8c8c"
LOOK = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "axes.titlepad": 5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "savefig.transparent": True,
}  # fmt: skip


def svg(draw, name):
    """draw() -> its figure as SVG, to stand in a page and take its colour for black, and the sentence that it gave."""
    with matplotlib.rc_context(LOOK | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tensors are not yet what NumPy will want of arrays
        with redirect_stderr(io.StringIO()):  # no progress bars
            figure = draw()
        figure, words = figure if isinstance(figure, tuple) else (figure, "")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=100, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text).replace("#000000", "currentColor")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    return text.replace(size[0], f'role="img" style="max-width:{1.25 * float(size[1]):.0f}pt"', 1), words


def panels(rows, columns, height, **options):
    """A figure of the book's width and its axes, a list of lists."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def bare(axes):
    """No ticks, no frame."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def matrix(axes, values, title="", form="{:.2f}", **look):
    """A matrix as shades of blue with its numbers on them."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=look.pop("vmax", 1.6 * float(values.max())), aspect="auto", **look)
    for (i, j), value in zip(((i, j) for i in range(len(values)) for j in range(values.shape[1])), values.flatten()):
        axes.text(j, i, form.format(float(value)), ha="center", va="center", color="#10233a")
    bare(axes)
    axes.set_title(title)


def seeded(seed=0):
    """A generator of random numbers of its own, the same each time."""
    return torch.Generator().manual_seed(seed)


def things(n, size, kinds=None):
    """n pictures (n, 3, size, size) uint8, each of a kind of its own."""
    names = kinds or list(shapes.KINDS)
    drawn = [shapes.draw(shapes.KINDS[names[i % len(names)]], 1, size, seeded(i))[0] for i in range(n)]
    return torch.cat(drawn)


def show(axes, picture):
    """Draw a picture (3, H, W)."""
    axes.imshow(rearrange(picture, "c h w -> h w c"))
    bare(axes)


def as_pixels(views):
    """Normalised views -> [0, 1]."""
    return (views * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).clamp(0, 1)
