"""One scale for all deep pictures of a set, from a look at some of them.

    pytest tests/test_survey.py
"""

import numpy as np
import pytest
from conftest import save
from PIL import Image

from support.images import load_images, load_splits, read_images, survey

pytestmark = pytest.mark.usefixtures("cache")


def deep(path, *values, dtype=np.uint16, **options):
    """A picture of 2×2 with these values, repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, dtype), (2, 2))).save(path, **options)


def looked_at(folder):
    names = sorted(path.name for path in folder.iterdir())
    return survey(names, lambda name: (folder / name).read_bytes())


@pytest.mark.parametrize("dtype, values, scale", [
    (np.uint16, [(100, 200), (300, 4095)], (0, 4095)), (np.uint16, [(0, 1), (0, 65535)], (0, 65535)),
    (np.float32, [(0, 0.5), (0.25, 1)], (0, 1)), (np.int32, [(0, 9), (-9999, 1000)], (0, 1023)),
    (np.float32, [(np.nan, 2.5), (np.inf, 2.5)], (2.5, 3.5)),
])  # fmt: skip
def test_a_scale_is_of_all_files(tmp_path, dtype, values, scale):
    for i, some in enumerate(values):
        deep(tmp_path / f"{i}.tif", *some, dtype=dtype)
    found, notes = looked_at(tmp_path)
    assert found == scale
    assert notes == [f"deep pictures, their values {scale[0]:g} to {scale[1]:g} shown as 0 to 255 (--scale LOW HIGH)"]


def test_the_ends_are_exact(tmp_path):
    """Of a picture of 512², every fourth of its values is looked at, but its highest, in the second column, counts."""
    x = np.ones((512, 512), np.uint16)
    x[:, 1] = 4000
    Image.fromarray(x).save(tmp_path / "a.png")
    assert looked_at(tmp_path)[0] == (0, 4095)


def test_folders_with_the_same_names(tmp_path, capsys):
    """Both count, in whatever order they are given."""
    deep(tmp_path / "a/0.png", 1000)
    deep(tmp_path / "b/0.png", 60000)
    for order in ("ab", "ba"):
        images = read_images([tmp_path / kind for kind in order], 2, 1, False)
        assert sorted(int(image[0, 0, 0]) for image in images) == [4, 233]  # 1000 and 60000 of 65535
        assert "0 to 65535" in capsys.readouterr().err


def test_shallow_and_broken_files_say_nothing(tmp_path):
    save(tmp_path / "a.png", 9)
    save(tmp_path / "b.jpg", 9)
    (tmp_path / "c.tif").write_text("broken")
    assert looked_at(tmp_path) == (None, [])
    assert survey([], None) == (None, [])


def test_a_tone_means_the_same_in_two_pictures(tmp_path, capsys):
    """Twelve bits: 1024 of 4095 is 63.77, whatever else its picture holds; where --scale says so, 1024 is white."""
    for name, value in (("train/a", 4095), ("train/b", 1024), ("test/a", 1024), ("test/b", 2048)):
        deep(tmp_path / "set" / name / "0.png", value)
    train, test = load_splits(tmp_path / "set", 2, 0)
    assert train.pixels[:, 0, 0, 0].tolist() == [255, 64] and test.pixels[:, 0, 0, 0].tolist() == [64, 128]
    assert capsys.readouterr().out.count("their values 0 to 4095 shown as 0 to 255") == 1
    asked = load_images(tmp_path / "set", "test", 2, scale=(0, 1024))
    assert asked.pixels[:, 0, 0, 0].tolist() == [255, 255]
    one, two = read_images([f"{tmp_path}/set/test/{kind}/0.png" for kind in "ab"], 2, 1, False)
    assert one[0, 0, 0] == 64 and two[0, 0, 0] == 128  # these two alone: 2048 wants 12 bits, too
    assert "0 to 4095" in capsys.readouterr().err


def test_pages_are_counted(tmp_path):
    page = Image.new("L", (2, 2), 9)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    page.save(tmp_path / "b.tif")
    assert looked_at(tmp_path) == (None, ["1 of 2 files looked at have several pages, of which the first is read"])
