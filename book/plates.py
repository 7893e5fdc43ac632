"""The book's pictures.  Each is drawn with the function that it shows; its docstring is its caption.

A plate takes the module of its page and what the training left (made: vit, images, losses).  It returns a matplotlib
figure and a sentence with numbers, which may be empty.
"""

import math

import torch
from einops import rearrange
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch.nn import functional as F

from augment import normalize
from book.drawing import BLUE, GREY, ORANGE, RED, WIDTH, bare, matrix, panels, seeded, show, things
from centering import SoftmaxCentering
from recipes import RECIPES
from sinkhorn import sinkhorn_knopp
from train import schedules_at


def pairs_of_views(m, made):
    """`dino_loss` of each pair of views alone, for one image and K = 8.  A view never meets its own teacher."""
    V, G = 5, 2
    z, p = torch.randn(V, 1, 8, generator=seeded()) / 10, torch.randn(G, 1, 8, generator=seeded(1)).mul(2).softmax(-1)
    pairs = [[m.dino_loss(z[[s, s]], p[[t]]) if s != t else math.nan for s in range(V)] for t in range(G)]
    figure, [[axes]], loss = *panels(1, 1, 1.7), torch.tensor(pairs)
    matrix(axes, loss, "student's view", "{:.2f}", vmax=2 * loss.nan_to_num().max())
    axes.set(xticks=range(V), xticklabels=[f"global {i + 1}" if i < G else f"local {i - 1}" for i in range(V)],
             yticks=range(G), yticklabels=["teacher 1", "teacher 2"])  # fmt: skip
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    return figure, f"Their mean is {loss.nanmean():.4f}; `dino_loss` of all views at once is {m.dino_loss(z, p):.4f}."


def spread_on_the_circle(m, made):
    """Ten points that start close together, and the same points after a hundred steps down the gradient of
    `koleo_loss`.  A line leads from each point to its nearest other point.
    """
    angle = 0.9 * torch.rand(10, generator=seeded(1))
    x = torch.stack([angle.cos(), angle.sin()], 1)
    figure, [axes] = panels(1, 2, 2.4)
    words = []
    for ax, title, steps in zip(axes, ("before", "after 100 steps"), (0, 100)):
        for step in range(steps):
            g = torch.autograd.grad(m.koleo_loss(x.requires_grad_()), x)[0]
            x = F.normalize(x.detach() - 0.12 * (1 - step / steps) * F.normalize(g, dim=1), dim=1)
        gaps = torch.cdist(x, x).fill_diagonal_(math.inf)
        ax.add_patch(Circle((0, 0), 1, fill=False, color=GREY, lw=0.8))
        for i, j in enumerate(gaps.argmin(1).tolist()):
            ax.plot(*x[[i, j]].T, color=ORANGE, lw=1)
        ax.plot(*x.T, "o", color=BLUE, ms=5)
        ax.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
        bare(ax, title)
        words.append(f"{m.koleo_loss(x):.2f} with a smallest distance of {gaps.min():.3f}")
    return figure, f"The loss was {words[0]}, then {words[1]}."


def half_iterations(m, made):
    """Three samples, four prototypes, τ = 1.  Columns and rows are divided in turn; the sums of rows and columns are in
    orange.  After a row step, the matrix is the result of `sinkhorn_knopp`.
    """
    z = torch.tensor([[4.0, 2.0, 1.0, 1.0], [6.0, 1.0, 1.0, 2.0], [3.0, 1.0, 2.0, 1.0]]).log()
    stages = [("exp(Z)", z.exp())]
    for n in (1, 2, 3):
        before = stages[-1][1]
        stages += [(f"{n}: columns", before / before.sum(0)), (f"{n}: rows", m.sinkhorn_knopp(z, 1.0, n))]
    figure, axes = panels(4, 2, 5.6)
    bare(axes[0][1])
    for i, (ax, (title, Q)) in enumerate(zip([axes[0][0], *axes[1:].flatten()], stages)):
        matrix(ax, Q, title, "{:.3f}" if i else "{:.0f}", vmax=1 if i else 9)
        for b, total in enumerate(Q.sum(1)):
            ax.text(3.6, b, f"{total:.3g}", va="center", color=ORANGE)
        for k, total in enumerate(Q.sum(0)):
            ax.text(k, 2.95, f"{total:.3g}", ha="center", va="center", color=ORANGE)
        ax.set(xlim=(-0.5, 4.5), ylim=(3.3, -0.5))
    return figure, ""


def on_lopsided_logits(m, made):
    """Mean target of each prototype, for 32 samples whose scores all favour prototype 1, τ = 0.1: with a plain softmax,
    softmax centering after 40 such batches, and Sinkhorn-Knopp.  The red line is an equal share.
    """
    def batch(i):
        return 0.3 * torch.randn(32, 8, generator=seeded(i)) + torch.tensor([0.6] + [0.0] * 7)

    centering, z = SoftmaxCentering(8), batch(0)
    for i in range(40, 0, -1):
        centering(batch(i), 0.1)
    targets = {"softmax": (z / 0.1).softmax(1), "softmax centering": centering(z, 0.1),
               "Sinkhorn-Knopp": sinkhorn_knopp(z, 0.1)}  # fmt: skip
    figure, [axes] = panels(1, 3, 1.9, sharey=True)
    for ax, (title, p), colour in zip(axes, targets.items(), (GREY, ORANGE, BLUE)):
        ax.bar(range(1, 9), p.mean(0), color=colour)
        ax.axhline(1 / 8, color=RED, lw=1)
        ax.set(title=title, xlabel="prototype", xticks=range(1, 9))
    shares = ", ".join(f"{p.mean(0)[0]:.2f} ({title})" for title, p in targets.items())
    return figure, f"Prototype 1 gets {shares}; an equal share is 0.125."


def twelve_masks(m, made):
    """The twelve masks that `sample_masks` draws for 24 views of 16×16 patches, by the number of masked patches."""
    masks = m.sample_masks(24, 16, 16, generator=seeded(1))
    masks = masks[masks.any(1)]
    masks = masks[masks.sum(1).argsort()]
    figure, axes = panels(3, 4, 4.3)
    for ax, mask in zip(axes.flatten(), masks, strict=True):
        ax.imshow(rearrange(mask, "(h w) -> h w", h=16), cmap=ListedColormap(["#c9d6e3", BLUE]))
        bare(ax, f"{int(mask.sum())} of 256")
    return figure, ""


def four_schedules(m, made):
    """The schedules of the recipe `vitl14` before its high-resolution phase, each a `cosine_schedule`."""
    steps = range(0, 625_000, 2500)
    rows = [schedules_at(step, RECIPES["vitl14"]) for step in steps]
    figure, axes = panels(2, 2, 3.2)
    for ax, name in zip(axes.flatten(), ("lr", "weight_decay", "momentum", "teacher_temp")):
        ax.plot([step / 1000 for step in steps], [row[name] for row in rows], color=BLUE)
        ax.set(title=name, xlabel="thousand steps")
    return figure, ""


def a_minute_of_training(m, made):
    """The losses while this book was built: the default recipe, cut short.  A loss that stays at ln K (dotted) is the
    uniform collapse.
    """
    rows = [row for row in made.losses if "dino" in row]
    figure, [[axes]] = panels(1, 1, 2.3)
    for name, colour in (("dino", BLUE), ("ibot", ORANGE)):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], color=colour, lw=1, label=name)
    axes.axhline(math.log(RECIPES["shapes"].n_prototypes), color=GREY, ls=":", label="ln K")
    axes.legend()
    axes.set(xlabel="step")
    return figure, ""


def ten_crops(m, made):
    """One picture, and its two global and eight local views from one call of `MultiCrop`."""
    giraffe = things(4, 160)[3]
    mean, std = (torch.tensor(x)[:, None, None] for x in (m.MEAN, m.STD))
    views = m.MultiCrop(96, 42, 8, blur_sigma=(0.1, 1.0))(giraffe[None], 3)
    globals_, locals_ = ((x * std + mean).clamp(0, 1) for x in views)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    names = [["p", "g0", "g1"], ["l0", "l1", "l2", "l3"], ["l4", "l5", "l6", "l7"]]
    wide = [[name for name in row for _ in range(12 // len(row))] for row in names]  # 12 columns
    axes = figure.subplot_mosaic(wide, height_ratios=[1.25, 1, 1])
    show(axes["p"], giraffe, "picture")
    for i, view in enumerate(globals_):
        show(axes[f"g{i}"], view, f"global view {i + 1}")
    for i, view in enumerate(locals_):
        show(axes[f"l{i}"], view, "" if i else "local views")
    return figure, ""


def colours_of_features(m, made):
    """Six pictures that training did not see, and the colours that `pca_rgb` gives to their patches, with the network
    that was trained for this book.
    """
    tokens = m.fine_tokens(made.vit, made.images, made.images.shape[-1])  # (I, N, D)
    rgb, _ = m.pca_rgb(tokens)
    side = math.isqrt(tokens.shape[1])
    figure, axes = panels(2, len(tokens), 1.7)
    for above, below, picture, colours in zip(*axes, made.images, rgb.view(len(tokens), side, side, 3)):
        show(above, picture)
        show(below, colours.permute(2, 0, 1))
    return figure, ""


def where_cls_looks(m, made):
    """Attention of [CLS] in the last block, for each head, in pictures that training did not see."""
    with torch.no_grad():
        maps = m.cls_attention(made.vit, normalize(made.images[:3]), len(made.vit.blocks) - 1)  # (3, heads, N)
    side, heads = math.isqrt(maps.shape[2]), maps.shape[1]
    figure, axes = panels(3, 1 + heads, 3 * WIDTH / (1 + heads))
    for row, picture, found in zip(axes, made.images, maps):
        show(row[0], picture)
        for h, ax in enumerate(row[1:]):
            ax.imshow(found[h].view(side, side), cmap="viridis", vmin=0)
            bare(ax, f"head {h + 1}" if row is axes[0] else "")
    return figure, f"The patches get {maps.sum(2).mean():.2f} of all attention on average."


PLATES = {
    "dino_loss": pairs_of_views, "koleo": spread_on_the_circle, "sinkhorn": half_iterations,
    "centering": on_lopsided_logits, "masking": twelve_masks, "schedule": four_schedules,
    "train": a_minute_of_training, "augment": ten_crops, "pca_viz": colours_of_features, "attention": where_cls_looks,
}  # fmt: skip
