"""Nearest neighbours: by hand, against brute force, and through the approximate index.

    pytest tests/curation/test_neighbours.py
"""

import numpy as np

from curation import neighbours
from curation.neighbours import nearest


def unit(n, d, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def planted(n, d):
    """Unit vectors; row n/2 + i has a cosine between 0.8 and 0.95 to row i."""
    x = unit(n, d)
    cosine = np.random.default_rng(1).uniform(0.8, 0.95, (n // 2, 1)).astype(np.float32)
    other = unit(n // 2, d, seed=2)
    other -= (other * x[: n // 2]).sum(1, keepdims=True) * x[: n // 2]
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    x[n // 2 :] = cosine * x[: n // 2] + np.sqrt(1 - cosine**2) * other
    return x


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

    monkeypatch.setattr(neighbours, "build_index", lambda x, seed: Index())
    x = np.array([[1, 0], [-1, 0], [1, 0]], dtype=np.float32)
    cosines, ids = nearest(x[:1], x, 2)
    assert ids.tolist() == [[1, -1]] and cosines.tolist() == [[-1, -1]]


def test_as_brute_force_in_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 30)
    q, x = unit(100, 16), unit(400, 16, seed=1)
    product = q.astype(np.float64) @ x.T.astype(np.float64)
    order = np.argsort(-product, axis=1)[:, :5]
    cosines, ids = nearest(q, x, 5)
    assert np.array_equal(ids, order)
    assert np.array_equal(cosines, np.take_along_axis(product, order, 1).astype(np.float32))  # float64, rounded once


def test_the_approximate_index_finds_the_planted_ones(monkeypatch):
    """Random vectors have no cells, so this is its hardest case.  The same seed gives the same answer."""
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 1000)
    x = planted(20_000, 64)
    cosines, ids = nearest(x[:10_000], x, 2)
    found = ids[:, 1] == np.arange(10_000, 20_000)
    assert 0.99 <= found.mean() < 1  # the exact index finds all
    exact = (x[:10_000].astype(np.float64) * x[10_000:]).sum(1)
    np.testing.assert_allclose(cosines[found, 1], exact[found], rtol=1e-6)  # not what the codes say
    again = nearest(x[:10_000], x, 2)
    assert np.array_equal(again[0], cosines) and np.array_equal(again[1], ids)
