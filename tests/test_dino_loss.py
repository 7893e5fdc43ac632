"""The image-level loss: numbers worked out by hand, the double loop of the paper, invariances and extremes.

    pytest tests/test_dino_loss.py
"""

import math

import pytest
import torch
from conftest import kept_for_backward

from dino_loss import dino_loss


def logs(*rows):
    """Logs of small integers: at temperature 1 their softmax is a row of exact fractions."""
    return torch.tensor(rows, dtype=torch.float32).log()


def random_case(V, G, B, K, seed=0):
    """Student logits (V, B, K) and teacher probabilities (G, B, K)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(V, B, K, generator=generator)
    return z, torch.randn(G, B, K, generator=generator).mul(3).softmax(dim=-1)


def slow_dino_loss(z, p_t, student_temp):
    """L_DINO in float64 as §4 states it: a loop over images and over pairs of different views."""
    total, pairs = 0.0, 0
    for t in range(len(p_t)):
        for s in range(len(z)):
            if s == t:
                continue
            for b in range(z.shape[1]):
                log_p_s = (z[s, b].double() / student_temp).log_softmax(dim=-1)
                total = total - (p_t[t, b].double() * log_p_s).sum()
                pairs += 1
    return total / pairs


# --------------------------------------------------------------------------------------------------------
# The equation


def test_two_global_views_and_a_local_one_by_hand():
    """p_s = (1/4, 3/4), (1/2, 1/2) and (1/3, 2/3), the last one local; p_t = (1, 0) and (0, 1).

    Teacher 1 meets students 2 and 3: −log 1/2 − log 1/3 = log 2 + log 3.
    Teacher 2 meets students 1 and 3: −log 3/4 − log 2/3 = log 4/3 + log 3/2.
    In all log(2 · 3 · 4/3 · 3/2) = log 12, over 4 pairs.
    """
    z = logs([1, 3], [1, 1], [1, 2])[:, None]  # (3, 1, 2)
    p_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, None]  # (2, 1, 2)
    assert dino_loss(z, p_t, student_temp=1.0).item() == pytest.approx(math.log(12) / 4)


def test_temperature_by_hand():
    """At τ_s = 1/2 the student's (1, 3) becomes (1, 9)/10: against (1, 0) that is log 10."""
    z = logs([1, 3], [1, 3])[:, None]
    p_t = torch.tensor([[[1.0, 0.0]]])
    assert dino_loss(z, p_t, student_temp=0.5).item() == pytest.approx(math.log(10))


@pytest.mark.parametrize(("V", "G", "B", "K"), [(2, 1, 3, 4), (2, 2, 1, 5), (3, 3, 2, 6), (10, 2, 4, 50), (6, 2, 2, 9)])
def test_is_the_double_loop_of_the_paper(V, G, B, K):
    z, p_t = random_case(V, G, B, K)
    torch.testing.assert_close(dino_loss(z, p_t).double(), slow_dino_loss(z, p_t, 0.1), rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_the_double_loop():
    z, p_t = random_case(5, 2, 9, 20)
    slow = torch.autograd.grad(3 * slow_dino_loss(z.requires_grad_(), p_t, 0.1), z)[0]
    ours = torch.autograd.grad(3 * dino_loss(z, p_t), z)[0]
    torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------
# Properties


def test_order_of_images_and_of_local_views_does_not_matter():
    z, p_t = random_case(6, 2, 5, 7)
    expected = dino_loss(z, p_t)
    images, views = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([0, 1, 5, 3, 2, 4])
    torch.testing.assert_close(dino_loss(z[:, images], p_t[:, images]), expected)
    torch.testing.assert_close(dino_loss(z[views], p_t), expected)
    swapped = torch.tensor([1, 0, 2, 3, 4, 5])
    torch.testing.assert_close(dino_loss(z[swapped], p_t.flip(0)), expected)


def test_a_constant_added_to_a_row_of_logits_changes_nothing():
    z, p_t = random_case(4, 2, 3, 9)
    shift = torch.arange(12.0).view(4, 3, 1) - 6
    torch.testing.assert_close(dino_loss(z + shift, p_t), dino_loss(z, p_t), rtol=1e-5, atol=1e-5)


def test_no_view_learns_from_its_own_teacher():
    """Student 1 has teacher 2 alone: changing p_t of view 1 leaves its gradient as it was, and moves the others'."""
    z, p_t = random_case(3, 2, 2, 5)
    other = p_t.clone()
    other[0] = p_t[0].roll(1, dims=-1)
    z.requires_grad_()
    before = torch.autograd.grad(dino_loss(z, p_t), z)[0]
    after = torch.autograd.grad(dino_loss(z, other), z)[0]
    torch.testing.assert_close(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 0.01
    assert (before[2] - after[2]).abs().max() > 0.01


def test_agreement_costs_the_entropy_and_has_no_gradient():
    """Where every p_s = p_t, H(p_t, p_s) = H(p_t), its minimum."""
    _, p = random_case(1, 1, 4, 6)
    z = (p.log() * 0.1).expand(4, 4, 6).clone().requires_grad_()
    loss = dino_loss(z, p.expand(2, 4, 6), student_temp=0.1)
    entropy = -(p * p.log()).sum(dim=-1).mean()
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-6
    assert dino_loss(z + torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), p.expand(2, 4, 6)) > loss


# --------------------------------------------------------------------------------------------------------
# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("B", [1, 2])
def test_finite_in_every_type_and_inputs_unchanged(dtype, size, B):
    z, p_t = random_case(4, 2, B, 1000)
    p_t = torch.zeros_like(p_t).scatter(-1, p_t.topk(2).indices, 0.5)  # exact in every type
    z, p_t = (z.sign() * size).to(dtype), p_t.to(dtype)
    kept_z, kept_p = z.clone(), p_t.clone()
    loss = dino_loss(z.requires_grad_(), p_t)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and z.grad.isfinite().all()
    assert torch.equal(z, kept_z) and torch.equal(p_t, kept_p)
    torch.testing.assert_close(loss.detach().double(), slow_dino_loss(kept_z, kept_p, 0.1), rtol=1e-4, atol=1e-3)


def test_one_tensor_of_the_logits_size_and_type_is_kept():
    """In a piece for each view."""
    z, p_t = random_case(10, 2, 3, 50)
    z = z.bfloat16().requires_grad_()
    assert kept_for_backward(lambda: dino_loss(z, p_t)) == 10 * [(z.shape[1:], z.dtype)]


def test_identical_images_have_identical_gradients():
    z, p_t = random_case(3, 2, 1, 8)
    z, p_t = z.expand(3, 4, 8).clone().requires_grad_(), p_t.expand(2, 4, 8)
    g = torch.autograd.grad(dino_loss(z, p_t), z)[0]
    torch.testing.assert_close(g, g[:, :1].expand_as(g))
    assert g.isfinite().all()


def test_autocast_around_it_changes_nothing():
    z, p_t = random_case(4, 2, 3, 50)
    expected = torch.autograd.grad(dino_loss(z.requires_grad_(), p_t), z)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = dino_loss(z, p_t)
    assert torch.equal(loss, dino_loss(z, p_t))
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)


@pytest.mark.parametrize(("V", "G"), [(1, 1), (2, 3)])
def test_without_another_view_it_says_what_it_needs(V, G):
    with pytest.raises(AssertionError, match=f"got V={V}, G={G}"):
        dino_loss(torch.zeros(V, 1, 2), torch.zeros(G, 1, 2))
