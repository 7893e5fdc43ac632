"""The picture of a selection.  `pytest tests/curation/test_results.py`"""

from conftest import save

from curation.results import draw_selected


def test_selected_images_as_a_picture(tmp_path):
    """Two rows of three images of 112 pixels and 4 around each, black around the first of a row; one is not there."""
    raw = str(save(tmp_path / "a.png", (255, 0, 0)))
    image = draw_selected([[raw, raw, raw], [raw, "gone.png", raw]], (None, 100))
    frame, square = 120**2 - 112**2, 112**2
    assert image.size == (360, 240)
    assert {colour: count for count, colour in image.getcolors()} == {
        (255, 0, 0): 5 * square, (0, 0, 0): 2 * frame, (255, 255, 255): 4 * frame + square}  # fmt: skip
