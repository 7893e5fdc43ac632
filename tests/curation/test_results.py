"""The picture of a selection.  `pytest tests/curation/test_results.py`"""

from conftest import save
from PIL import Image

from curation.results import draw_selected


def test_selected_images_as_a_picture(tmp_path):
    """Two rows, the longer one of three images of 112 pixels and 4 around each, black around the first of a row."""
    raw = str(save(tmp_path / "a.png", (255, 0, 0)))
    draw_selected([[raw, raw], [raw, "gone.png", raw]], tmp_path / "selected.png", (None, 100))
    with Image.open(tmp_path / "selected.png") as image:
        assert image.size == (360, 240)
        counts = {colour: count for count, colour in image.convert("RGB").getcolors()}
    frame, whole = 120**2 - 112**2, 120**2
    assert counts == {(255, 0, 0): 4 * 112**2, (0, 0, 0): 2 * frame, (255, 255, 255): 2 * frame + 2 * whole}
