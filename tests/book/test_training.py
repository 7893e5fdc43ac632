"""What moves about training, in a browser; and the words about collapse.  `pytest tests/book/test_training.py`"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from book import drawing, training
from masking import sample_masks
from vit import vit_pico

pytestmark = pytest.mark.slow
USE = """const all = x => [...document.querySelectorAll(x)], masks = [];
  for (const seed of all("option")) {
    all("select")[0].value = seed.value; all("select")[0].onchange();
    masks.push([+seed.value, all(".views button").map(view => {
      view.click(); // which does nothing if no patch is masked
      if (seed.index) all(".all")[0].click(); else for (let n = 0; n < 25; n++) all(".next")[0].click();
      return view.disabled ? [] : all(".grid i").flatMap((cell, n) => cell.matches(".masked") ? [n] : []); })]); }
  all("[type=checkbox]")[1].click();
  const off = all("polyline").filter(line => line.style.display == "none").map(line => line.dataset.of);
  const slider = all("[type=range]")[0], steps = [0, 1].map(n => { slider.value = n; slider.oninput();
    return all("p:has(img):not([hidden])").map(p => [p.textContent.slice(0, 7), p.querySelector("img").src]); });
  document.body.textContent = `@@${JSON.stringify({masks, off, steps})}@@`;"""


def test_in_a_browser(tmp_path, browse, monkeypatch):
    """Ten batches end at `sample_masks`'s masks, one with a random patch.  Boxes hide curves.  Colours are aligned."""
    vit, rgb, page = vit_pico(patch_size=8, img_size=64), torch.rand(6, 256, 3), tmp_path / "page.html"
    colours = iter([rgb, 1 - rgb[..., [2, 0, 1]]])  # of the last step, and the same in another order, and turned
    monkeypatch.setattr(training, "pca_rgb", lambda tokens: (next(colours), torch.ones(6, 256, dtype=torch.bool)))
    made = SimpleNamespace(images=drawing.things(6, 64), snapshots=[(0, vit), (7, vit)])
    page.write_text("<meta charset=utf-8>" + "".join(widget(made) for widget in training.WIDGETS.values()), "utf-8")
    found = json.loads(browse(page, USE).split("@@")[1])
    batches = [(seed, sample_masks(8, 16, 16, generator=drawing.seeded(seed))) for seed in (*range(9), 207)]
    assert found["masks"] == [[seed, [mask.nonzero()[:, 0].tolist() for mask in masks]] for seed, masks in batches]
    fill = sum((steps[-1]["patches"] for seed, _ in batches for steps in training.tries(seed)["steps"].values()), [])
    [[first, picture]], [[last, same]] = found["steps"]
    assert (first, last, same) == ("Step 0:", "Step 7:", picture) and len(fill) == 1
    assert found["off"] == [arm for arm in list(training.ARMS)[1:] for _ in range(3)] * 3


def test_the_words_about_collapse_hold_in_every_run():
    runs = json.loads(Path(training.__file__).with_name("collapse.json").read_text("utf-8"))["runs"]
    one, mean = ({arm: torch.tensor([run[name] for run in some])[..., 1] for arm, some in runs.items()}
                 for name in ("entropy_image", "entropy_mean"))  # fmt: skip
    assert mean["plain"][:, 1:].max() < 0.02 and one["warm"][:, 10:].min() > 0.98  # (seeds, steps / 20)
    assert (mean["centre"][:, :25].amin(1) < 0.02).all() and mean["centre"][:, 25:].min() > 0.4
    assert max(one[arm].max() for arm in ("whole", "copy")) < 0.8 < min(mean[arm].min() for arm in ("whole", "copy"))
