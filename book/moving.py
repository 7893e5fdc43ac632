"""Things to move: a section for each page of WIDGETS, with numbers of the method's own functions.  A widget's docstring
is the text at its top.  The words below it are for readers without scripts.
"""

import json
from pathlib import Path

import torch

from book.typeset import inline
from centering import SoftmaxCentering
from dino_loss import dino_loss
from koleo import koleo_loss
from sinkhorn import sinkhorn_knopp

PRESETS = {"Early": [0.03, -0.02, 0.05, 0.00, -0.04, 0.01, -0.01, 0.02],  # one deviation is 0.03, as in a new network
           "Later": [0.42, 0.30, 0.05, -0.08, 0.12, -0.20, 0.00, -0.15]}  # fmt: skip
CELLS = [[4, 2, 1, 1], [6, 1, 1, 2], [3, 1, 2, 1]]  # those of the picture in plates.py
DEGREES = [8, 20, 31, 75, 101, 110, 190, 200, 262, 330]


def section(widget, title, words, data):
    """A section of HTML.  The script replaces the words by what it draws from the data."""
    css, script = (Path(__file__).with_name(n).read_text("utf-8") for n in ("moving.css", f"{widget.__name__}.js"))
    said, data = "".join(f"<p>{line}</p>" for line in words), json.dumps(data, default=torch.Tensor.tolist)
    return f"""<section class="move {widget.__name__}"><style>{css}</style>
<h2>{title}</h2><p>{inline(widget.__doc__)}</p>
<div class="play">{said}</div><script>(() => {{\nconst DATA = {data};\n{script}}})();</script></section>"""


def temperatures(made):
    """Teacher and student see the same logits here: one image's cosines with eight prototypes.  Only their temperatures
    differ.  The loss is the teacher's entropy (at most ln 8 = 2.08) plus a rest, which the student can still remove.
    """
    data, words = [], []
    for name, temp in (("Early", 0.04), ("Early", 0.01), ("Later", 0.04)):
        z = torch.tensor(PRESETS[name]).expand(2, 1, 8)  # two views of one image
        p_t, p_s = (SoftmaxCentering(8)(z[0], t) for t in (temp, 0.1))  # (1, 8) each; the first centre is 0
        H_t, H_s, loss = (dino_loss(z, p.expand(2, 1, 8), t) for p, t in ((p_t, temp), (p_s, 0.1), (p_t, 0.1)))
        numbers = {"probs": [p_t[0], p_s[0]], "entropies": [H_t, H_s], "loss": loss}
        data.append({"name": name, "logits": PRESETS[name], "temps": [temp, 0.1], "numbers": numbers})
        words.append(f"{name}, logits {PRESETS[name]}.  At τ = {temp} the teacher's entropy is {H_t:.2f}; "
                     f"at τ = 0.1 the student's is {H_s:.2f}.  The loss is {loss:.2f}.")  # fmt: skip
    return section(temperatures, "Move two temperatures", words, data)


def balancing(made):
    """Rows are three samples, columns four prototypes, and cells are exp(Z/τ).  Sinkhorn-Knopp needs only this batch.
    At the end each row sums to 1, and each column nearly to B/K = 3/4.  Softmax centering subtracts the mean logits of
    earlier batches, here all like this one.  Prototypes with equal mean logits can still have unequal sums.
    """
    z, centering = torch.tensor(CELLS).log(), SoftmaxCentering(4)
    centred = [centering(z, 1.0) for _ in range(61)]
    targets = {f"Sinkhorn-Knopp, iteration {n}": sinkhorn_knopp(z, 1.0, n) for n in (1, 2, 3)}
    targets |= {f"softmax centering after {n} batches": centred[n] for n in (0, 60)}
    sums = [f"Column sums, {name}: {', '.join(f'{x:.3f}' for x in p.sum(0))}." for name, p in targets.items()]
    return section(balancing, "Move a matrix", [f"The rows: {CELLS}.", *sums], {"cells": CELLS, "centred": centred[0]})


def circle(made):
    """Ten points on a circle.  The loss is the mean of −log d, where d is the distance to the nearest other point.  A
    step down the gradient pushes each point and its nearest one apart, harder if they are close.  The pushes on a point
    add up: a point between two near ones may hardly move.
    """
    angle = torch.tensor(DEGREES).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], 1).requires_grad_()
    loss = koleo_loss(x)
    gradient = torch.autograd.grad(loss, x)[0]
    d, nearest = torch.cdist(x, x).detach().fill_diagonal_(torch.inf).min(1)
    rows = enumerate(zip(DEGREES, nearest + 1, d, gradient.norm(dim=1)), 1)
    words = [f"Point {i}, {at}°: nearest {j}, d = {near:.3f}; gradient {g:.3f} long." for i, (at, j, near, g) in rows]
    data = {"degrees": DEGREES, "numbers": {"loss": loss, "d": d, "nearest": nearest, "gradient": gradient}}
    return section(circle, "Move ten points", [f"The loss is {loss:.3f}.", *words], data)


WIDGETS = {"dino_loss": temperatures, "sinkhorn": balancing, "koleo": circle}
