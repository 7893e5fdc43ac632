"""Block-wise masks: fixed counts, even coverage, blocks rather than dots.  `pytest tests/test_masking.py`"""

import pytest
import torch

from masking import random_rectangles, sample_masks


def seeded(seed):
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def test_counts_by_hand():
    """8 images at one half: 4 are masked. The strata of (0.1, 0.5) have middles 0.15, 0.25, 0.35, 0.45; of 100 patches
    these are 15, 25, 35 and 45. Of 7 images int(3.5) = 3 are masked; a count that rounds to 0 leaves them unmasked."""
    masks = sample_masks(8, 10, 10, ratio=(0.1, 0.5), probability=0.5, generator=seeded(0))
    assert masks.shape == (8, 100) and masks.dtype == torch.bool and masks.device.type == "cpu"
    assert sorted(masks.sum(dim=1).tolist()) == [0, 0, 0, 0, 15, 25, 35, 45]
    assert sample_masks(4, 6, 7, (1.0, 1.0), probability=1.0).all() and not sample_masks(4, 6, 7, probability=0.0).any()
    for height, width, count in ((1, 9, 4), (5, 12, 30), (2, 2, 2), (1, 1, 0)):
        counts = sample_masks(7, height, width, (0.5, 0.5)).sum(dim=1)
        assert sorted(counts.tolist()) == [0] * 4 + [count] * 3


def test_rectangles_have_the_aspects_of_the_docstring():
    """h/w from 0.3 to 3.3 with 1 in the middle: log h/w has deviation log(1/0.3)/√3 = 0.695.

    Of 20,000 rectangles of 4 to 1000 patches, some 9,600 have 200 patches or more and do not touch the edge.  Their
    mean logarithm is off by 0.007, and 0.035 is 5 σ.  Rounding the sides, of 8 at least, moves the aspect by up to 7 %.
    """
    masks = random_rectangles(torch.full((20_000,), 1000), 200, 200, seeded(0))
    rows, columns = masks.any(dim=2), masks.any(dim=1)
    h, w = rows.sum(dim=1), columns.sum(dim=1)
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    aspect = (h / w)[inside & (h * w >= 200)]
    assert 0.28 < aspect.min() < 0.32 and 3.1 < aspect.max() < 3.57
    assert abs(aspect.log().mean()) < 0.035
    assert (h * w).max() < 1.05 * 1000


def test_reproducible_from_a_generator_or_from_the_global_seed():
    before = torch.get_rng_state()
    first, again, other = (sample_masks(16, 8, 8, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    assert torch.equal(sample_masks(16, 8, 8), first)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (6, 14)])
def test_every_patch_is_masked_about_equally_often(height, width):
    """The official generator masks corners 4 % of the time and the centre 52 %; ours must keep within 30 ± 5 %.

    12 800 masks: a frequency of 0.3 is off by √(0.3·0.7/12 800) = 0.004. Our own is 0.29 in the corners and 0.31
    in the centre, which leaves 10 σ: a chance below 10⁻²⁰ for each patch.
    """
    often = sample_masks(12_800, height, width, probability=1.0, generator=seeded(0)).float().mean(dim=0)
    assert often.mean() == pytest.approx(0.3, abs=1e-3)
    assert 0.25 < often.min() and often.max() < 0.35, "some patch is masked too rarely or too often"


def test_every_image_is_masked_equally_often_and_at_every_ratio():
    """200 draws of 4 images: each has 20 or 40 masked patches of 100, a quarter of the time each, or none. Mean 15,
    variance (20² + 40²)/4 − 15² = 275, so the mean of 200 is off by 1.17. We allow 6 σ = 7: a chance of 10⁻⁸.
    """
    counts = torch.stack([sample_masks(4, 10, 10, generator=seeded(s)).sum(dim=1) for s in range(200)]).float()
    assert ((counts > 0).sum(dim=1) == 2).all()
    assert (counts.mean(dim=0) - 15).abs().max() < 7


def test_masks_are_blocks():
    """Of neighbouring patches masked at random with share s, s² + (1 − s)² are alike: 0.58 at 0.3. Blocks: nine in ten.

    256 masks of 480 pairs each make the mean certain to 0.01; we ask for more than 0.8 on average, and that each mask
    with at least 0.2 of its patches beats dots by 0.1.
    """
    masks = sample_masks(256, 16, 16, probability=1.0, generator=seeded(0))
    m, share = masks.view(-1, 16, 16), masks.float().mean(dim=1)
    down, across = (m[:, 1:] == m[:, :-1]).float().mean((1, 2)), (m[:, :, 1:] == m[:, :, :-1]).float().mean((1, 2))
    alike = (down + across) / 2
    assert alike.mean() > 0.8, "the masks are dots, not blocks: too few neighbours are alike"
    assert (alike - share**2 - (1 - share) ** 2)[share > 0.2].min() > 0.1


def test_a_rectangle_of_more_patches_than_are_missing_is_rejected(monkeypatch):
    """8 of 16 patches are to be masked, and every rectangle has 12, the upper three rows.  So the masks are single
    patches, and some lie in the last row; by chance none of 20 masks does with probability 0.04²⁰."""
    rectangle = torch.arange(16).view(4, 4) < 12
    monkeypatch.setattr("masking.random_rectangles", lambda missing, *_: rectangle.expand(len(missing), 4, 4))
    masks = sample_masks(40, 4, 4, ratio=(0.5, 0.5))
    assert masks.view(40, 4, 4)[:, 3].any(), "all masked patches lie in the rectangle of 12, which should be rejected"
    assert masks.sum() == 160
