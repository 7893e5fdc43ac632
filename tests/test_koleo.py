"""KoLeo: distances worked out by hand, the double loop of the paper, extremes."""

import math

import pytest
import torch

from koleo import koleo_loss

EPS = 1e-8  # koleo_loss's own


def random_rows(B, D, seed=0):
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed))


def slow_koleo_loss(x):
    """L_KoLeo in float64: for each row a loop over all others, log d = ½ log(d² + ε)."""
    x = x.double()
    x = x / x.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(x)):
        squared = torch.stack([(x[i] - x[j]).square().sum() for j in range(len(x)) if j != i])
        total = total - 0.5 * (squared.min() + EPS).log()
    return total / len(x)


def test_three_directions_by_hand():
    """(5, 0), (0, 2) and (3, 4) point to e₁, e₂ and u = (3/5, 4/5).

    ‖e₁ − u‖² = 4/25 + 16/25 = 4/5, ‖e₂ − u‖² = 9/25 + 1/25 = 2/5, ‖e₁ − e₂‖² = 2.
    Nearest: e₁ → u, e₂ → u, u → e₂. The mean of −log d is −(log 4/5 + log 2/5 + log 2/5)/(2·3).
    """
    x = torch.tensor([[5.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    expected = -(math.log(4 / 5) + 2 * math.log(2 / 5)) / (2 * 3)
    assert koleo_loss(x).item() == pytest.approx(expected, rel=1e-5)


def test_an_antipodal_pair_by_hand():
    """e₁ and −e₁ are 2 apart, and neither is its own neighbour: −log 2."""
    assert koleo_loss(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-math.log(2))


def test_equal_rows_by_hand():
    """d = 0 counts as √ε = 10⁻⁴, so two equal rows cost log 10⁴, and repel nothing."""
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    loss = koleo_loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(4 * math.log(10), rel=1e-5)
    assert torch.equal(x.grad, torch.zeros(2, 2))


@pytest.mark.parametrize(("B", "D"), [(2, 3), (3, 2), (12, 6), (40, 64)])
def test_value_and_gradient_are_those_of_the_double_loop(B, D):
    """Under autocast, too: among close rows the products rounded to bfloat16 would name other neighbours."""
    x = (1 + 0.05 * random_rows(B, D)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = koleo_loss(x)
    slow = slow_koleo_loss(x)
    torch.testing.assert_close(ours.double(), slow, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, x)[0] for loss in (ours, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("B", [1, 2, 7])
@pytest.mark.parametrize("kind", ["equal", "zero", "one zero row", "large"])
def test_finite_in_every_type_and_inputs_unchanged(dtype, B, kind):
    x = random_rows(B, 16)
    x = {"equal": x[:1].repeat(B, 1), "zero": x * 0, "one zero row": torch.cat([x[:-1], torch.zeros(1, 16)]),
         "large": x.sign() * 1e4}[kind].to(dtype)  # fmt: skip
    kept = x.clone()
    loss = koleo_loss(x.requires_grad_())
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and x.grad.isfinite().all()
    assert x.grad[(kept == 0).all(dim=1)].abs().sum() == 0  # a zero row has no direction to turn
    assert torch.equal(x, kept)
    if B == 1:
        assert loss.item() == 0 and x.grad.abs().sum() == 0
