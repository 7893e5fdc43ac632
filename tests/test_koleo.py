"""KoLeo: distances worked out by hand, the double loop of the paper, invariances, extremes, and what it is for.

    pytest tests/test_koleo.py
"""

import math

import pytest
import torch
from torch.nn import functional as F

from koleo import koleo_loss

EPS = 1e-8  # koleo_loss's own


def random_rows(B, D, seed=0):
    """(B, D) in float32."""
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


# --------------------------------------------------------------------------------------------------------
# The equation


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


@pytest.mark.parametrize(("B", "D"), [(2, 3), (3, 2), (16, 8), (40, 64)])
def test_is_the_double_loop_of_the_paper(B, D):
    x = random_rows(B, D)
    torch.testing.assert_close(koleo_loss(x).double(), slow_koleo_loss(x), rtol=1e-5, atol=1e-6)


def test_gradient_is_that_of_the_double_loop():
    x = random_rows(12, 6).requires_grad_()
    ours = torch.autograd.grad(koleo_loss(x), x)[0]
    slow = torch.autograd.grad(slow_koleo_loss(x), x)[0]
    torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------
# Properties


def test_length_order_and_rotation_do_not_matter():
    x = random_rows(10, 5)
    expected = koleo_loss(x)
    lengths = torch.arange(1.0, 11.0)[:, None]
    rotation = torch.linalg.qr(random_rows(5, 5, seed=1)).Q
    for same in (x * lengths, x * 1e-3, x * 1e4, x.flip(0), x @ rotation):
        torch.testing.assert_close(koleo_loss(same), expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_does_not_change_lengths():
    x = random_rows(10, 5).requires_grad_()
    g = torch.autograd.grad(koleo_loss(x), x)[0]
    assert (g * x).sum(dim=1).abs().max() < 1e-6


def test_it_spreads_a_bunch_of_points():
    """Eight points bunched on the circle; 8 evenly spread ones would be 2·sin(π/8) = 0.77 apart.

    Following −gradient must bring the smallest distance from 0.02 to above 0.5. Steps have a length of their own,
    which shrinks to 0: the gradient's, 1/d, would fling close points across the circle.
    """
    angle = torch.arange(8.0) * 0.02
    x = torch.stack([angle.cos(), angle.sin()], dim=1)

    def smallest_distance(x):
        return (torch.cdist(x, x) + 9 * torch.eye(8)).min().item()

    assert smallest_distance(x) < 0.021
    for step in range(400):
        g = torch.autograd.grad(koleo_loss(x.requires_grad_()), x)[0]
        x = F.normalize(x.detach() - 0.1 * (1 - step / 400) * F.normalize(g, dim=1), dim=1)
    assert smallest_distance(x) > 0.5


def test_without_it_features_that_attract_each_other_meet():
    """Rows pulled to their mean collapse to one point; with KoLeo at the paper's weight of 0.1 they keep apart."""

    def spread(weight):
        x = random_rows(8, 4).requires_grad_()
        optimizer = torch.optim.SGD([x], lr=0.3)
        for _ in range(300):
            u = F.normalize(x, dim=1)
            loss = (u - u.mean(dim=0)).square().sum(dim=1).mean() + weight * koleo_loss(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return torch.pdist(F.normalize(x.detach(), dim=1)).min().item()

    assert spread(0.0) < 1e-3
    assert spread(0.1) > 0.05


# --------------------------------------------------------------------------------------------------------
# Extremes


def test_equal_rows_by_hand():
    """d = 0 counts as √ε = 10⁻⁴, so two equal rows cost log 10⁴, and repel nothing."""
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    loss = koleo_loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(4 * math.log(10), rel=1e-5)
    assert torch.equal(x.grad, torch.zeros(2, 2))


@pytest.mark.parametrize("distance", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_the_pull_of_a_close_pair_is_bounded(distance):
    """Each of the B terms pulls at two unit rows, by at most 1/(2√ε·B) each: 1/√ε = 10⁴ in all.

    Without ε it would be 2/d, 2·10⁶ at d = 10⁻⁶.
    """
    x = torch.tensor([[1.0, 0.0], [1.0, distance]], requires_grad=True)  # unit rows, to rounding
    koleo_loss(x).backward()
    assert x.grad.norm(dim=1).sum() <= 1 / math.sqrt(EPS) * 1.01
    if distance == 1e-4:  # there the bound is met
        assert x.grad.norm(dim=1).sum() >= 1 / math.sqrt(EPS) * 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("B", [1, 2, 7])
@pytest.mark.parametrize("kind", ["random", "equal", "zero", "one zero row", "large", "antipodal"])
def test_finite_in_every_type_and_inputs_unchanged(dtype, B, kind):
    x = random_rows(B, 16)
    x = {
        "random": x,
        "equal": x[:1].repeat(B, 1),
        "zero": x * 0,
        "one zero row": torch.cat([x[:-1], torch.zeros(1, 16)]),
        "large": x.sign() * 1e4,
        "antipodal": x[:1] * (-1.0) ** torch.arange(B)[:, None],
    }[kind].to(dtype)
    kept = x.clone()
    loss = koleo_loss(x.requires_grad_())
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and x.grad.isfinite().all()
    assert x.grad[(kept == 0).all(dim=1)].abs().sum() == 0  # a zero row has no direction to turn
    assert torch.equal(x, kept)
    if B == 1:
        assert loss.item() == 0 and x.grad.abs().sum() == 0


def test_duplicates_do_not_drown_the_rest():
    """Three equal rows and a zero row leave the gradient as large as it is without them."""
    x = random_rows(16, 8)
    usual = torch.autograd.grad(koleo_loss(x.requires_grad_()), x)[0].norm()
    y = x.detach().clone()
    y[1], y[2], y[3] = y[0], y[0], 0.0
    assert torch.autograd.grad(koleo_loss(y.requires_grad_()), y)[0].norm() < 2 * usual


def test_autocast_around_it_changes_nothing():
    """Among 100 close rows the products rounded to bfloat16 would name other neighbours."""
    x = 1 + 0.05 * random_rows(100, 32)
    expected = torch.autograd.grad(koleo_loss(x.requires_grad_()), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(x)
    assert torch.equal(loss, koleo_loss(x))
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)
    torch.testing.assert_close(loss.double(), slow_koleo_loss(x), rtol=1e-4, atol=0)
