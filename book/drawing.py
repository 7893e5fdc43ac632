"""How the book's pictures look: one width, one style, SVG in the page's own text colour."""

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

WIDTH = 4.5  # inches; letters are then as large as the text on a phone
BLUE, ORANGE, RED, GREY = "#3f86c6", "#d98324", "#d05050", "#8c8c8c"
LOOK = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "axes.titlepad": 5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "savefig.transparent": True,
}  # fmt: skip


def svg(draw, name):
    """The figure of draw() as SVG for a page, where black becomes the text's colour, and the sentence beside it."""
    with matplotlib.rc_context(LOOK | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of tensors as arrays
        with redirect_stderr(io.StringIO()):  # no progress bars
            figure, words = draw()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=100, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))  # ids must be unique on a page
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text).replace("#000000", "currentColor")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    return text.replace(size[0], f'role="img" style="max-width:{1.25 * float(size[1]):.0f}pt"', 1), words


def panels(rows, columns, height, **options):
    """A figure of the book's width and its axes, a list of lists."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def bare(axes, title=""):
    """Axes with a title only."""
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def matrix(axes, values, title, form, vmax):
    """A matrix as shades of blue with its numbers on them."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=vmax, aspect="auto")
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            axes.text(j, i, form.format(value), ha="center", va="center", color="#10233a")
    bare(axes, title)


def show(axes, picture, title=""):
    """Draw a picture (3, H, W)."""
    axes.imshow(rearrange(picture, "c h w -> h w c"))
    bare(axes, title)


def seeded(seed=0):
    """A random generator with this seed."""
    return torch.Generator().manual_seed(seed)


def things(n, size, kinds=None):
    """n pictures (n, 3, size, size) uint8 of different kinds."""
    names = kinds or list(shapes.KINDS)
    drawn = [shapes.draw(shapes.KINDS[names[i % len(names)]], 1, size, seeded(i))[0] for i in range(n)]
    return torch.cat(drawn)


def as_pixels(views):
    """Normalised views in [0, 1]."""
    return (views * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).clamp(0, 1)
