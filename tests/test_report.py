"""What a person sees of a run.  `pytest tests/test_report.py`"""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from recipes import RECIPES
from support.report import draw_curves, draw_pictures, measure_knn, peak_memory


class MeanColour:
    """A stand-in for a ViT whose features are the mean colour: of the image, and of each 4×4 patch."""

    patch_size, training = 4, False

    def parameters(self):
        return iter([torch.zeros(1)])

    def eval(self):
        return self

    def train(self, mode):
        return self

    def forward_features(self, x):
        patches = torch.nn.functional.avg_pool2d(x, 4).flatten(2).mT
        return {"x_norm_clstoken": x.mean((2, 3)), "x_norm_patchtokens": patches}


class Split(SimpleNamespace):
    def __len__(self):
        return len(self.names)


def split(colours, labels=None):
    """One 8×8 image of each colour (r, g, b)."""
    pixels = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    labels = None if labels is None else torch.tensor(labels)
    return Split(pixels=pixels, labels=labels, masks=None, names=range(len(colours)))


def test_knn_by_hand():
    """Red and blue pictures are nearest to their own; the third test picture is red with the label of blue: 2 of 3."""
    train = split([(250, 0, 0), (240, 0, 0), (0, 0, 250), (0, 0, 240)], [0, 0, 1, 1])
    test = split([(245, 0, 0), (0, 0, 245), (245, 0, 0)], [0, 1, 1])
    found = measure_knn(MeanColour(), train, test, 8)
    assert found["knn_20"] == found["knn_200"] == pytest.approx(2 / 3)


def test_knn_of_a_share_of_the_training_images():
    """Only one training image is drawn, so all get its label: of two test images with labels 0 and 1, one is right."""
    train = split([(250, 0, 0), (0, 0, 250)], [0, 1])
    test = split([(245, 0, 0), (0, 0, 245)], [0, 1])
    assert measure_knn(MeanColour(), train, test, 8, n_train=1)["knn_20"] == 0.5


def test_no_labels_no_knn():
    assert measure_knn(MeanColour(), split([(1, 2, 3)]), split([(1, 2, 3)]), 8) == {}


def test_pictures_and_their_iou(tmp_path):
    """The middle quarter is white on black, and the foreground is it alone: the IoU is 1.  Unknown masks: None."""
    test = split([(0, 0, 0)] * 3)
    test.pixels = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    test.pixels[:, :, 4:12, 4:12] = 255
    assert draw_pictures(MeanColour(), test, 16, tmp_path / "pca.png") is None
    test.masks = test.pixels[:, 0] > 0
    assert draw_pictures(MeanColour(), test, 16, tmp_path / "pca.png") == 1
    assert min(Image.open(tmp_path / "pca.png").size) > 100


def test_curves_of_a_run_without_rows_or_labels(tmp_path):
    draw_curves([], RECIPES["shapes"], tmp_path / "curves.png")
    rows = [{"step": 1, "dino": 2.0, "ibot": 1.0}, {"step": 2, "dino": 1.0}, {"step": 2, "knn_20": 0.5}]
    draw_curves(rows, RECIPES["shapes"], tmp_path / "more.png")
    sizes = [Image.open(tmp_path / name).size for name in ("curves.png", "more.png")]
    assert sizes[0] == sizes[1] == (1500, 400)


def test_memory_is_that_of_this_process():
    """PyTorch alone takes more than 50 MB; a megabyte read as a kilobyte, or the other way round, is out of range."""
    assert 50e6 < peak_memory(torch.device("cpu")) < 50e9
