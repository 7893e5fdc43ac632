"""The images of curation: names, broken ones, features.  `pytest tests/test_sources.py`"""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from curation.sources import Source, embed, look_at, name_broken, picture_or_grey, thumbnails
from support.files import UserError
from vit import vit_pico

HOW = (None, 100)


@pytest.fixture
def folder(tmp_path):
    """a.png of 20×10 and level 10, c.png of 16×16 and level 200, and between them one that is none."""
    (tmp_path / "some").mkdir()
    Image.new("RGB", (20, 10), (10, 10, 10)).save(tmp_path / "some" / "a.png")
    (tmp_path / "some" / "b.png").write_bytes(b"no picture")
    Image.new("RGB", (16, 16), (200, 200, 200)).save(tmp_path / "some" / "c.png")
    return tmp_path


def test_names_are_those_that_a_list_holds(folder, monkeypatch, capsys):
    """Absolute, in the order of the places, and leading into archives; a name that a line cannot hold is left out."""
    with zipfile.ZipFile(folder / "more.zip", "w") as file:
        file.write(folder / "some" / "a.png", "x/d.png")
    (folder / "some" / "two\nlines.png").write_bytes(b"")
    monkeypatch.chdir(folder)
    source = Source(["some", "more.zip"])
    names = "some/a.png", "some/b.png", "some/c.png", "more.zip/x/d.png"
    assert source.names() == [str(folder / name) for name in names]
    assert len(source) == 4 and source.raw(0) == source.raw(3) and source.raw(1) == b"no picture"
    assert "a list cannot hold its name" in capsys.readouterr().err


def test_nothing_to_choose_from_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        Source([tmp_path / "empty"])


def test_a_broken_picture_has_no_pixels_and_is_named_with_the_reason(folder, capsys):
    source = Source([folder / "some"])
    found = thumbnails(source, folder / "thumbnails.npy", HOW)
    assert found["pixels"].tolist() == [200, 0, 256]
    assert (found["grey"][0] == 10).all() and (found["grey"][2] == 200).all()
    capsys.readouterr()
    name_broken(source, found, HOW)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(folder / "some" / "b.png") in error


def test_a_picture_that_breaks_past_its_thumbnail_is_grey(folder):
    source = Source([folder / "some"])
    assert (picture_or_grey(source, 1, 16, HOW) == 128).all() and (picture_or_grey(source, 2, 16, HOW) == 200).all()


def test_all_sources_have_one_scale(folder):
    """Levels of 16 bits, 0 to 1000 in one folder and to 4000 in the other, are black and white for both together."""
    for name, top in (("low", 1000), ("high", 4000)):
        (folder / name).mkdir()
        Image.fromarray(np.array([[0, top]] * 2, dtype=np.uint16)).save(folder / name / "a.png")

    class args:
        scale, max_megapixels = None, 100

    low, high = Source([folder / "low"]), Source([folder / "high"])
    assert look_at([low, high], args) == look_at([high, low], args) == look_at([high], args) != look_at([low], args)
    assert look_at([low], args)[1] == 100


def test_features_are_the_networks_cls_with_length_one(folder):
    """Of the chosen ones in their order; the file is there when it is asked for again, and the network is not."""
    vit, source, file = vit_pico(patch_size=8, img_size=16).eval(), Source([folder / "some"]), folder / "features.npy"
    e = embed(vit, source, np.array([2, 0]), 16, file, "embed", HOW)
    level = (torch.tensor([200.0, 10.0]) / 255).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        cls = vit((level - mean) / deviation)
    np.testing.assert_allclose(e, cls / cls.norm(dim=1, keepdim=True), atol=1e-5)
    again = embed(vit_pico(patch_size=8, img_size=16), source, np.array([2, 0]), 16, file, "embed", HOW)
    assert np.array_equal(again, e)
