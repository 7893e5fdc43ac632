"""curves.png.  `pytest tests/test_report.py`"""

from PIL import Image

from recipes import RECIPES
from support.report import draw_curves


def test_curves_of_a_run_without_rows_or_labels(tmp_path):
    draw_curves([], RECIPES["shapes"], tmp_path / "curves.png")
    rows = [{"step": 1, "dino": 2.0, "ibot": 1.0}, {"step": 2, "dino": 1.0}, {"step": 2, "knn_20": 0.5}]
    draw_curves(rows, RECIPES["shapes"], tmp_path / "more.png")
    sizes = [Image.open(tmp_path / name).size for name in ("curves.png", "more.png")]
    assert sizes[0] == sizes[1] == (1500, 400)
