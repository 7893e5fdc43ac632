"""How the book's pictures look: one width, one style, SVG in the page's own text colour."""

import io
import re

import matplotlib
import torch
from einops import rearrange
from matplotlib.figure import Figure

from support import shapes

WIDTH = 4.5  # inches; letters are then as large as the text on a phone
BLUE, ORANGE, RED, GREY = "#3f86c6", "#d98324", "#d05050", "#8c8c8c"
LOOK = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "axes.titlepad": 5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "savefig.transparent": True,
}  # fmt: skip


def svg(draw):
    """The figure of draw() as SVG for a page, where black becomes the text's colour, and the sentence beside it."""
    buffer = io.StringIO()
    with matplotlib.rc_context(LOOK):
        figure, words = draw()
        matplotlib.rcParams["svg.hashsalt"] = str(words)  # figures of a page have different ids
        figure.savefig(buffer, format="svg", dpi=100, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r'(?s)<metadata>.*?</metadata>|<!--.*?-->| id="(image|[^"]+_\d).*?"', "", text[text.index("<svg") :])
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    text = text.replace(size[0], f'role="img" style="max-width:{1.25 * float(size[1]):.0f}pt"', 1)
    return text.replace("#000000", "currentColor"), words


def panels(rows, columns, height, **options):
    """A figure of the book's width and its axes, a list of lists."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def bare(axes, title=""):
    """Axes with a title only."""
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def show(axes, picture, title=""):
    """Draw a picture (3, H, W)."""
    axes.imshow(rearrange(picture, "c h w -> h w c"))
    bare(axes, title)


def seeded(seed=0):
    """A random generator with this seed."""
    return torch.Generator().manual_seed(seed)


def things(n, size):
    """The first n kinds of pictures, one of each (n, 3, size, size) uint8."""
    return torch.cat([shapes.draw(kind, 1, size, seeded(i))[0] for i, kind in enumerate([*shapes.KINDS.values()][:n])])
