"""The collapse meter and its words.  `pytest tests/test_collapse.py`"""

import math

import pytest
import torch

from support.log import collapse_meter, collapse_warning


def test_collapse_meter_by_hand():
    """K = 4, two views of two images.

    Targets (1, 0, 0, 0) and (0, 1, 0, 0): entropy 0 for an image; the mean is (½, ½, 0, 0), ln 2 / ln 4 = ½.
    L = ln 4: KL = ln 4 − 0.  [CLS] (1, 0) and (3, 4), cosine 3/5.
    """
    p = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]).expand(2, 2, 4)
    cls = torch.tensor([[1.0, 0], [3.0, 4.0], [9.0, 9.0], [9.0, 9.0]])  # the second view is not read
    meter = collapse_meter(p, torch.tensor(math.log(4)), cls)
    assert meter == pytest.approx({"entropy_image": 0, "entropy_mean": 0.5, "kl": math.log(4), "cosine": 0.6})


def test_both_views_count_by_hand():
    """K = 4, one image: targets (1, 0, 0, 0) in view 1 and (½, ½, 0, 0) in view 2.

    Entropies 0 and ln 2, ½ ln 2 on average, a quarter of ln 4.  The mean over both is (¾, ¼, 0, 0):
    H = ¾ ln(4/3) + ¼ ln 4 = 2 ln 2 − ¾ ln 3.  L = ln 4: KL = 2 ln 2 − ½ ln 2 = 1.5 ln 2.
    """
    p = torch.tensor([[[1.0, 0, 0, 0]], [[0.5, 0.5, 0, 0]]])
    meter = collapse_meter(p, torch.tensor(math.log(4)), torch.ones(2, 3))
    assert meter["entropy_image"] == pytest.approx(1 / 4)
    assert meter["entropy_mean"] == pytest.approx(1 - 0.75 * math.log(3) / math.log(4))
    assert meter["kl"] == pytest.approx(1.5 * math.log(2))


def test_collapse_warnings():
    healthy = {"entropy_image": 0.5, "entropy_mean": 0.99, "kl": 1.0, "cosine": 0.3}
    assert collapse_warning(healthy) is None
    assert "uniform" in collapse_warning({**healthy, "entropy_image": 0.995})
    assert "one code" in collapse_warning({**healthy, "entropy_image": 0.01, "entropy_mean": 0.01})
    assert "same" in collapse_warning({**healthy, "cosine": 0.999})
    uniform = torch.full((2, 3, 8), 1 / 8)
    assert "uniform" in collapse_warning(collapse_meter(uniform, torch.tensor(2.0), torch.randn(6, 4)))
