"""The book's pictures, each made by the function that it shows; a picture's docstring is what the page says of it.

A plate takes the module of its page, and what training for a minute left (`made`: vit, images, losses), and returns a
matplotlib figure, or that and a sentence with numbers.  `plates.py` imports no program: their functions come as `m`.
"""

import math

import matplotlib
import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch.nn import functional as F

from augment import normalize
from book.drawing import BLUE, GREEN, GREY, ORANGE, RED, WIDTH, as_pixels, bare, matrix, panels, seeded, show, things
from centering import SoftmaxCentering
from masking import sample_masks
from recipes import RECIPES
from sinkhorn import sinkhorn_knopp

# ---------------------------------------------------------------------------- losses


def pairs_of_views(m, made):
    """Each number is `dino_loss` of one pair alone, one image, K = 8; a view never meets its own teacher."""
    V, G = 5, 2
    z, p = torch.randn(V, 1, 8, generator=seeded()) / 10, torch.randn(G, 1, 8, generator=seeded(1)).mul(2).softmax(-1)
    figure, [[axes]] = panels(1, 1, 1.7)
    met = torch.full((G, V), math.nan)
    for t in range(G):
        for s in range(V):
            if s != t:
                met[t, s] = m.dino_loss(z[[s, s]], p[[t]])
                axes.text(s, t, f"{met[t, s]:.2f}", ha="center", va="center", color="#10233a")
    axes.imshow(met, cmap="Blues", vmin=0, vmax=2 * float(met.nan_to_num().max()), aspect="auto")
    for view in range(G):
        axes.text(view, view, "not met", ha="center", va="center", color=GREY)
    axes.set(xticks=range(V), xticklabels=[f"global {i + 1}" if i < G else f"local {i - 1}" for i in range(V)],
             yticks=range(G), yticklabels=["teacher 1", "teacher 2"], title="student's view")  # fmt: skip
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    whole = m.dino_loss(z, p).item()
    return figure, f"Their mean is {met.nanmean():.4f}; `dino_loss` of all views at once gave {whole:.4f}."


def meeting_patches(m, made):
    """Above a view of 8×8 patches as the teacher and as the masked student see it, below their tokens.  Only masked
    tokens meet a target, the teacher's of the same place.
    """
    mask = sample_masks(1, 8, 8, (0.3, 0.3), 1.0, seeded(2))  # (1, 64)
    [picture] = things(1, 128, ["giraffe"])
    hidden = rearrange(mask[0], "(h w) -> h w", h=8).repeat_interleave(16, 0).repeat_interleave(16, 1)
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplot_mosaic([["teacher", "student"], ["tokens", "tokens"]], height_ratios=[2.1, 1])
    show(axes["teacher"], picture)
    show(axes["student"], torch.where(hidden, torch.tensor(150, dtype=torch.uint8), picture))
    axes["teacher"].set_title("teacher's view")
    axes["student"].set_title("student's view")
    ax, shown = axes["tokens"], 32
    for i in range(shown):
        at = bool(mask[0, 16 + i])
        for y, colour in ((1, ORANGE), (0, BLUE)):
            look = {"color": colour} if at else {"color": GREY, "alpha": 0.35}
            ax.add_patch(Rectangle((i + 0.1, y), 0.8, 0.28, lw=0, **look))
        if at:
            ax.plot([i + 0.5, i + 0.5], [0.3, 0.98], color=GREEN, lw=1)
    ax.text(-0.4, 1.14, "target", ha="right", va="center")
    ax.text(-0.4, 0.14, "student", ha="right", va="center")
    ax.set(xlim=(-4.2, shown), ylim=(-0.1, 1.4), title=f"tokens of patches 16 to {15 + shown}")
    bare(ax)
    M = int(mask.sum())
    z, p = torch.randn(M, 8, generator=seeded()) / 10, torch.randn(M, 8, generator=seeded(1)).softmax(1)
    return figure, f"Random logits of all {M} pairs, K = 8: `ibot_loss` gave {m.ibot_loss(z, p, mask).item():.3f}."


def pull_on_each_logit(m, made):
    """One row, τ = 0.5: the gradient that `cross_entropy` keeps is softmax(z/τ) less the target, divided by τ."""
    z = torch.randn(1, 6, generator=seeded(3)).requires_grad_()
    p = torch.tensor([[0.0, 0.1, 0.6, 0.3, 0.0, 0.0]])
    H = m.cross_entropy(z, p, 0.5)
    H.sum().backward()
    figure, [[above, below]] = panels(1, 2, 1.9)
    x = torch.arange(6)
    above.bar(x - 0.2, p[0], 0.4, color=ORANGE, label="target p")
    above.bar(x + 0.2, (z / 0.5).softmax(1)[0].detach(), 0.4, color=BLUE, label="softmax(z/τ)")
    above.legend(loc="upper right")
    above.set(ylim=(0, 1), xlabel="k", title="what meets")
    below.bar(x, z.grad[0], 0.5, color=GREEN)
    below.axhline(0, color=GREY, lw=0.8)
    below.set(xlabel="k", title="∂H/∂z")
    return figure, f"H = {H.item():.3f}."


def spread_on_the_circle(m, made):
    """Ten points that begin close together, and after a hundred steps along `koleo_loss`'s own gradient, each step of
    a length that shrinks to 0; a line leads from each to its nearest.
    """
    angle = 0.9 * torch.rand(10, generator=seeded(1))
    x = torch.stack([angle.cos(), angle.sin()], 1)
    figure, [axes] = panels(1, 2, 2.4)
    words = []
    for number, ax in enumerate(axes):
        gaps = torch.cdist(x, x) + 9 * torch.eye(len(x))
        ax.add_patch(Circle((0, 0), 1, fill=False, color=GREY, lw=0.8))
        for i, j in enumerate(gaps.argmin(1).tolist()):
            ax.plot(*x[[i, j]].T, color=ORANGE, lw=1)
        ax.plot(*x.T, "o", color=BLUE, ms=5)
        ax.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
        bare(ax)
        ax.set_title(["before", "after 100 steps"][number])
        words.append(f"{m.koleo_loss(x).item():.2f} with a least distance of {gaps.min():.3f}")
        for step in range(0 if number else 100):
            g = torch.autograd.grad(m.koleo_loss(x.requires_grad_()), x)[0]
            x = F.normalize(x.detach() - 0.12 * (1 - step / 100) * F.normalize(g, dim=1), dim=1)
    return figure, f"The loss was {words[0]}, then {words[1]}."


# ---------------------------------------------------------------------------- centering


def half_iterations(m, made):
    """Three samples and four prototypes, τ = 1.  Columns and rows are divided by turns; beside each matrix are the
    sums of its rows, below it those of its columns.  After a row step it is what `sinkhorn_knopp` gives.
    """
    z = torch.tensor([[4.0, 2.0, 1.0, 1.0], [6.0, 1.0, 1.0, 2.0], [3.0, 1.0, 2.0, 1.0]]).log()
    stages = [("exp(Z)", z.exp())]
    for n in (1, 2, 3):
        before = stages[-1][1]
        stages += [(f"{n}: columns", before / before.sum(0)), (f"{n}: rows", m.sinkhorn_knopp(z, 1.0, n))]
    figure, axes = panels(4, 2, 5.6)
    bare(axes[0][1])
    for ax, (title, Q) in zip([axes[0][0], *axes[1:].flatten()], stages):
        form = "{:.0f}" if title == "exp(Z)" else "{:.3f}"
        matrix(ax, Q, title, form, vmax=9 if title == "exp(Z)" else 1)
        for b, total in enumerate(Q.sum(1)):
            ax.text(3.6, b, f"{total:.3g}", va="center", color=ORANGE)
        for k, total in enumerate(Q.sum(0)):
            ax.text(k, 2.95, f"{total:.3g}", ha="center", va="center", color=ORANGE)
        ax.set(xlim=(-0.5, 4.5), ylim=(3.3, -0.5))
    return figure


def on_lopsided_logits(m, made):
    """32 samples whose scores all favour prototype 1, τ = 0.1: the mean target of each prototype by a plain softmax,
    by softmax centering after 40 such batches, and by Sinkhorn-Knopp.  The line is an even share, to which three
    iterations have come near.
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
    return figure, f"Prototype 1 gets {shares}; an even share is 0.125."


# ---------------------------------------------------------------------------- head, masks, schedules


def cosines_of_a_head(m, made):
    """A head with a bottleneck of two: on the left its prototypes and the direction of one token on the unit circle,
    on the right the logits, which are the cosines between them.
    """
    torch.manual_seed(373)
    head = m.Head(16, 6, hidden_dim=32, bottleneck_dim=2)
    x = torch.randn(1, 16)
    with torch.no_grad():
        z, w, y = head(x)[0], F.normalize(head.prototypes, dim=1), F.normalize(head.mlp(x), dim=1)[0]
    figure, [[circle, bars]] = panels(1, 2, 2.4)
    circle.add_patch(Circle((0, 0), 1, fill=False, color=GREY, lw=0.8))
    for k, (a, b) in enumerate(w.tolist()):
        circle.plot([0, a], [0, b], color=BLUE, lw=1)
        circle.text(1.17 * a, 1.17 * b, f"{k + 1}", ha="center", va="center")
    circle.plot([0, y[0]], [0, y[1]], color=ORANGE, lw=3)
    circle.set(aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), title="wₖ, and ŷ in orange")
    bare(circle)
    bars.bar(range(1, 7), z, color=BLUE)
    bars.axhline(0, color=GREY, lw=0.8)
    bars.set(ylim=(-1.05, 1.05), xlabel="prototype k", title="logit zₖ")
    return figure


def twelve_masks(m, made):
    """Half of 24 views of 16×16 patches: the twelve that `sample_masks` masks, with the number of their masked
    patches.
    """
    masks = m.sample_masks(24, 16, 16, generator=seeded(1))
    masks = masks[masks.any(1)]
    masks = masks[masks.sum(1).argsort()]
    figure, axes = panels(3, 4, 4.3)
    for ax, mask in zip(axes.flatten(), masks, strict=True):
        ax.imshow(rearrange(mask, "(h w) -> h w", h=16), cmap=matplotlib.colors.ListedColormap(["#c9d6e3", BLUE]))
        bare(ax)
        ax.set_title(f"{int(mask.sum())} of 256")
    return figure


def four_schedules(m, made):
    """The schedules of `vitl14` before its high-resolution phase, from `recipes.py` by way of `cosine_schedule`."""
    r, total = RECIPES["vitl14"], 625_000
    low, temp = round(total * r.lr_warmup), round(total * r.teacher_temp_warmup)
    curves = {  # start, end, warmup, warmup_start
        "learning rate": (r.lr * math.sqrt(r.batch / 1024), r.lr_end, low, 0.0),
        "weight decay": (r.weight_decay, r.weight_decay_end, 0, 0.0),
        "momentum of the teacher": (r.momentum, r.momentum_end, 0, 0.0),
        "teacher temperature": (r.teacher_temp, r.teacher_temp, temp, r.teacher_temp_start),
    }
    figure, axes = panels(2, 2, 3.2)
    steps = range(0, total, 2500)
    for ax, (title, curve) in zip(axes.flatten(), curves.items()):
        ax.plot([s / 1000 for s in steps], [m.cosine_schedule(s, total, *curve) for s in steps], color=BLUE)
        ax.set(title=title, xlabel="thousand steps")
    return figure


# ---------------------------------------------------------------------------- the step and the network


def a_minute_of_training(m, made):
    """The losses of each step while this book was built: the default recipe, cut short.  A loss that stays at ln K is
    the uniform collapse; the grey line is where the high-resolution phase begins.
    """
    figure, [[axes]] = panels(1, 1, 2.3)
    for name, colour in (("dino", BLUE), ("ibot", ORANGE)):
        axes.plot([row[name] for row in made.losses], color=colour, lw=1, label=name)
    axes.axhline(math.log(made.K), color=GREY, ls=":", label="ln K")
    axes.legend()
    axes.set(xlabel="step")
    low = [row for row in made.losses if not row["hires"]]
    axes.axvline(len(low), color=GREY, lw=0.8)
    ends = {name: [sum(row[name] for row in part) / len(part) for part in (low[:10], low[-10:])]
            for name in ("dino", "ibot")}  # fmt: skip
    went = {name: f"from {first:.2f} to {last:.2f}" for name, (first, last) in ends.items()}
    words = f"In the {len(low)} steps before it the image loss went {went['dino']}, the patch loss {went['ibot']}"
    return figure, f"{words}, means of ten steps each."


def ribbon_of_tokens(m, made):
    """What `pack` makes of two global crops of 32² and four local ones of 16², patches of 8, two registers: one row of
    T tokens, images end to end.  Attention is called once for each of the two `shapes`.
    """
    network = m.vit_pico(patch_size=8, img_size=32, n_registers=2)
    packed, sizes = network.pack([torch.zeros(2, 3, 32, 32), torch.zeros(4, 3, 16, 16)], [None, None])
    kinds = [k for b, n in sizes for _ in range(b) for k in ["[CLS]", "register", "register"] + ["patch"] * (n - 3)]
    figure, rows = panels(2, 1, 1.9)
    colours = {"[CLS]": ORANGE, "register": GREEN, "patch": BLUE}
    at, edges = 0, []
    for b, n in sizes:
        for _ in range(b):
            edges.append((at, n))
            at += n
    half = edges[2][0]
    for [ax], (start, stop) in zip(rows, ((0, half), (half, len(kinds)))):
        for t in range(start, stop):
            ax.add_patch(Rectangle((t - start + 0.08, 0), 0.84, 1, color=colours[kinds[t]], lw=0))
        for i, (first, n) in enumerate(edges):
            if start <= first < stop:
                ax.plot([first - start + 0.1, first - start + n - 0.1], [-0.25, -0.25], color=GREY, lw=1.5)
                name = f"global {i + 1}: {n} tokens" if i < 2 else f"local {i - 1}: {n}"
                ax.text(first - start + n / 2, -0.75, name, ha="center", va="center")
        ax.set(xlim=(0, max(half, len(kinds) - half)), ylim=(-1.1, 1.1))
        bare(ax)
    handles = [Rectangle((0, 0), 1, 1, color=colour, lw=0) for colour in colours.values()]
    figure.legend(handles, list(colours), loc="outside upper left", ncols=3)
    return figure, f"Packed: {tuple(packed.shape)}; shapes {sizes}."


# ---------------------------------------------------------------------------- views, evaluation, pictures


def ten_crops(m, made):
    """One picture, and its two global and eight local views from one call of `MultiCrop`."""
    [picture] = things(1, 160, ["giraffe"])
    views, local = m.MultiCrop(96, 42, 8, blur_sigma=(0.1, 1.0))(picture[None], 3)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    names = [["p", "g0", "g1"], ["l0", "l1", "l2", "l3"], ["l4", "l5", "l6", "l7"]]
    wide = [[name for name in row for _ in range(12 // len(row))] for row in names]  # 12 columns
    axes = figure.subplot_mosaic(wide, height_ratios=[1.25, 1, 1])
    show(axes["p"], picture)
    axes["p"].set_title("picture")
    for i in range(2):
        show(axes[f"g{i}"], as_pixels(views)[i])
        axes[f"g{i}"].set_title(f"global view {i + 1}")
    for i in range(8):
        show(axes[f"l{i}"], as_pixels(local)[i])
    axes["l0"].set_title("local views")
    return figure


def votes_on_a_circle(m, made):
    """Twelve training images of two classes on a circle, two of them on the wrong side.  The ring shows which class
    `knn_accuracy` gives to a test image in that direction, for k = 1 and for k = 5 at two temperatures.
    """
    angle = torch.tensor([0.0, 20, 40, 65, 95, 130, 170, 200, 235, 260, 300, 335]).deg2rad()
    label = torch.tensor([0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    x = torch.stack([angle.cos(), angle.sin()], 1)
    around = torch.arange(0, 360, 2.0).deg2rad()
    test = torch.stack([around.cos(), around.sin()], 1)
    figure, [axes] = panels(1, 3, 1.75)
    for ax, (k, temp) in zip(axes, ((1, 0.07), (5, 0.07), (5, 1.0))):
        right = [m.knn_accuracy(x, label, one[None], torch.tensor([1]), k, temp) for one in test]
        ax.scatter(*(0.72 * test).T, c=[ORANGE if r else BLUE for r in right], s=5)
        ax.scatter(*x.T, c=[ORANGE if y else BLUE for y in label], s=26)
        ax.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
        bare(ax)
        ax.set_title(f"k = {k}, τ = {temp}")
    return figure


def four_steps_of_the_picture(m, made):
    """Six pictures that training did not see: their first component from 0 to 1, what the threshold leaves, and the
    second PCA of that as colours.  The network is the one that this book trained, or `--weights`.
    """
    tokens = m.fine_tokens(made.vit, made.images, made.images.shape[-1])  # (I, N, D)
    side = math.isqrt(tokens.shape[1])
    x = tokens.flatten(0, 1).double()
    first = m.scale(m.pca(x, 1)[:, 0])
    inside = m.foreground_mask(first, m.border_patches([(side, side)] * len(tokens)), 0.5, False)
    colours = m.foreground_rgb(x, inside)
    steps = {"picture": None, "component 1": first, "s > θ": inside.float(), "second PCA": colours}
    figure, axes = panels(len(tokens), 4, 1.16 * len(tokens))
    for column, (title, values) in enumerate(steps.items()):
        for row, ax in enumerate(axes[:, column]):
            if values is None:
                show(ax, made.images[row])
            else:
                grid = values.view(len(tokens), side, side, -1)[row].squeeze(-1)
                ax.imshow(grid, cmap="viridis", vmin=0, vmax=1)
                bare(ax)
        axes[0, column].set_title(title)
    return figure, f"Tokens: {len(tokens)} pictures of {side} × {side} cells, {tokens.shape[2]} numbers each."


def where_cls_looks(m, made):
    """[CLS]'s attention in the last block, for each head, in pictures that training did not see."""
    with torch.no_grad():
        maps = m.cls_attention(made.vit, normalize(made.images[:3]), len(made.vit.blocks) - 1)  # (3, heads, N)
    side, heads = math.isqrt(maps.shape[2]), maps.shape[1]
    figure, axes = panels(3, 1 + heads, 3 * WIDTH / (1 + heads))
    for row, picture, found in zip(axes, made.images, maps):
        show(row[0], picture)
        for h, ax in enumerate(row[1:]):
            ax.imshow(found[h].view(side, side), cmap="viridis", vmin=0)
            bare(ax)
    for h, ax in enumerate(axes[0][1:]):
        ax.set_title(f"head {h + 1}")
    return figure, f"Of all attention the patches get {maps.sum(2).mean():.2f} on average, [CLS] itself the rest."


def chains_of_copies(m, made):
    """Twenty embeddings on a circle: a line where one is among the other's nearest with a cosine above 0.9, a colour
    for each component.  The ringed one of each component stays.
    """
    rng = np.random.default_rng(2)
    angle = np.deg2rad(rng.uniform(0, 360, 20))
    x = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    edges, kept = m.edges_above(x, 0.9, 2, 0), m.deduplicate(x, 0.9, 2)
    label = m.component_of(len(x), edges)
    figure, [[axes]] = panels(1, 1, 3.4)
    rings = 1 + 0.06 * (np.arange(20) % 3)
    at = x * rings[:, None]
    colour = matplotlib.colormaps["tab10"](label % 10)
    for i, j in edges:
        axes.plot(*at[[i, j]].T, color=colour[i], lw=1)
    axes.scatter(*at.T, c=colour, s=30, zorder=3)
    axes.scatter(*at[kept].T, s=110, facecolors="none", edgecolors="black", zorder=4)
    axes.set(aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))
    bare(axes)
    return figure, f"{len(x)} images, {len(edges)} edges, {label.max() + 1} components, {len(kept)} kept."


PLATES = {
    "dino_loss": [pairs_of_views], "ibot_loss": [meeting_patches], "cross_entropy": [pull_on_each_logit],
    "koleo": [spread_on_the_circle], "sinkhorn": [half_iterations, on_lopsided_logits],
    "centering": [on_lopsided_logits], "head": [cosines_of_a_head], "masking": [twelve_masks],
    "schedule": [four_schedules], "train": [a_minute_of_training], "vit": [ribbon_of_tokens], "augment": [ten_crops],
    "evaluate": [votes_on_a_circle], "pca_viz": [four_steps_of_the_picture], "attention": [where_cls_looks],
    "curate": [chains_of_copies],
}  # fmt: skip
