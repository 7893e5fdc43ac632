"""The hash that copies share: by hand, and on drawn images.  `pytest tests/curation/test_pca_hash.py`"""

import io

import numpy as np
import pytest
from PIL import Image

from curation.pca_hash import copies, hashes, principal_components, windows

N = 60


@pytest.fixture(scope="module")
def images():
    """Soft random colours, coarse to fine, as in photos."""
    generator, layers = np.random.default_rng(0), ((3, 0.5), (6, 0.25), (12, 0.15), (24, 0.1))

    def soft(side):
        colours = Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
        return np.asarray(colours.resize((96, 96), Image.Resampling.BICUBIC), float)

    return [Image.fromarray(sum(weight * soft(side) for side, weight in layers).astype(np.uint8)) for _ in range(N)]


def pairs(h, n_bits):
    return {tuple(sorted(map(int, p))) for p in copies(h, n_bits) if p[0] != p[1]}


def test_windows_by_hand():
    """Grey levels 2, 4, ..., 128 from left to right: a cell of the whole is a mean of 4 columns, which rises by 8.  The
    second window begins at 1.25 % of 64 columns and has cells of 3.8 columns: 2·0.8 further right, rising by 7.6.  The
    filter looks into the neighbouring cells, so the outermost ones are left out.
    """
    ramp = np.tile(np.arange(2, 130, 2, dtype=np.uint8), (64, 1))
    whole, second = windows(Image.fromarray(ramp))[:2].reshape(2, 16, 16)
    i = np.arange(1, 15)
    np.testing.assert_allclose(whole[:, i], np.tile(8 * i + 5, (16, 1)), atol=1)
    np.testing.assert_allclose(second[:, i], np.tile(7.6 * i + 1.6 + 4.8, (16, 1)), atol=1)


def test_copies_by_hand():
    """Hashes 0, 3 (2 bits from 0), 7 (3 from 0, 1 from 3), 2⁶³ (1 from 0), all 64 bits, 3 again; one window.  Equal
    hashes stand for the first: 7 is paired with image 1, not with image 5."""
    h = np.array([0, 3, 7, 2**63, 2**64 - 1, 3], dtype=np.uint64)[:, None]
    assert pairs(h, 0) == {(1, 5)}
    assert pairs(h, 1) == {(1, 5), (1, 2), (2, 5), (0, 3)}
    assert pairs(h, 2) == {(1, 5), (1, 2), (2, 5), (0, 3), (0, 1), (0, 5)}
    windows = np.array([[0, 9], [9, 2**40 - 1], [2**40 - 2, 77]], dtype=np.uint64)  # 1's window is near 2's whole image
    assert pairs(windows, 1) == {(0, 1), (1, 2)}


def as_jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


@pytest.mark.parametrize("change", [
    as_jpeg,
    lambda image: image.resize((48, 48)),
    lambda image: image.point(lambda v: v * 0.9 + 20),
    lambda image: image.crop((1, 1, 92, 92)),  # 5 % of each side, more on the right and below
], ids=["jpeg", "half", "brighter", "crop"])  # fmt: skip
def test_copies_are_found_and_nothing_else(images, change):
    x = np.stack([windows(image) for image in [*images, *map(change, images)]])
    h = hashes(x, principal_components(x[:, 0]))
    whole, found = pairs(h[:, :1], 4), pairs(h, 4)
    few = x[[0, 0, 0, 0, N]]  # nothing else in the set: most components are noise
    assert {(0, 1), (0, 2), (0, 3)} <= pairs(hashes(few, principal_components(few[:, 0])), 2)
    assert found <= {(i, i + N) for i in range(N)}
    if change(images[0]).size == (91, 91):  # soft noise is harder than photos; the windows are what finds it
        assert len(found) >= 0.5 * N and len(found) >= 2 * len(whole)
    else:
        assert len(found) >= 0.9 * N
