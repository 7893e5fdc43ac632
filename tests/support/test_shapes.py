"""The built-in images: seeds, parts, edges, and no answer in raw pixels.  `pytest tests/support/test_shapes.py`"""

import pytest
import torch
import torch.nn.functional as F

from evaluate import knn_accuracy
from support import shapes
from support.images import load_images


@pytest.fixture(scope="module")
def splits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "N_IMAGES", {"train": 2000, "test": 300})
        return [load_images("shapes", split, size=32) for split in ("train", "test")]


def test_shapes_come_from_the_seed(monkeypatch):
    monkeypatch.setattr(shapes, "N_IMAGES", {"train": 20, "test": 20})
    one, same, other, test, next_test = (load_images("shapes", split, size=32, seed=seed) for split, seed in (
        ("train", 1), ("train", 1), ("train", 2), ("test", 1), ("test", 0)))
    assert torch.equal(one.pixels, same.pixels) and torch.equal(one.parts, same.parts)
    for different in (other, test, next_test):
        assert not (one.pixels.flatten(1)[:, None] == different.pixels.flatten(1)).all(-1).any()
    assert one.pixels.shape == (20, 3, 32, 32) and one.parts.shape == (20, 32, 32) and len(one.classes) == 10
    assert one.labels.bincount().tolist() == [2] * 10


def test_kinds_have_their_parts(splits):
    """All of them, and no others; objects are cut off by the border, but never completely outside."""
    for images in splits:
        for label, kind in enumerate(images.classes):
            found = images.parts[images.labels == label].unique().tolist()
            drawn = {name for name, *_ in shapes.KINDS[kind][1](lambda low, high: low)}
            assert {shapes.PARTS[part - 1] for part in found if part} == drawn, kind
        bus = images.parts[images.labels == images.classes.index("bus")]
        wheels, windows = (torch.where(bus == shapes.PARTS.index(name) + 1)[1] for name in ("wheel", "window"))
        assert wheels.float().mean() > windows.float().mean() + 3  # rows: wheels are below windows
        foreground = images.parts > 0
        assert foreground.flatten(1).any(1).all() and 0.2 < foreground.float().mean() < 0.4
        borders = foreground[:, 0], foreground[:, -1], foreground[:, :, 0], foreground[:, :, -1]  # 4 of (N, S)
        assert torch.cat(borders, dim=1).any(1).float().mean() > 0.2


def test_a_thing_has_one_pose(monkeypatch):
    """The ten coats on the parts of ten kinds; the numbers of its parts are one for all of its images."""
    drawn = []
    monkeypatch.setattr(shapes, "draw", lambda thing, n, *_: drawn.append(thing) or (torch.zeros(n, 1), None))
    pixels, things = shapes.draw_things(8, seed=0, n=3)
    assert len(pixels) == 300 and things.bincount().tolist() == [3] * 100
    assert len({coat for coat, _ in drawn}) == 10
    for _, parts_of in drawn:
        for _, _, place, *numbers in parts_of(lambda low, high: torch.full((3, 1, 1, 1), low)):
            assert all(torch.as_tensor(number).numel() == 1 for number in (*place, *numbers))


@pytest.mark.parametrize("outline, sizes, inside, edge, outside", [
    (shapes.oval, (2.0, 1.0), (0, 0.9), (2, 0), (0, 1.5)),  # half axes
    (shapes.box, (2.0, 1.0), (1.9, 0.5), (2, 0), (2.5, 0)),  # half sides
    (shapes.box, (2.0, 1.0), (1.9, 0.9), (0, 1), (2, 1)),  # a round corner
    (shapes.limb, (2.0, 0.5, 0.1), (0, 0.4), (0, 0.5), (2, 0.2)),  # radius 0.5 at its start, 0.1 at its end
    (shapes.limb, (2.0, 0.5, 0.1), (1, 0.2), (1, 0.3), (1, 0.4)),  # and 0.3 half way
    (shapes.blade, (2.0, 0.5, 0.1), (1, 0.2), (1, 0.3), (-0.1, 0)),  # the same widths, straight ends
    (shapes.blade, (2.0, 0.5, 0.5, 1.0), (1, 0.5), (1, 0), (1, -0.2)),  # half way its middle is at b = 0.5
])  # fmt: skip
def test_outlines_are_distances(outline, sizes, inside, edge, outside):
    points = [torch.tensor(float(v)) for point in (inside, edge, outside) for v in point]
    sizes = [torch.tensor(size) for size in sizes]
    values = [outline(a, b, *sizes).item() for a, b in zip(points[::2], points[1::2])]
    assert values[0] < -0.01 and abs(values[1]) < 1e-6 and values[2] > 0.01


def test_edges_are_smooth(monkeypatch):
    """Without clouds, which depend on the size, an image nearly equals one four times as large, averaged over 4×4."""
    monkeypatch.setattr(F, "interpolate", lambda x, size, mode: torch.full((len(x), 1, size, size), 0.5))
    small, large = (shapes.draw(shapes.KINDS["dog"], 50, size, torch.Generator().manual_seed(0))[0].float()
                    for size in (64, 256))  # fmt: skip
    error = (F.avg_pool2d(large, 4) - small).abs()
    assert error.mean() < 3 and error.quantile(0.95) < 12


def test_pixels_do_not_tell_the_kind(splits):
    """Twenty nearest neighbours: above chance (0.1), and far from solved."""
    train, test = splits
    x, test_x = (images.pixels.flatten(1).float() for images in splits)
    assert 0.15 < knn_accuracy(x - x.mean(0), train.labels, test_x - x.mean(0), test.labels) < 0.45
