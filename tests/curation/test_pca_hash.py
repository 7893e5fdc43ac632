"""The hash that copies share: by hand, and on drawn pictures and their copies.  `pytest tests/test_pca_hash.py`"""

import io

import numpy as np
import pytest
from PIL import Image

from curation import pca_hash
from curation.pca_hash import averaging, copies, hashes, principal_components
from curation.sources import thumbnail

N = 60
BICUBIC = Image.Resampling.BICUBIC
WEIGHTS = (0.5, 0.25, 0.15, 0.1)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures():
    """Soft random colours, coarse to fine, as in photos."""
    generator = np.random.default_rng(0)
    layers = [[Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize((96, 96), BICUBIC)
               for side in (3, 6, 12, 24)] for _ in range(N)]  # fmt: skip
    return [Image.fromarray(sum(w * np.asarray(x, float) for w, x in zip(WEIGHTS, pile)).astype(np.uint8))
            for pile in layers]  # fmt: skip


def thumbs(images):
    return np.array([thumbnail(raw) for raw in images], dtype=pca_hash.THUMBNAIL)


def test_averaging_by_hand(monkeypatch):
    """T = 4 cells, S = 2 parts. Whole: cells 1, 2 and 3, 4. From ¼ to 1, 1.5 cells each: 2 and half of 3, the rest."""
    monkeypatch.setattr(pca_hash, "T", 4)
    monkeypatch.setattr(pca_hash, "S", 2)
    np.testing.assert_allclose(averaging(0, 1), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(averaging(0.25, 1), [[0, 2 / 3, 1 / 3, 0], [0, 0, 1 / 3, 2 / 3]])


def test_copies_by_hand():
    """Hashes 0, 3 (2 bits from 0), 7 (3 from 0, 1 from 3), 2⁶³ (1 from 0), all 64 bits; one window."""
    h = np.array([0, 3, 7, 2**63, 2**64 - 1, 3], dtype=np.uint64)[:, None]

    def pairs(n_bits):
        return {tuple(sorted(map(int, p))) for p in copies(h, n_bits) if p[0] != p[1]}

    assert pairs(0) == {(1, 5)}
    assert pairs(1) == {(1, 5), (1, 2), (2, 5), (0, 3)}
    assert {(0, 1), (0, 3), (1, 2), (1, 5)} <= pairs(2) and not any(4 in pair for pair in pairs(2))


def test_copies_are_those_of_brute_force():
    generator = np.random.default_rng(0)
    h = generator.integers(0, 2**63, 300, dtype=np.uint64)
    for i in range(100):  # copies with 0 to 4 bits turned over
        h[i + 100] = h[i]
        for bit in generator.choice(64, i % 5, replace=False):
            h[i + 100] ^= np.uint64(1) << np.uint64(bit)
    distance = np.bitwise_count(h[:, None] ^ h)
    for n_bits in (0, 2, 3):
        found = {tuple(sorted(map(int, p))) for p in copies(h[:, None], n_bits) if p[0] != p[1]}
        expected = {(i, j) for i, j in np.argwhere(distance <= n_bits) if i < j}
        assert found == expected


def test_principal_components_are_orthonormal_and_few_pictures_do(pictures):
    for n in (0, 1, 20):
        grey = thumbs([encoded(p) for p in pictures[:n]])["grey"]
        V = principal_components(grey)
        np.testing.assert_allclose(V @ V.T, np.eye(64), atol=1e-9)
        np.testing.assert_allclose(V.sum(1), 0, atol=1e-6)  # brightness is taken out


def test_thumbnail_counts_the_pixels_of_the_file():
    t = thumbnail(encoded(Image.new("RGB", (300, 200), (10, 10, 10))))
    assert t["pixels"] == 60_000 and t["grey"].shape == (64, 64) and (t["grey"] == 10).all()


@pytest.mark.parametrize("change", ["jpeg", "half", "brighter", "crop"])
def test_copies_are_found_and_nothing_else(pictures, change):
    make = {
        "jpeg": lambda p: encoded(p, "JPEG", quality=30),
        "half": lambda p: encoded(p.resize((48, 48))),
        "brighter": lambda p: encoded(p.point(lambda v: v * 0.9 + 20)),
        "crop": lambda p: encoded(p.crop((1, 1, 92, 92))),  # 5 % of each side, more on the right and below
    }[change]
    t = thumbs([encoded(p) for p in pictures] + [make(p) for p in pictures])
    h = hashes(t["grey"], principal_components(t["grey"]))
    true = {(i, i + N) for i in range(N)}

    def found(h):
        pairs = {tuple(sorted(map(int, p))) for p in copies(h, 4) if p[0] != p[1]}
        assert not pairs - true
        return len(pairs)

    if change == "crop":  # soft noise is harder than photos; the windows are what finds it
        assert found(h) >= 0.5 * N and found(h) >= 2 * found(h[:, :1])
    else:
        assert found(h) >= 0.9 * N
