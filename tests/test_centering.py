"""Softmax centering: numbers worked out by hand, two ranks, extremes, and toys that collapse."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

import centering
from centering import SoftmaxCentering
from dino_loss import dino_loss
from sinkhorn import sinkhorn_knopp


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


def self_distillation(targets):
    """64 images with much in common, 8 prototypes, 150 steps: (mean entropy of a target, entropy of the mean).

    A student that is nothing but prototypes learns from their moving average; both are shares of log 8.
    """
    torch.manual_seed(0)
    images = 0.5 * torch.randn(64, 16) + torch.randn(16)
    student = torch.randn(8, 16, requires_grad=True)
    teacher = student.detach().clone()
    for _ in range(150):
        views = F.normalize(images + 0.1 * torch.randn(2, 64, 16), dim=-1)
        p_t = targets(views[0] @ F.normalize(teacher, dim=1).T)
        loss = dino_loss(views @ F.normalize(student, dim=1).T, p_t[None])
        student.data -= 0.3 * torch.autograd.grad(loss, student)[0]
        teacher.lerp_(student.data, 0.1)

    def entropy(p):
        return -torch.special.xlogy(p, p).sum(dim=-1).mean().item() / math.log(8)

    return entropy(p_t), entropy(p_t.mean(dim=0))


def test_centering_and_sharpening_are_both_needed():
    """Without centering all images go to one prototype; without sharpening (a teacher hotter than the student) every
    image goes to all prototypes; with both, images differ and all prototypes are used."""
    _, of_the_mean = self_distillation(lambda z: (z / 0.04).softmax(dim=-1))
    assert of_the_mean < 0.2
    of_a_target, _ = self_distillation(partial(SoftmaxCentering(8), temp=0.15))
    assert of_a_target > 0.8
    for targets in (SoftmaxCentering(8), sinkhorn_knopp):
        of_a_target, of_the_mean = self_distillation(partial(targets, temp=0.04))
        assert of_a_target < 0.6 and of_the_mean > 0.9
