"""Softmax centering: numbers worked out by hand, two ranks, and extremes."""

import math

import pytest
import torch

import centering
from centering import SoftmaxCentering


def test_two_batches_by_hand():
    """Batch 1, (1, 9) and c = 0: p_t = (1/10, 9/10). Then with m = ½, c = ½ log(1, 9) = log(1, 3).

    Batch 2, (1, 3) and (1, 12): minus c, (1, 1) and (1, 4), so (1/2, 1/2) and (1/5, 4/5).
    Its mean is log(1, 6), so c = ½ (log 3 + log 6) in the second place.
    """
    center = SoftmaxCentering(2, momentum=0.5)
    first = center(torch.tensor([[1.0, 9.0]]).log(), temp=1.0)
    torch.testing.assert_close(first, torch.tensor([[1 / 10, 9 / 10]]))
    torch.testing.assert_close(center.centre, torch.tensor([0, math.log(3)]))
    second = center(torch.tensor([[1.0, 3.0], [1.0, 12.0]]).log(), temp=1.0)
    torch.testing.assert_close(second, torch.tensor([[1 / 2, 1 / 2], [1 / 5, 4 / 5]]))
    torch.testing.assert_close(center.centre, torch.tensor([0, (math.log(3) + math.log(6)) / 2]))


def test_temperature_and_momentum_by_hand():
    """At τ_t = ½ with c = log(1, 2), (1, 6) becomes (1, 3) and then (1, 9)/10.  The centre moves by a tenth of
    log(1, 6) − log(1, 2) = log(1, 3)."""
    center = SoftmaxCentering(2)
    center.centre.copy_(torch.tensor([1.0, 2.0]).log())
    p_t = center(torch.tensor([[1.0, 6.0]]).log(), temp=0.5)
    torch.testing.assert_close(p_t, torch.tensor([[1 / 10, 9 / 10]]))
    torch.testing.assert_close(center.centre, torch.tensor([0, math.log(2) + 0.1 * math.log(3)]))


def test_two_ranks(monkeypatch):
    """With another rank whose mean is (4, 8), ours being (2, 0), the centre moves by 0.1 to (3, 4)."""
    monkeypatch.setattr(centering, "sum_over_ranks", lambda x: x + torch.tensor([4.0, 8.0]))
    monkeypatch.setattr(centering, "world_size", lambda: 2)
    center = SoftmaxCentering(2, momentum=0.9)
    center(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 1.0)
    torch.testing.assert_close(center.centre, torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("B", [0, 1, 2])
def test_finite_in_every_type_and_inputs_unchanged(dtype, size, B):
    """A batch without samples leaves the centre at 0."""
    center = SoftmaxCentering(1000)
    z = (torch.randn(B, 1000, generator=torch.Generator().manual_seed(0)).sign() * size).to(dtype)
    kept = z.clone()
    for _ in range(2):
        p_t = center(z.requires_grad_(), 0.04)
        assert p_t.shape == (B, 1000) and p_t.dtype == torch.float32 and not p_t.requires_grad
        assert p_t.isfinite().all() and torch.allclose(p_t.sum(dim=1), torch.ones(B), atol=1e-5)
    assert center.centre.isfinite().all() and torch.equal(z, kept)
    assert center.centre.any() == bool(B and size)
