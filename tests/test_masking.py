"""Block-wise masks: counts that never vary, even coverage, blocks rather than dots, and the smallest grids.

    pytest tests/test_masking.py
"""

import math
from itertools import product

import pytest
import torch
from scipy.ndimage import label

from masking import sample_masks


def seeded(seed):
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def equal_neighbours(masks, height, width):
    """Share of the pairs of neighbouring patches that are both masked or both not; for each image (n,)."""
    m = masks.view(-1, height, width)
    down = (m[:, 1:] == m[:, :-1]).flatten(1)
    across = (m[:, :, 1:] == m[:, :, :-1]).flatten(1)
    return torch.cat([down, across], dim=1).float().mean(dim=1)


# ---------------------------------------------------------------------------- counts


def test_counts_by_hand():
    """8 images at one half: 4 are masked. The strata of (0.1, 0.5) have middles 0.15, 0.25, 0.35, 0.45; of 100 patches
    these are 15, 25, 35 and 45."""
    masks = sample_masks(8, 10, 10, ratio=(0.1, 0.5), probability=0.5, generator=seeded(0))
    assert masks.shape == (8, 100) and masks.dtype == torch.bool and masks.device.type == "cpu"
    assert sorted(masks.sum(dim=1).tolist()) == [0, 0, 0, 0, 15, 25, 35, 45]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 7), (5, 12), (37, 3), (2, 2), (1, 9), (1, 1)])
def test_counts_depend_on_the_arguments_only(height, width):
    """Two seeds give the same counts, each within the ratio to half a patch, in int(n·p) images.

    A count that rounds to 0, on the smallest grids, leaves its image unmasked.
    """
    N = height * width
    for n_images, probability in product([1, 2, 7, 32], [0.0, 0.3, 0.5, 1.0]):
        both = []
        for seed in range(2):
            masks = sample_masks(n_images, height, width, (0.1, 0.5), probability, seeded(seed))
            both.append(sorted(masks.sum(dim=1).tolist(), reverse=True))
        n = int(n_images * probability)
        assert both[0] == both[1]
        assert all(0.1 * N - 0.5 <= c <= 0.5 * N + 0.5 for c in both[0][:n])
        assert all(c == 0 for c in both[0][n:])


@pytest.mark.parametrize(("ratio", "expected"), [((0.0, 0.0), 0), ((1.0, 1.0), 42), ((0.5, 0.5), 21)])
def test_one_ratio_for_all(ratio, expected):
    masks = sample_masks(4, 6, 7, ratio, probability=1.0, generator=seeded(0))
    assert masks.sum(dim=1).tolist() == [expected] * 4


@pytest.mark.parametrize(("options", "words"), [
    ({"ratio": (0.5, 0.1)}, r"\(0.5, 0.1\)"), ({"ratio": (-0.1, 0.5)}, "interval"), ({"ratio": (0.1, 1.5)}, "interval"),
    ({"probability": 1.5}, "1.5"), ({"probability": -0.5}, "-0.5"),
])  # fmt: skip
def test_wrong_arguments_are_named(options, words):
    with pytest.raises(AssertionError, match=words):
        sample_masks(4, 4, 4, **options)


# ---------------------------------------------------------------------------- places


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
    assert 0.25 < often.min() and often.max() < 0.35


def test_every_image_is_masked_equally_often_and_at_every_ratio():
    """Which images are masked, and how much, must not depend on their place in the batch.

    200 draws of 4 images: each has 20 or 40 masked patches of 100, a quarter of the time each, or none. Mean 15,
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
    share = masks.float().mean(dim=1)
    alike = equal_neighbours(masks, 16, 16)
    assert alike.mean() > 0.8
    large = share > 0.2
    assert (alike - share**2 - (1 - share) ** 2)[large].min() > 0.1
    dots = torch.stack([m[torch.randperm(256, generator=seeded(i))] for i, m in enumerate(masks)])
    assert equal_neighbours(dots, 16, 16).mean() < 0.65


def test_masks_have_about_as_many_pieces_as_the_docstring_says():
    """4.5 connected pieces on average with a deviation of 1.5; the mean of 1000 is off by 0.05, and 0.3 is 6 σ."""
    masks = sample_masks(1000, 16, 16, probability=1.0, generator=seeded(1)).view(-1, 16, 16).numpy()
    assert abs(sum(label(mask)[1] for mask in masks) / 1000 - 4.5) < 0.3


def test_rectangles_lie_both_ways():
    """Aspects are drawn evenly about 1, so height and width play the same part on a square grid.

    The shares of equal pairs downwards and across agree to 0.02: 512 masks of 240 pairs, about 0.003 off.
    """
    masks = sample_masks(512, 16, 16, probability=1.0, generator=seeded(0)).view(-1, 16, 16)
    down = (masks[:, 1:] == masks[:, :-1]).float().mean()
    across = (masks[:, :, 1:] == masks[:, :, :-1]).float().mean()
    assert math.isclose(down, across, abs_tol=0.02)
