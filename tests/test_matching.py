"""Mutual nearest patches of two images, and which of them are drawn.  `pytest tests/test_matching.py`"""

import math

import pytest
import torch
from conftest import at

from matching import mutual_matches, part_agreement, suppress_close


def test_mutual_matches_by_hand():
    """a: 0°, 40°, 90°.  b: 10°, 80°, and 30° of length 9, which does not count.

    Nearest of a: 0° → 10°, 40° → 30°, 90° → 80°.  Nearest of b: 10° → 0°, 80° → 90°, 30° → 40°.  All are mutual, each
    10° apart.  With 30° in the background 40° → 10°, whose own nearest is 0°: two pairs are left.  With 0° in the
    background as well, 10° → 40°.
    """
    a, b = at(0, 40, 90), at(10, 80, 30) * torch.tensor([[1.0], [1.0], [9.0]])
    everything, some = torch.ones(3, dtype=torch.bool), torch.tensor([True, True, False])
    pairs, cosine = mutual_matches(a, b, everything, everything)
    assert pairs.tolist() == [[0, 0], [1, 2], [2, 1]]
    torch.testing.assert_close(cosine, torch.full((3,), 0.984807753, dtype=torch.float64))  # cos 10°
    assert mutual_matches(a, b, everything, some)[0].tolist() == [[0, 0], [2, 1]]
    assert mutual_matches(a, b, some.flip(0), some)[0].tolist() == [[1, 0], [2, 1]]
    for foregrounds in ((~everything, some), (some, ~everything)):  # without foreground no match
        pairs, cosine = mutual_matches(a, b, *foregrounds)
        assert len(pairs) == len(suppress_close(pairs, cosine, [(1, 3), (1, 3)])) == 0


def test_part_agreement_by_hand():
    """Two images of a class: patches 1, 2, 3 of the first on parts 1, 1, 2, of the second on 1, 2, 2; patch 0 is
    ground.  Tokens are unit vectors e1, e2, e3 in both, so the matches are 1–1, 2–2, 3–3: parts 1–1, 1–2, 2–2, two of
    three agree.  By chance: of the 3·3 pairs of patches, 2·1 are on part 1 and 1·2 on part 2: 4/9.  A third image of
    the class has no partner, and an image of another class matches nothing.  Without foreground there is no match.
    """
    tokens = torch.eye(4)[None].repeat(4, 1, 1)
    parts = torch.tensor([[0, 1, 1, 2], [0, 1, 2, 2], [1, 1, 1, 1], [2, 2, 2, 2]])
    assert part_agreement(tokens, parts, torch.tensor([5, 5, 5, 6])) == pytest.approx((2 / 3, 4 / 9))
    assert all(math.isnan(share) for share in part_agreement(tokens, torch.zeros(4, 4), torch.zeros(4)))


def test_non_maximum_suppression_by_hand():
    """Grids of 1×10, reach 0.1 · 10 = 1 patch.  Pairs 0–0 (.9), 1–5 (.8), 3–1 (.7), 5–9 (.6).

    0–0 is the best.  1–5 starts 1 from it, 3–1 ends 1 from it: both go.  5–9 is far from it at both ends.  On grids of
    2×5 patch 5 is below patch 0, so 1–5 and 3–1 are close to 0–0 again.
    """
    pairs, cosine = torch.tensor([[5, 9], [1, 5], [0, 0], [3, 1]]), torch.tensor([0.6, 0.8, 0.9, 0.7])
    assert suppress_close(pairs, cosine, [(1, 10), (1, 10)], share=0.1).tolist() == [[0, 0], [5, 9]]
    assert suppress_close(pairs, cosine, [(2, 5), (1, 10)], share=0.2).tolist() == [[0, 0]]
