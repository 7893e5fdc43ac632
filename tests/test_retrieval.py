"""Mean average precision by hand.  `pytest tests/test_retrieval.py`"""

import pytest
import torch

from retrieval import mean_average_precision

GALLERY = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [0.1, 1.0]])  # e1 ranks 0, 1, 2, 3; e2 ranks 3, 2, 1, 0
QUERIES = torch.tensor([[5.0, 0.0], [0.0, 0.5]])


def positives(*rows):
    return torch.tensor([[i in row for i in range(4)] for row in rows])


def test_two_queries_by_hand():
    """Query 1, hits at ranks 2 and 4: (1/2 + 2/4) / 2 = 1/2.  Query 2, a hit at rank 1: 1.  The mean is 3/4."""
    assert mean_average_precision(QUERIES, GALLERY, positives([1, 3], [3])) == pytest.approx(3 / 4)


def test_what_is_ignored_is_neither_hit_nor_miss():
    """Without picture 0, query 1 has its hits at ranks 1 and 3: (1 + 2/3) / 2 = 5/6.  Query 2: a hit at rank 2, 1/2.

    An ignored positive is no positive."""
    found = positives([1, 3], [2])
    assert mean_average_precision(QUERIES, GALLERY, found, positives([0], [])) == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert mean_average_precision(QUERIES[:1], GALLERY, found[:1], positives([1])) == pytest.approx(1 / 3)


def test_queries_without_a_positive_are_left_out():
    assert mean_average_precision(QUERIES, GALLERY, positives([], [3])) == 1
    with pytest.raises(ValueError, match="no query has a positive"):
        mean_average_precision(QUERIES, GALLERY, positives([], []))


def test_equal_cosines_keep_the_order_and_half_precision_is_enough():
    same = torch.ones(4, 2, dtype=torch.bfloat16)
    assert mean_average_precision(same[:1], same, positives([2])) == pytest.approx(1 / 3)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        mean_average_precision(QUERIES * torch.nan, GALLERY, positives([0], [0]))
