"""Nearest neighbours: by hand, and through the approximate index.  `pytest tests/curation/test_neighbours.py`"""

import numpy as np

from curation import neighbours
from curation.neighbours import nearest


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_by_hand():
    """(1, 0), (0, 1), (0.6, 0.8), (0.6, 0.8) and the query (0.8, 0.6): cosines 0.8, 0.6, 0.96, 0.96.  Of the equal
    ones the first comes first.  There are no more than four neighbours."""
    x = np.array([[1, 0], [0, 1], [0.6, 0.8], [0.6, 0.8]], dtype=np.float32)
    cosines, ids = nearest(np.array([[0.8, 0.6]], dtype=np.float32), x, 5)
    assert ids.tolist() == [[2, 3, 0, 1]] and ids.dtype == np.int64
    np.testing.assert_allclose(cosines, [[0.96, 0.96, 0.8, 0.6]], rtol=1e-6)


def test_a_place_that_no_row_takes_is_minus_one(monkeypatch):
    """The index gives row 1, with cosine −1 to the query, and nothing else: id −1, which comes last."""

    class Index:
        def search(self, q, n):
            return None, np.array([[-1, 1, -1]])

    monkeypatch.setattr(neighbours, "build_index", lambda x: Index())
    x = np.array([[1, 0], [-1, 0], [1, 0]], dtype=np.float32)
    cosines, ids = nearest(x[:1], x, 2)
    assert ids.tolist() == [[1, -1]] and cosines.tolist() == [[-1, -1]]


def test_the_approximate_index_finds_the_planted_ones(monkeypatch):
    """Random vectors have no cells, so this is its hardest case.  The answer does not change."""
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 1000)
    x = unit(np.random.default_rng(0).standard_normal((20_000, 64), dtype=np.float32))
    x[10_000:] = unit(x[:10_000] + 0.6 * x[10_000:])  # row 10,000 + i has a cosine of about 0.86 to row i
    cosines, ids = nearest(x[:10_000], x, 2)
    found = ids[:, 1] == np.arange(10_000, 20_000)
    assert 0.99 <= found.mean() < 1  # the exact index finds all
    exact = (x[:10_000].astype(np.float64) * x[10_000:]).sum(1)
    np.testing.assert_allclose(cosines[found, 1], exact[found], rtol=1e-6)  # not what the codes say
    assert np.array_equal(nearest(x[:10_000], x, 2)[1], ids)
