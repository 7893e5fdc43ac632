"""The one fused operation: it equals the plain equation, value and gradient, and keeps one tensor.

    pytest tests/test_cross_entropy.py
"""

import math

import pytest
import torch
from conftest import kept_for_backward

from cross_entropy import cross_entropy


def plain(z, p, temp):
    """The equation at the top of the file."""
    return -(p * (z / temp).log_softmax(dim=1)).sum(dim=1)


def random_case(R, K, seed=0):
    """Logits, and targets whose rows sum to 0, 1 or 2."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.arange(R)[:, None] % 3
    return torch.randn(R, K, generator=generator), n * torch.randn(R, K, generator=generator).mul(3).softmax(dim=1)


def gradient(f, z, p, weight, temp):
    """Of the weighted sum of the rows, for z."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad((weight * f(z, p, temp)).sum(), z)[0]


def test_by_hand():
    """At τ = 1/2, (log 1, log 3) becomes (1, 9)/10.  Targets (1, 0): log 10.  Targets (1, 1): log 10 + log 10/9.

    Gradients (n·p_s − p)/τ = 2·(1/10 − 1, 9/10 − 0) = (−1.8, 1.8), and 2·(2/10 − 1, 18/10 − 1) = (−1.6, 1.6).
    """
    z = torch.tensor([[1.0, 3.0]]).log().repeat(2, 1)
    p = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([math.log(10), math.log(10) + math.log(10 / 9)])
    torch.testing.assert_close(cross_entropy(z, p, 0.5), expected)
    found = gradient(cross_entropy, z, p, torch.ones(2), 0.5)
    torch.testing.assert_close(found, torch.tensor([[-1.8, 1.8], [-1.6, 1.6]]))


@pytest.mark.parametrize(("R", "K"), [(1, 1), (1, 7), (9, 2), (13, 300)])
@pytest.mark.parametrize("temp", [0.1, 1.0])
def test_value_and_gradient_are_those_of_the_plain_equation(R, K, temp):
    z, p = random_case(R, K)
    weight = torch.linspace(-1, 2, R)
    torch.testing.assert_close(cross_entropy(z, p, temp), plain(z, p, temp), rtol=1e-5, atol=1e-5)
    ours = gradient(cross_entropy, z, p, weight, temp)
    slow = gradient(plain, z.double(), p.double(), weight.double(), temp)
    torch.testing.assert_close(ours.double(), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [0.5, 1, 4, 100])
def test_how_many_rows_are_computed_at_once_does_not_matter(rows, monkeypatch):
    """A row that is larger than what fits goes by itself; nine rows are no multiple of four."""
    z, p = random_case(9, 40)
    monkeypatch.setattr("cross_entropy.CACHED", int(40 * rows))
    torch.testing.assert_close(cross_entropy(z, p, 0.1), plain(z, p, 0.1), rtol=1e-5, atol=1e-5)
    found, expected = (gradient(f, z, p, torch.ones(9), 0.1) for f in (cross_entropy, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_finite_in_every_type_and_inputs_unchanged(dtype, size):
    z, p = random_case(4, 1000)
    z, p = (z.sign() * size).to(dtype).requires_grad_(), p.to(dtype)
    kept = z.detach().clone(), p.clone()
    H = cross_entropy(z, p, 0.1)
    H.sum().backward()
    assert H.dtype == torch.float32 and H.isfinite().all() and z.grad.isfinite().all() and z.grad.dtype == dtype
    assert torch.equal(z, kept[0]) and torch.equal(p, kept[1])
    torch.testing.assert_close(H.double(), plain(kept[0].double(), kept[1].double(), 0.1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tensor_of_the_logits_size_and_type_is_kept(dtype):
    z, p = random_case(6, 50)
    z = z.to(dtype).requires_grad_()
    assert kept_for_backward(lambda: cross_entropy(z, p, 0.1)) == [(z.shape, dtype)]


def test_targets_get_no_gradient_and_the_graph_can_be_used_twice():
    z, p = random_case(3, 5)
    z, p = z.requires_grad_(), p.requires_grad_()
    loss = cross_entropy(z, p, 0.1).sum()
    loss.backward(retain_graph=True)
    first = z.grad.clone()
    loss.backward()
    assert p.grad is None
    torch.testing.assert_close(z.grad, 2 * first)


def test_no_rows():
    z = torch.zeros(0, 5, requires_grad=True)
    cross_entropy(z, torch.zeros(0, 5), 0.1).sum().backward()
    assert z.grad.shape == (0, 5)


def test_autocast_around_it_changes_nothing():
    z, p = random_case(6, 50)
    with torch.autocast("cpu", torch.bfloat16):
        H = cross_entropy(z, p, 0.1)
    assert torch.equal(H, cross_entropy(z, p, 0.1))


def test_a_second_derivative_is_refused():
    """The gradient that was kept is a constant to autograd."""
    z, p = random_case(3, 5)
    loss = cross_entropy(z.requires_grad_(), p, 0.1).square().sum()
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
