"""What curation writes.  `pytest tests/curation/test_results.py`"""

import csv

import numpy as np
from conftest import save
from PIL import Image

from curation.results import draw_selected, write_reasons


def test_the_nearest_curated_image_of_each_line_by_line(tmp_path):
    """Selected at 0° and 90°, curated at 60° and 180°: both are nearest to 60°, with cosines ½ and √¾."""
    paths, curated = [str(save(tmp_path / name, 9)) for name in ("a,b.png", "c.png")], ["x.png", "y.png"]
    e, e_curated = np.eye(2, dtype=np.float32), np.array([[0.5, 0.75**0.5], [-1, 0]], dtype=np.float32)
    write_reasons(tmp_path / "out.txt", paths, e, curated, e_curated, "samples", (None, 100), 0)
    with open(tmp_path / "out.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "stage", "nearest_curated", "cosine"],
            [paths[0], "samples", "x.png", "0.500000"], [paths[1], "samples", "x.png", "0.866025"],
        ]  # fmt: skip
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (3 * 120, 2 * 120)


def test_selected_images_as_a_picture(tmp_path):
    """Two rows, the longer one of three images of 112 pixels and 4 around each, black around the first of a row."""
    raw = str(save(tmp_path / "a.png", (255, 0, 0)))
    draw_selected([[raw, raw], [raw, "gone.png", raw]], tmp_path / "selected.png", (None, 100))
    with Image.open(tmp_path / "selected.png") as image:
        assert image.size == (360, 240)
        counts = {colour: count for count, colour in image.convert("RGB").getcolors()}
    frame, whole = 120**2 - 112**2, 120**2
    assert counts == {(255, 0, 0): 4 * 112**2, (0, 0, 0): 2 * frame, (255, 255, 255): 2 * frame + 2 * whole}
