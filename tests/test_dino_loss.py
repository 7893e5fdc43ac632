"""The image-level loss: numbers worked out by hand, the double loop of the paper, properties and extremes."""

import math

import pytest
import torch

from dino_loss import dino_loss


def random_case(V, G, B, K):
    """Student logits (V, B, K) and teacher probabilities (G, B, K)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(V, B, K, generator=generator)
    return z, torch.randn(G, B, K, generator=generator).mul(3).softmax(dim=-1)


def slow_dino_loss(z, p_t, student_temp=0.1):
    """L_DINO in float64 as in §4: a loop over images and over pairs of different views."""
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


def test_two_global_views_and_a_local_one_by_hand():
    """p_s = (1/4, 3/4), (1/2, 1/2) and (1/3, 2/3), the last one local; p_t = (1, 0) and (0, 1).

    Teacher 1 meets students 2 and 3: −log 1/2 − log 1/3 = log 2 + log 3.
    Teacher 2 meets students 1 and 3: −log 3/4 − log 2/3 = log 4/3 + log 3/2.
    The sum is log(2 · 3 · 4/3 · 3/2) = log 12, over 4 pairs.
    """
    z = torch.tensor([[1.0, 3.0], [1.0, 1.0], [1.0, 2.0]]).log()[:, None]  # (3, 1, 2)
    p_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, None]  # (2, 1, 2)
    assert dino_loss(z, p_t, student_temp=1.0).item() == pytest.approx(math.log(12) / 4)


def test_temperature_by_hand():
    """At τ_s = 1/2 the student's (1, 3) becomes (1, 9)/10: against (1, 0) that is log 10."""
    z = torch.tensor([1.0, 3.0]).log().expand(2, 1, 2)
    p_t = torch.tensor([[[1.0, 0.0]]])
    assert dino_loss(z, p_t, student_temp=0.5).item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize(("V", "G", "B", "K"), [(2, 1, 3, 4), (2, 2, 1, 5), (3, 3, 2, 6), (4, 2, 2, 1000)])
def test_value_and_gradient_are_those_of_the_double_loop(V, G, B, K, size, dtype):
    """In every type and under autocast."""
    z, p_t = ((x * scale).to(dtype) for x, scale in zip(random_case(V, G, B, K), (size, 1)))
    kept_z, kept_p = z.clone(), p_t.clone()
    with torch.autocast("cpu", torch.bfloat16):
        ours = dino_loss(z.requires_grad_(), p_t)
    slow = slow_dino_loss(z.double(), p_t)
    torch.testing.assert_close(ours.double(), slow, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (ours, slow)]
    torch.testing.assert_close(*gradients, rtol=max(1e-4, torch.finfo(dtype).eps), atol=1e-6)
    assert torch.equal(z, kept_z) and torch.equal(p_t, kept_p) and torch.equal(ours, dino_loss(z, p_t))


@pytest.mark.parametrize(("V", "G"), [(1, 1), (2, 3)])
def test_a_wrong_number_of_views_is_named(V, G):
    with pytest.raises(AssertionError, match=f"got V={V}, G={G}"):
        dino_loss(torch.zeros(V, 1, 2), torch.zeros(G, 1, 2))
