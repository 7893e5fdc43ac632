"""What moves on the pages of the losses, in a browser: its numbers are Python's.  `pytest tests/book/test_moving.py`"""

import html
import json
import re

import pytest
import torch
from conftest import at
from torch.testing import assert_close

from book.moving import CELLS, DEGREES, WIDGETS, SoftmaxCentering, dino_loss, koleo_loss, sinkhorn_knopp

pytestmark = pytest.mark.slow
USE = """const all = x => [...document.querySelectorAll(x)], text = x => all(x).map(e => e.textContent).join(" ");
  const set = (e, value) => { e.value = value; e.dispatchEvent(new Event("input", { bubbles: true })); };
  const [{ look }, { sinkhorn, centred }, { koleo }] = all(".move"), loss = () => +text(".circle b");
  const [teacher, , batches] = all("[type=range]"), [one, two] = all(".point"), [next, , step] = all("button");
  const press = (e, key) => e.dispatchEvent(new KeyboardEvent("keydown", { key })), first = text(".play");
  set(teacher, teacher.value); set(batches, 0); press(one, "ArrowUp"); press(one, "ArrowDown");
  const found = { look: LOGITS.map((z, i) => look(z, TEMPS[i])), koleo: ANGLES.map(degrees => koleo(degrees)),
    targets: CELLS.map((Q, i) => [sinkhorn(Q, 2 + 2 * (i % 4)), centred(Q, i)]), words: [first, text(".play")] };
  set(teacher, 0.1); set(all(".balancing input")[0], 40); set(batches, 10); for (let n = 0; n < 6; n++) next.click();
  found.targets.push(all("td[style]").map(e => +e.textContent)); found.words.push(text("[aria-live]"));
  const { x, y, width } = all("svg")[0].getBoundingClientRect(); two.hasPointerCapture = () => true;
  press(one, "ArrowUp"); two.dispatchEvent(new PointerEvent("pointermove", { clientX: x + width / 2, clientY: y }));
  found.losses = [loss(), (step.click(), loss())]; document.body.dataset.found = JSON.stringify(found);"""


def test_in_a_browser(tmp_path, browse):
    """Ten inputs for each function.  Controls, without a change at first, redraw Python's numbers by the scripts'."""
    torch.manual_seed(0)
    logits, temps, angles = torch.randn(10, 8) / 3, 0.02 + torch.rand(10, 2) / 5, (360 * torch.rand(10, 9)).tolist()
    cells, edited = torch.randn(10, 3, 4).exp(), torch.tensor([[40, *CELLS[0][1:]], *CELLS[1:]])
    given = f"const LOGITS = {logits.tolist()}, TEMPS = {temps.tolist()}, ANGLES = {angles}, CELLS = {cells.tolist()};"
    page, sections = tmp_path / "page.html", "".join(widget(None) for widget in WIDGETS.values())
    page.write_text(f"<meta charset=utf-8>{sections}", "utf-8")
    found = json.loads(html.unescape(re.search('data-found="([^"]*)"', browse(page, given + USE))[1]))
    for numbers, z_s, (t, s) in zip(found["look"], logits, temps, strict=True):
        p = torch.cat([SoftmaxCentering(8)(z_s[None], temp) for temp in (t, s)])
        loss = dino_loss(z_s.expand(2, 1, 8), p[:1].expand(2, 1, 8), s).item()
        expected = {"probs": p.tolist(), "entropies": torch.special.entr(p).sum(1).tolist(), "loss": loss}
        assert_close(numbers, expected, rtol=1e-4, atol=1e-6)
    for i, (targets, Q) in enumerate(zip(found["targets"], [*cells, edited], strict=True)):
        centering, z = SoftmaxCentering(4), Q.log()
        expected = torch.cat([sinkhorn_knopp(z, 1.0, 1 + i % 4), [centering(z, 1.0) for _ in range(i + 1)][-1]])
        assert_close(torch.tensor(targets).view(6, 4), expected, rtol=1e-4, atol=1e-6 if i < 10 else 6e-4)
    for numbers, degrees in zip(found["koleo"], angles, strict=True):
        x = at(*degrees).requires_grad_()
        d, nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).min(1)
        want = {"loss": koleo_loss(x), "d": d, "nearest": nearest, "gradient": torch.autograd.grad(koleo_loss(x), x)[0]}
        assert_close(numbers, {name: value.tolist() for name, value in want.items()}, rtol=1e-4, atol=1e-5)
    (first, again, equal), (before, after) = found["words"], found["losses"]
    assert first == again and "0.00 of it" in equal and f"The loss is {koleo_loss(at(*DEGREES)):.3f}." in sections
    assert abs(before - koleo_loss(at(10, 90, *DEGREES[2:]))) < 6e-4 and after < before - 0.05
