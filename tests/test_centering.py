"""Softmax centering: numbers worked out by hand, a slow loop, two ranks, extremes, and toys that collapse.

    pytest tests/test_centering.py
"""

import math

import pytest
import torch
from torch.nn import functional as F

import centering
from centering import SoftmaxCentering
from dino_loss import dino_loss
from sinkhorn import sinkhorn_knopp


def batches(n, B, K, seed=0):
    """n batches of logits (B, K), with a preference for some prototypes common to all of them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, B, K, generator=generator) + 3 * torch.randn(K, generator=generator)


# --------------------------------------------------------------------------------------------------------
# The equation


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


def test_temperature_by_hand():
    """At τ_t = ½ (1, 3) becomes (1, 9)/10."""
    p_t = SoftmaxCentering(2)(torch.tensor([[1.0, 3.0]]).log(), temp=0.5)
    torch.testing.assert_close(p_t, torch.tensor([[1 / 10, 9 / 10]]))


def test_is_the_slow_loop():
    center, c = SoftmaxCentering(5, momentum=0.8), [0.0] * 5
    for z in batches(6, 4, 5):
        p_t = center(z, 0.3)
        for b in range(4):
            scores = [math.exp((z[b, k].item() - c[k]) / 0.3) for k in range(5)]
            assert p_t[b].tolist() == pytest.approx([score / sum(scores) for score in scores], rel=1e-3, abs=1e-6)
        c = [0.8 * c[k] + 0.2 * sum(z[:, k].tolist()) / 4 for k in range(5)]
    assert center.centre.tolist() == pytest.approx(c, rel=1e-4, abs=1e-5)


def test_two_ranks(monkeypatch):
    """With another rank whose mean is (4, 8), ours being (2, 0), the centre moves by 0.1 to (3, 4)."""
    monkeypatch.setattr(centering, "sum_over_ranks", lambda x: x + torch.tensor([4.0, 8.0]))
    monkeypatch.setattr(centering, "world_size", lambda: 2)
    center = SoftmaxCentering(2, momentum=0.9)
    center(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 1.0)
    torch.testing.assert_close(center.centre, torch.tensor([0.3, 0.4]))


# --------------------------------------------------------------------------------------------------------
# Properties


def test_a_preference_common_to_all_images_goes_away():
    """After many batches the centre has learnt it: prototypes are used about evenly, as they were not at first."""
    center, many = SoftmaxCentering(6), batches(200, 32, 6)
    first = center(many[0], 1.0).mean(dim=0)
    for z in many:
        p_t = center(z, 1.0)
    assert first.max() > 0.4
    assert p_t.mean(dim=0).max() < 1.5 / 6


def test_a_constant_added_to_a_row_of_logits_changes_nothing():
    z = batches(1, 4, 5)[0]
    shift = torch.arange(4.0)[:, None]
    torch.testing.assert_close(SoftmaxCentering(5)(z + shift, 0.1), SoftmaxCentering(5)(z, 0.1), rtol=1e-4, atol=1e-5)


def test_the_centre_is_saved_but_not_trained():
    center = SoftmaxCentering(5)
    center(batches(1, 4, 5)[0], 0.1)
    other = SoftmaxCentering(5)
    other.load_state_dict(center.state_dict())
    assert torch.equal(other.centre, center.centre) and center.centre.abs().sum() > 0
    assert not list(center.parameters())


# --------------------------------------------------------------------------------------------------------
# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("B", [1, 2])
def test_finite_in_every_type_and_inputs_unchanged(dtype, size, B):
    center = SoftmaxCentering(1000)
    z = (batches(1, B, 1000)[0].sign() * size).to(dtype)
    kept = z.clone()
    for _ in range(2):
        p_t = center(z.requires_grad_(), 0.04)
        assert p_t.dtype == torch.float32 and not p_t.requires_grad and p_t.isfinite().all()
        assert (p_t.sum(dim=1) - 1).abs().max() < 1e-5
    assert center.centre.isfinite().all() and torch.equal(z, kept)


def test_an_empty_batch_leaves_the_centre_where_it_was():
    center = SoftmaxCentering(5)
    center(batches(1, 4, 5)[0], 0.1)
    before = center.centre.clone()
    assert center(torch.zeros(0, 5), 0.1).shape == (0, 5)
    assert torch.equal(center.centre, before)


def test_autocast_around_it_changes_nothing():
    z, outside, inside = batches(1, 16, 30)[0], SoftmaxCentering(30), SoftmaxCentering(30)
    with torch.autocast("cpu", torch.bfloat16):
        p_t = inside(z, 0.04)
    assert torch.equal(p_t, outside(z, 0.04)) and torch.equal(inside.centre, outside.centre)


# --------------------------------------------------------------------------------------------------------
# What it is for


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
        gradient = torch.autograd.grad(loss, student)[0]
        student.data -= 0.3 * gradient
        teacher.lerp_(student.data, 0.1)

    def entropy(p):
        return -torch.special.xlogy(p, p).sum(dim=-1).mean().item() / math.log(8)

    return entropy(p_t), entropy(p_t.mean(dim=0))


def test_without_centering_all_images_go_to_one_prototype():
    _, of_the_mean = self_distillation(lambda z: (z / 0.04).softmax(dim=-1))
    assert of_the_mean < 0.2


def test_without_sharpening_every_image_goes_to_all_prototypes():
    center = SoftmaxCentering(8)
    of_a_target, _ = self_distillation(lambda z: center(z, 0.15))  # hotter than the student
    assert of_a_target > 0.8


@pytest.mark.parametrize("kind", ["softmax", "sinkhorn"])
def test_with_both_images_differ_and_prototypes_are_shared(kind):
    center = SoftmaxCentering(8) if kind == "softmax" else sinkhorn_knopp
    of_a_target, of_the_mean = self_distillation(lambda z: center(z, 0.04))
    assert of_a_target < 0.6 and of_the_mean > 0.9
