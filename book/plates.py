"""The book's pictures.  Each is drawn with the function that it shows; its docstring is its caption.

A plate takes the module of its page and what the training left (made: vit, images, losses).  It returns a matplotlib
figure and a sentence with numbers, which may be empty.
"""

import math
from itertools import product

import torch
from matplotlib.figure import Figure

from augment import normalize
from book.drawing import BLUE, GREY, ORANGE, RED, WIDTH, bare, panels, seeded, show, things
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
    axes.imshow(loss, cmap="Blues", vmin=0, vmax=2 * loss.nan_to_num().max(), aspect="auto")
    for t, s in product(range(G), range(V)):
        axes.text(s, t, "none" if s == t else f"{loss[t, s]:.2f}", ha="center", va="center", color="#10233a")
    bare(axes, "student's view")
    axes.set(xticks=range(V), xticklabels=[f"global {i + 1}" if i < G else f"local {i - 1}" for i in range(V)],
             yticks=range(G), yticklabels=["teacher 1", "teacher 2"])  # fmt: skip
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    return figure, f"Their mean is {loss.nanmean():.4f}; `dino_loss` of all views at once is {m.dino_loss(z, p):.4f}."


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
    """The losses while this book was built: the default recipe, cut short.  Dotted: their values at flat predictions.
    That is ln K for L_DINO.  For L_iBOT it is half of ln K, because half of the views have no mask and count 0.
    L_DINO leaps where the high-resolution phase begins.
    """
    rows, r = [row for row in made.losses if "dino" in row], RECIPES["shapes"]
    figure, [[axes]] = panels(1, 1, 2.3)
    for name, colour, share in (("dino", BLUE, 1), ("ibot", ORANGE, r.mask_probability)):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], color=colour, lw=1, label=name)
        axes.axhline(share * math.log(r.n_prototypes), color=colour, ls=":")
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
    "dino_loss": pairs_of_views, "centering": on_lopsided_logits, "schedule": four_schedules,
    "train": a_minute_of_training, "augment": ten_crops, "attention": where_cls_looks,
}  # fmt: skip
