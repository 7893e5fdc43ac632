"""The hash that copies share: by hand, and on drawn images.  `pytest tests/curation/test_pca_hash.py`"""

import io

import numpy as np
import pytest
from PIL import Image

from curation import pca_hash
from curation.pca_hash import averaging, copies, hashes, principal_components

N = 60


@pytest.fixture(scope="module")
def images():
    """Soft random colours, coarse to fine, as in photos."""
    generator, layers = np.random.default_rng(0), ((3, 0.5), (6, 0.25), (12, 0.15), (24, 0.1))

    def soft(side):
        colours = Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
        return np.asarray(colours.resize((96, 96), Image.Resampling.BICUBIC), float)

    return [Image.fromarray(sum(weight * soft(side) for side, weight in layers).astype(np.uint8)) for _ in range(N)]


def thumbnails(images):
    """(N, 64, 64) uint8."""
    return np.stack([image.convert("L").resize((64, 64), Image.Resampling.BILINEAR) for image in images])


def pairs(h, n_bits):
    return {tuple(sorted(map(int, p))) for p in copies(h, n_bits) if p[0] != p[1]}


def test_averaging_by_hand(monkeypatch):
    """T = 4 cells, S = 2 parts. Whole: cells 1, 2 and 3, 4. From ¼ to 1, 1.5 cells each: 2 and half of 3, the rest."""
    monkeypatch.setattr(pca_hash, "T", 4)
    monkeypatch.setattr(pca_hash, "S", 2)
    np.testing.assert_allclose(averaging(0, 1), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(averaging(0.25, 1), [[0, 2 / 3, 1 / 3, 0], [0, 0, 1 / 3, 2 / 3]])


def test_copies_by_hand():
    """Hashes 0, 3 (2 bits from 0), 7 (3 from 0, 1 from 3), 2⁶³ (1 from 0), all 64 bits, 3 again; one window.  Equal
    hashes stand for the first: 7 is paired with image 1, not with image 5."""
    h = np.array([0, 3, 7, 2**63, 2**64 - 1, 3], dtype=np.uint64)[:, None]
    assert pairs(h, 0) == {(1, 5)}
    assert pairs(h, 1) == {(1, 5), (1, 2), (2, 5), (0, 3)}
    assert pairs(h, 2) == {(1, 5), (1, 2), (2, 5), (0, 3), (0, 1), (0, 5)}
    windows = np.array([[0, 9], [9, 2**40 - 1], [2**40 - 2, 77]], dtype=np.uint64)  # 1's window is near 2's whole image
    assert pairs(windows, 1) == {(0, 1), (1, 2)}


def test_principal_components_are_orthonormal_and_few_images_do(images):
    for n in (0, 1, 20):
        V = principal_components(thumbnails(images)[:n])
        np.testing.assert_allclose(V @ V.T, np.eye(64), atol=1e-9)
        np.testing.assert_allclose(V.sum(1), 0, atol=1e-6)  # brightness is taken out


def test_hashes_in_blocks(images, monkeypatch):
    grey = thumbnails(images)
    V = principal_components(grey)
    whole = hashes(grey, V)
    monkeypatch.setattr(pca_hash, "BLOCK", 25)
    assert np.array_equal(hashes(grey, V), whole) and whole.shape == (N, 5)


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
    grey = thumbnails([*images, *map(change, images)])
    h = hashes(grey, principal_components(grey))
    whole, found = pairs(h[:, :1], 4), pairs(h, 4)
    assert found <= {(i, i + N) for i in range(N)}
    if change(images[0]).size == (91, 91):  # soft noise is harder than photos; the windows are what finds it
        assert len(found) >= 0.5 * N and len(found) >= 2 * len(whole)
    else:
        assert len(found) >= 0.9 * N
