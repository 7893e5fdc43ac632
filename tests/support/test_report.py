"""What a person looks at: curves.png, and what a curation selected.  `pytest tests/test_report.py`"""

from conftest import save
from matplotlib.axes import Axes
from PIL import Image

from recipes import RECIPES
from support.report import draw_curves, draw_selected, write_selected


def test_curves_of_a_run_without_rows_or_labels(tmp_path):
    draw_curves([], RECIPES["shapes"], tmp_path / "curves.png")
    rows = [{"step": 1, "dino": 2.0, "ibot": 1.0}, {"step": 2, "dino": 1.0}, {"step": 2, "knn_20": 0.5}]
    draw_curves(rows, RECIPES["shapes"], tmp_path / "more.png")
    sizes = [Image.open(tmp_path / name).size for name in ("curves.png", "more.png")]
    assert sizes[0] == sizes[1] == (1500, 400)


def test_k_nn_stands_over_the_arithmetic(tmp_path, monkeypatch):
    """2 TFLOP at step 1, 4 at step 2; the losses stand over the steps."""
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda axes, *points, **look: drawn.append(points[:2]))
    rows = [{"step": i, "dino": 3.0, "knn_20": i / 4, "training_flops": i * 2 * 10**12} for i in (1, 2)]
    draw_curves(rows, RECIPES["shapes"], tmp_path / "curves.png")
    assert drawn == [((1, 2), (3.0, 3.0)), ((2.0, 4.0), (0.25, 0.5))]


def test_selected_images_line_by_line(tmp_path):
    write_selected(tmp_path / "selected.csv", ["a,b.png", "c.png"], "samples", ["x.png", "y.png"], [0.5, 1 / 3])
    assert (tmp_path / "selected.csv").read_text().splitlines() == [
        "path,stage,nearest_curated,cosine", '"a,b.png",samples,x.png,0.500000', "c.png,samples,y.png,0.333333",
    ]  # fmt: skip


def test_selected_images_as_a_picture(tmp_path):
    """Two rows, the longer one of three images of 112 pixels and 4 around each, black around the first of a row."""
    raw = save(tmp_path / "a.png", (255, 0, 0)).read_bytes()
    draw_selected([[raw, raw], [raw, raw, raw]], tmp_path / "selected.png")
    with Image.open(tmp_path / "selected.png") as image:
        assert image.size == (360, 240)
        counts = {colour: count for count, colour in image.convert("RGB").getcolors()}
    frame, whole = 120**2 - 112**2, 120**2
    assert counts == {(255, 0, 0): 5 * 112**2, (0, 0, 0): 2 * frame, (255, 255, 255): 3 * frame + whole}
