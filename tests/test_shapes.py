"""The built-in pictures: reproducible, of the right size and place, smooth, and too hard for raw pixels.

Run: python -m pytest tests/test_shapes.py
"""

import pytest
import torch
import torch.nn.functional as F

from support import shapes
from support.data import load_images


@pytest.fixture
def few_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "N_IMAGES", {"train": 1500, "test": 300})


def test_shapes_come_from_the_seed(monkeypatch):
    monkeypatch.setattr(shapes, "N_IMAGES", {"train": 20, "test": 20})
    one, same, other, test, next_test = (load_images("shapes", split, size=32, seed=seed) for split, seed in (
        ("train", 1), ("train", 1), ("train", 2), ("test", 1), ("test", 0)))
    assert torch.equal(one.pixels, same.pixels) and torch.equal(one.masks, same.masks)
    for different in (other, test, next_test):
        assert not (one.pixels.flatten(1)[:, None] == different.pixels.flatten(1)).all(-1).any()
    assert one.pixels.shape == (20, 3, 32, 32) and one.masks.shape == (20, 32, 32) and len(one.classes) == 10
    assert one.labels.bincount().tolist() == [2] * 10


def test_shapes_cover_what_they_should(few_shapes):
    """Areas are drawn from AREA; the pixel grid adds less than a hundredth."""
    images = load_images("shapes", size=64)
    area = images.masks.float().mean((1, 2))
    low, high = shapes.AREA
    assert area.min() > low - 0.01 and area.max() < high + 0.01
    for kind in range(10):
        assert abs(area[images.labels == kind].mean() - (low + high) / 2) < 0.02  # 150 draws: 5 deviations


def test_shapes_lie_within_the_unit_disc():
    """So that a thing of radius r placed r from the border is never cut off; a pixel of the grid is 0.004."""
    line = torch.linspace(-1.2, 1.2, 601)
    x, y = line.expand(601, 601), line[:, None].expand(601, 601)
    for name, (shape, _) in shapes.KINDS.items():
        assert 0.97 < torch.hypot(x, y)[shape(x, y) < 0].max() < 1.005, name


def test_edges_are_smooth():
    """A picture equals the one drawn four times as large and averaged over 4×4, to a few grey levels."""
    shape, texture = shapes.KINDS["plain octagon"]
    small, large = (shapes.draw(shape, texture, 50, size, torch.Generator().manual_seed(0))[0].float()
                    for size in (64, 256))
    error = (F.avg_pool2d(large, 4) - small).abs()
    assert error.quantile(0.99) < 5  # edges of half or twice the width: 15 and 13


def test_mask_is_where_the_thing_is(few_shapes):
    """A plain thing has one colour, two pixels within its mask; outside hardly a pixel happens to have it."""
    images = load_images("shapes", "test", size=64)
    plain = images.labels == images.classes.index("plain octagon")
    pixels, masks = images.pixels[plain], images.masks[plain].float()[:, None]  # (n, 3, S, S), (n, 1, S, S)
    inner = F.max_pool2d(F.pad(1 - masks, (2, 2, 2, 2), value=1), 5, 1)[:, 0] == 0  # a border is an edge
    outer = F.max_pool2d(masks, 5, 1, 2)[:, 0] == 0
    colours = torch.stack([p[:, m][:, 0] for p, m in zip(pixels, inner)])[:, :, None, None]
    same = (pixels == colours).all(1)  # (n, S, S)
    assert same[inner].all() and same[outer].float().mean() < 1e-3
    assert inner.float().mean() > 0.08 and outer.float().mean() > 0.5


def test_shapes_are_not_told_apart_by_raw_pixels(few_shapes):
    """20 nearest neighbours by cosine, the mean picture subtracted: above chance (0.1), far from solved."""
    train, test = (load_images("shapes", split, size=32) for split in ("train", "test"))
    mean = train.pixels.float().mean(0)
    a, b = (F.normalize((images.pixels.float() - mean).flatten(1), dim=1) for images in (train, test))
    votes = train.labels[(b @ a.T).topk(20).indices]  # (300, 20)
    accuracy = (votes.mode(1).values == test.labels).float().mean()
    assert 0.1 < accuracy < 0.45
