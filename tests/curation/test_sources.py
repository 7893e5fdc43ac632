"""The images of curation: paths, unreadable ones, features.  `pytest tests/curation/test_sources.py`"""

import zipfile

import numpy as np
import pytest
import torch
from conftest import save

from curation.sources import embed, find_images
from support.files import UserError
from vit import vit_pico

HOW = (None, 100)


@pytest.fixture
def some(tmp_path):
    """Folder `some`: a.png of 20×10 and level 10, b.png that is no image, c.png of 16×16 and level 200."""
    save(tmp_path / "some" / "a.png", 10, (20, 10))
    (tmp_path / "some" / "b.png").write_bytes(b"no picture")
    save(tmp_path / "some" / "c.png", 200, (16, 16))
    return tmp_path / "some"


def test_paths_are_those_that_a_list_holds(some, monkeypatch):
    """Absolute, and leading into archives.  A name with a line break is refused."""
    with zipfile.ZipFile(some.parent / "more.zip", "w") as file:
        file.write(some / "a.png", "x/d.png")
    monkeypatch.chdir(some.parent)
    assert find_images("some") == [str(some / name) for name in ("a.png", "b.png", "c.png")]
    assert find_images("more.zip") == [str(some.parent / "more.zip/x/d.png")]
    (some.parent / "empty").mkdir()
    (some / "two\nlines.png").write_bytes(b"")
    for place, words in (("empty", "empty"), ("some", r"two\\nlines.png': a list cannot hold")):
        with pytest.raises(UserError, match=words):
            find_images(place)


def test_features_are_the_networks_cls_with_length_one(some):
    """0 for the image that cannot be read."""
    vit = vit_pico(patch_size=8, img_size=16).eval()
    e = embed(vit, find_images(some), 16, HOW, some.parent)
    level = (torch.tensor([10.0, 200.0]) / 255).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        cls = vit((level - mean) / deviation)
    np.testing.assert_allclose(e[[0, 2]], cls / cls.norm(dim=1, keepdim=True), atol=1e-5)
    assert e.shape == (3, vit.embed_dim) and e.dtype == np.float32 and not e[1].any()
