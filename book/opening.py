"""The top of the first page: an image on its way through a real step, and two curves of collapse.  See opening.html."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

import train
from augment import MEAN, STD
from book.drawing import BLUE, ORANGE, panels, seeded, show, svg
from support import shapes
from support.start import make_crop

METHOD = "dino_loss ibot_loss koleo sinkhorn head network masking vit schedule optimizer train".split()
MINUTES = 110  # that a reader needed for these files
CALLED = "compute_losses center dino_loss ibot_loss koleo_loss".split()  # by train_step, with all that we draw


def one_step(made):
    """Take train.py's own step with a copy of made.run; returns what its functions got, and one view of a giraffe."""
    run, called = copy.deepcopy(made.run), {name: mock.Mock(wraps=getattr(train, name)) for name in CALLED}
    r, values, kinds = run.recipe, train.schedules_at(run.step, run.recipe), [*shapes.KINDS.values()]
    images = torch.cat([shapes.draw(kinds[i % 10], 1, r.image_size, seeded(i))[0] for i in range(r.batch)])
    with mock.patch.multiple(train, **called):
        losses, *_ = train.train_step(run, images, make_crop(r, values["global_size"]), values)
    given = {name: [call.args for call in called[name].call_args_list] for name in CALLED}
    masks, views = given["ibot_loss"][0][2], given["compute_losses"][0][1]
    row = max((row for row in range(2 * r.batch) if row % r.batch % 10 == 3), key=lambda row: masks[row].sum())
    mean, std = torch.tensor((MEAN, STD))[:, :, None, None]
    shown, small = ((x * std + mean).clamp(0, 1) for x in views)
    cells = masks[row].view(shown.shape[-1] // r.patch_size, -1)
    hidden = torch.kron(cells.float(), torch.ones(r.patch_size, r.patch_size)).bool()
    return SimpleNamespace(
        old=made.run, run=run, values=values, losses=losses, row=row, b=row % r.batch, v=row // r.batch, shown=shown,
        image=images[row % r.batch], small=small, view=views[0][row], mask=masks[row],
        masked=shown[row].masked_fill(hidden, 0.6), **given)  # fmt: skip


def crops(s):
    """An image, its crops, and what the student sees of one."""
    B, titles = s.old.recipe.batch, ["image", "global 1", "global 2", "masked", "local 1", "local 2"]
    figure, axes = panels(2, 3, 3.1)
    for ax, x, title in zip(axes.flatten(), [s.image, *s.shown[s.b :: B], s.masked, *s.small[s.b :: B]], titles):
        show(ax, x, title)
    return figure, {"M": s.mask.sum(), "N": len(s.mask)}


def tokens(s):
    """The student's tokens of the masked view."""
    vit, view, (figure, [axes]) = s.old.student.backbone, (s.view[None], s.mask[None]), panels(1, 2, 2.6)
    for ax, [x], title in zip(axes, (vit.embed(*view), vit.forward_features(*view)["x_prenorm"]), ("before", "after")):
        x = torch.nn.functional.layer_norm(x, x.shape[1:]).detach()
        ax.imshow(x, cmap="PuOr", vmin=-2, vmax=2, aspect="auto", interpolation="none")
        ax.set(title=title, xticks=[], yticks=range(len(x)), yticklabels=["[CLS]", *("mask" * m for m in s.mask)])
    return figure, {"n": len(x), "D": x.shape[1], "depth": vit.n_blocks}


def bars(teacher, student):
    """A figure with a number for each prototype: the teacher's as a bar, the student's as a dot."""
    figure, [[axes]] = panels(1, 1, 1.9, subplot_kw={"xlabel": "prototype"})
    axes.bar(range(1, len(teacher) + 1), teacher, color=ORANGE)
    axes.plot(range(1, len(teacher) + 1), student.detach().float(), "o", ms=3, color=BLUE)
    return figure


def logits(s):
    """The logits of the view's [CLS] token."""
    z = s.center[0][2][s.row].float()
    return bars(z, s.dino_loss[0][0][s.v, s.b]), {"K": len(z), "highest": z.max(), "k": z.argmax() + 1}


def targets(s):
    """Targets of all global views, by a softmax alone and by Sinkhorn-Knopp."""
    temp, figure, [axes] = s.values["teacher_temp"], *panels(1, 2, 2.4)
    both = {"softmax": (s.center[0][2].float() / temp).softmax(1), "Sinkhorn-Knopp": s.dino_loss[0][1].flatten(0, 1)}
    for ax, (title, p) in zip(axes, both.items()):
        sides = (0.5, p.shape[1] + 0.5, len(p) - 0.5, -0.5)  # prototypes are numbered from 1
        ax.imshow(p, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="none", extent=sides)
        ax.set(title=title, xlabel="prototype", yticks=[s.row], yticklabels=["this view"])
    shares = [f"{p.sum(0).min():.1f} to {p.sum(0).max():.1f}" for p in both.values()]
    return figure, {"views": len(p), "temp": temp, "shares": shares, "equal": len(p) / p.shape[1]}


def dino(s):
    """What the student predicts from its first local view, and the target of the global view."""
    [(z, p, temp)], one = s.dino_loss, slice(s.b, s.b + 1)
    figure = bars(p[s.v, s.b], (z[2, s.b].float() / temp).softmax(0))
    return figure, {"pair": train.dino_loss(z[[2, 2], one], p[[s.v], one], temp), "dino_loss": s.losses["dino"]}


def patches(s):
    """The cross-entropy at each masked patch; and the view of the batch with the nearest [CLS] token."""
    [(z, p, masks, temp)], side = s.ibot_loss, s.old.recipe.patch_size
    x = torch.nn.functional.normalize(s.koleo_loss[s.v][0].detach().float())
    d, nearest = torch.cdist(x, x).fill_diagonal_(torch.inf)[s.b].min(0)
    figure, [axes] = panels(1, 3, 1.7)
    show(axes[0], s.shown[s.row], "teacher's view")
    show(axes[1], s.masked, "student's view")
    show(axes[2], s.shown[s.row - s.b + nearest], "nearest view")
    for i, place in enumerate(s.mask.nonzero()[:, 0].tolist(), start=int(masks[: s.row].sum())):
        y, x = divmod(place, s.masked.shape[1] // side)
        H = train.ibot_loss(z[[i]], p[[i]], torch.tensor([[True]]), temp)
        axes[1].text((x + 0.5) * side, (y + 0.6) * side, f"{H:.1f}", ha="center", color="#10233a")
    return figure, {"B": s.old.recipe.batch, "d": d, "ibot_loss": s.losses["ibot"], "koleo_loss": s.losses["koleo"]}


def entropies(s):
    """The two entropies in the default recipe, and without one part of it."""
    runs = json.loads(Path(__file__).with_name("collapse.json").read_text(encoding="utf-8"))["runs"]
    figure, [axes] = panels(1, 3, 1.9, sharey=True)
    for ax, arm in zip(axes, ("whole", "plain", "warm")):
        for name, colour, width in (("entropy_image", BLUE, 3), ("entropy_mean", ORANGE, 1)):
            ax.plot(*zip(*runs[arm][0][name]), color=colour, lw=width)
        ax.set(title=arm, xlabel="step", ylim=(-0.03, 1.03))
    return figure, {}


def opening(made, up):
    """The HTML above the table of files."""
    s, shown = one_step(made), {"step": made.run.step, "total": MINUTES}
    for draw in (crops, tokens, logits, targets, dino, patches, entropies):
        shown[draw.__name__], numbers = svg(lambda draw=draw: draw(s))
        shown |= numbers
    weights = [network.dino_head.prototypes[0, 0].item() for network in (s.old.ema, s.run.student, s.run.ema)]
    lines = [Path(train.__file__).with_name(f"{name}.py").read_text(encoding="utf-8").count("\n") for name in METHOD]
    order = [f'<li><a href="{name}.html">{name}.py</a>: about {round(MINUTES * n / sum(lines))} minutes</li>'
             for name, n in zip(METHOD, lines)]  # fmt: skip
    page = Path(__file__).with_name("opening.html").read_text(encoding="utf-8")
    return page.format(**shown, weights=weights, m=s.values["momentum"], order="".join(order)).replace("= -", "= −")
