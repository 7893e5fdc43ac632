"""The page's numbers, and the patch that a browser rings, are Python's.  `pytest tests/test_explore.py`"""

import base64
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import explore
from pca_viz import fine_tokens
from support.shapes import draw_shapes
from vit import vit_pico


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of six images, its data, and the exact unit features (6, 256, D)."""
    torch.manual_seed(0)
    vit = vit_pico(patch_size=8, img_size=64, layer_scale=0.5).eval()
    images, _, parts = (x[:6] for x in draw_shapes("test", 64, 0))
    path = tmp_path_factory.mktemp("explore") / "explore.html"
    explore.write_page(vit, images, 64, path, parts)
    text = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r"const DATA = (.*);\n", text)[1])
    return path, data, F.normalize(fine_tokens(vit, images, 64).double(), dim=-1)


def test_cosines_of_the_page(page):
    """Decoded cosines differ from the exact ones by 0.02 at most; 98 % of patches keep their best match."""
    path, data, x = page
    codes = torch.from_numpy(np.frombuffer(base64.b64decode(data["features"]), np.int16).astype(np.float64))
    decoded = codes.view(6 * 256, -1) / 32767  # (P, k)
    exact, found = x.flatten(0, 1) @ x.flatten(0, 1).T, decoded @ decoded.T  # (P, P)
    assert (exact - found).abs().max() < 0.02
    best = [c.view(-1, 6, 256).argmax(2) for c in (exact, found)]
    assert (best[0] == best[1]).double().mean() >= 0.98
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|fetch\(", text) and path.stat().st_size < 3e6


def test_pointing_rings_the_best_match(page, browse):
    """The pointer on row 5, column 7 of the second picture: each other picture rings the patch of largest cosine."""
    path, data, x = page
    drive = """onload = () => {
      const c = document.querySelectorAll("canvas")[1], b = c.getBoundingClientRect();
      c.dispatchEvent(new PointerEvent("pointermove", {clientX: b.left + b.width * 7.5 / 16,
                                                       clientY: b.top + b.height * 5.5 / 16}));
      document.body.dataset.found = [...document.querySelectorAll("canvas")].map(c => c.dataset.best);
      document.body.dataset.words = [...document.querySelectorAll("figcaption")].map(c => c.textContent); };"""
    shown = browse(path, drive)
    best = (x @ x[1, 5 * 16 + 7]).argmax(1).tolist()
    assert re.search(r'data-found="([^"]*)"', shown)[1] == ",".join(map(str, best))
    parts = np.frombuffer(base64.b64decode(data["parts"]), np.uint8).reshape(6, 256)
    said = re.search(r'data-words="([^"]*)"', shown)[1].split(",")[1::2]
    assert said == [f" {data['names'][parts[i, n]]}" for i, n in enumerate(best)]


def test_many_images_get_fewer_patches(tmp_path, capsys):
    """So that the page of 64 images stays below 3 MB; one line says how many."""
    vit = vit_pico(patch_size=8, img_size=128).eval()
    explore.write_page(vit, draw_shapes("test", 32, 0)[0][:64], 128, tmp_path / "e.html")
    assert "at 56 pixels, not 128; a page of 64 has at most 196 patches an image" in capsys.readouterr().err
    assert (tmp_path / "e.html").stat().st_size < 3e6
