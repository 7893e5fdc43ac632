"""Nearest neighbours: by hand, against brute force, through the approximate index, and over ranks.

    pytest tests/test_neighbours.py
"""

import numpy as np
import pytest
from conftest import in_ranks

import distributed
from curation import neighbours
from curation.neighbours import best, certain, exact_cosines, nearest, nearest_in_blocks, shard


def unit(n, d, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def planted(n, d, low=0.8):
    """Unit vectors, of which row n/2 + i has a cosine between `low` and 0.95 to row i."""
    x = unit(n, d)
    cosine = np.random.default_rng(1).uniform(low, 0.95, (n // 2, 1)).astype(np.float32)
    other = unit(n // 2, d, seed=2)
    other -= (other * x[: n // 2]).sum(1, keepdims=True) * x[: n // 2]
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    x[n // 2 :] = cosine * x[: n // 2] + np.sqrt(1 - cosine**2) * other
    return x


def test_by_hand():
    """(1, 0), (0, 1), (0.6, 0.8) and the query (0.8, 0.6): cosines 0.8, 0.6, 0.48 + 0.48."""
    x = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    cosines, ids = nearest(np.array([[0.8, 0.6]], dtype=np.float32), x, 2)
    assert ids.tolist() == [[2, 0]]
    np.testing.assert_allclose(cosines, [[0.96, 0.8]], rtol=1e-6)


def test_more_neighbours_than_there_are():
    cosines, ids = nearest(unit(2, 4), unit(3, 4, seed=1), 5)
    assert (ids[:, 3:] == -1).all() and (cosines[:, 3:] == -1).all() and (ids[:, :3] >= 0).all()
    assert [a.shape for a in nearest(unit(0, 4), unit(3, 4), 2)] == [(0, 2), (0, 2)]


def test_best_by_hand():
    """Falling scores; the equal ones, 5, by rising id; id −1 is nobody, whatever its score."""
    scores, ids = best(np.array([[5.0, 9, 5, 7]]), np.array([[8, -1, 3, 4]]), 3)
    assert ids.tolist() == [[4, 3, 8]] and scores.tolist() == [[7, 5, 5]]
    scores, ids = best(np.array([[5.0, 9]]), np.array([[8, -1]]), 2)
    assert ids.tolist() == [[8, -1]] and scores.tolist() == [[5, -np.inf]]


def test_what_ties_with_the_last_is_left_out():
    scores = np.array([[9.0, 7, 5, 5], [3, 3, 3, 3]])
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert certain(scores, ids).tolist() == [[1, 2, -1, -1], [5, 6, 7, 8]]


def test_copies_at_the_end_of_the_list_are_neighbours_all_the_same():
    """Two nearer rows and 200 equal ones, which fill the first lists of 32 and 128: the five nearest are the two and
    three of the equal ones, the lowest."""
    angles = np.arccos(np.array([0.95, 0.94] + [0.9] * 200))
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    cosines, ids = nearest(np.array([[1, 0]], dtype=np.float32), x, 5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]]
    np.testing.assert_allclose(cosines, [[0.95, 0.94, 0.9, 0.9, 0.9]], rtol=1e-6)


def test_more_copies_than_the_longest_list_holds(monkeypatch):
    monkeypatch.setattr(neighbours, "MOST", 40)
    x = np.repeat(np.array([[1, 0], [0.6, 0.8]], dtype=np.float32), [1, 100], axis=0)
    cosines, ids = nearest(x[:1], x, 3)
    assert ids[0, 0] == 0 and (ids[0, 1:] > 0).all() and cosines[0] == pytest.approx([1, 0.6, 0.6])


def test_an_opposite_row_is_a_neighbour_if_there_is_no_other():
    """Its cosine is the −1 that stands where nobody is."""
    cosines, ids = nearest(np.array([[1, 0]], dtype=np.float32), np.array([[1, 0], [-1, 0]], dtype=np.float32), 3)
    assert ids.tolist() == [[0, 1, -1]] and cosines.tolist() == [[1, -1, -1]]


def test_exact_cosines_by_hand():
    x = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    out = exact_cosines(np.array([[0.8, 0.6]], dtype=np.float32), x, np.array([[1, -1, 0]]))
    np.testing.assert_allclose(out, [[0.96, -np.inf, 0.8]], rtol=1e-6)


def test_as_brute_force_in_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 30)
    q, x = unit(100, 16), unit(400, 16, seed=1)
    product = q.astype(np.float64) @ x.T.astype(np.float64)
    order = np.argsort(-product, axis=1)[:, :5]
    cosines, ids = nearest(q, x, 5)
    assert np.array_equal(ids, order)
    np.testing.assert_allclose(cosines, np.take_along_axis(product, order, 1), rtol=1e-6)
    assert [start for start, *_ in nearest_in_blocks(q, x, 5)] == [0, 30, 60, 90]


def test_the_approximate_index_finds_the_planted_ones(monkeypatch):
    """Random vectors have no cells, so this is its hardest case.  The same seed gives the same answer."""
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 1000)
    x = planted(20_000, 64)
    cosines, ids = nearest(x[:10_000], x, 2)
    found = ids[:, 1] == np.arange(10_000, 20_000)
    assert found.mean() >= 0.99
    exact = (x[:10_000].astype(np.float64) * x[10_000:]).sum(1)
    np.testing.assert_allclose(cosines[found, 1], exact[found], rtol=1e-6)  # not what the codes say
    again = nearest(x[:10_000], x, 2)
    assert np.array_equal(again[0], cosines) and np.array_equal(again[1], ids)


# --------------------------------------------------------------------------------------------------------
# Ranks


def work(rank, folder):
    """One of several processes: exact and approximate neighbours of the same vectors."""
    distributed.start("cpu")
    np.savez(folder / f"{rank}.npz", **both(), shard=np.arange(10)[shard(10)])
    distributed.stop()


def both():
    x = planted(6000, 32)
    exact = nearest(x[:50], x, 7)
    neighbours.EXACT_BELOW = 1000
    return dict(zip(("cosines", "ids", "near_cosines", "near_ids"), (*exact, *nearest(x[:50], x, 7))))


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_ranks_finds_the_same(world, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_BELOW", neighbours.EXACT_BELOW)  # both() changes it here too
    in_ranks(work, world, tmp_path)
    alone = both()
    ranks = [np.load(tmp_path / f"{rank}.npz") for rank in range(world)]
    for rank in ranks:
        for name, value in alone.items():
            assert np.array_equal(rank[name], value), name
    assert np.concatenate([rank["shard"] for rank in ranks]).tolist() == list(range(10))
