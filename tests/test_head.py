"""The projection head: cosines worked out by hand, a slow loop, the parameter count, properties and extremes."""

import math

import pytest
import torch

from head import Head


def small_head(**options):
    """8 wide in, 24 prototypes, with weights and biases large enough to matter."""
    torch.manual_seed(0)
    head = Head(8, 24, **{"hidden_dim": 16, "bottleneck_dim": 6, **options})
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return head


def rows(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def slow_head(head, x):
    """One row x in float64: layers of Σ w x + b, GELU x·Φ(x) between them, then a cosine with each prototype."""
    layers = [m for m in head.mlp if isinstance(m, torch.nn.Linear)]
    y = x.double()
    for i, layer in enumerate(layers):
        y = (layer.weight.double() * y).sum(dim=1) + layer.bias.double()
        if i < len(layers) - 1:
            y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    return torch.stack([(y * w).sum() / (y.norm() * w.norm()) for w in head.prototypes.double()])


def test_cosines_by_hand():
    """With the identity for an MLP, x = (8, 6) points to (4/5, 3/5).

    Prototypes (0, 7) and (3, 4) point to (0, 1) and (3/5, 4/5). Cosines: 3/5, and 12/25 + 12/25.
    """
    head = Head(2, 2, bottleneck_dim=2, n_layers=1)
    with torch.no_grad():
        head.mlp[0].weight.copy_(torch.eye(2))
        head.prototypes.copy_(torch.tensor([[0.0, 7.0], [3.0, 4.0]]))
    torch.testing.assert_close(head(torch.tensor([[8.0, 6.0]])), torch.tensor([[3 / 5, 24 / 25]]))


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_values_and_gradients_are_those_of_the_slow_loop(n_layers):
    """Also for more than one leading dimension."""
    head, x = small_head(n_layers=n_layers), rows(2, 3, 8)
    z = head(x)
    slow = torch.stack([slow_head(head, row) for row in x.flatten(0, 1)]).view(2, 3, 24)
    torch.testing.assert_close(z.double(), slow, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad((out * rows(2, 3, 24)).sum(), list(head.parameters())) for out in (z, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_parameters_of_the_papers_head():
    """384 → 2048 → 2048 → 256, each with a bias, and 65 536 prototypes of 256."""
    with torch.device("meta"):
        head = Head(384, 65_536)
    expected = (384 + 1) * 2048 + (2048 + 1) * 2048 + (2048 + 1) * 256 + 65_536 * 256
    assert sum(p.numel() for p in head.parameters()) == expected


def test_lengths_of_prototypes_do_not_matter_and_do_not_learn():
    head, x = small_head(), rows(5, 8)
    z = head(x)
    gradient = torch.autograd.grad((z * rows(5, 24)).sum(), head.prototypes)[0]
    assert (gradient * head.prototypes).sum(dim=1).abs().max() < 1e-5, "a prototype's length gets a gradient"
    with torch.no_grad():
        head.prototypes.mul_(torch.arange(1.0, 25.0)[:, None])
    torch.testing.assert_close(head(x), z)


def test_a_fresh_head_tells_images_apart():
    """Initial logits neither vanish nor agree: rows differ, with a spread about that of random cosines, 1/√256."""
    torch.manual_seed(0)
    head = Head(64, 500)
    z = head(rows(32, 64))
    assert head.mlp[0].weight.std().item() == pytest.approx(1 / 8, rel=0.02)  # 1/√64
    assert 0.3 / 16 < z.std() < 3 / 16
    assert (z - z.mean(dim=0)).std() > 0.3 / 16


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e4])
def test_finite_for_zero_and_large_features(size):
    """A fresh head has no biases, so zero features reach the bottleneck as 0.  That has no direction: logits are 0."""
    head = Head(8, 24, hidden_dim=16, bottleneck_dim=6)
    x = (rows(2, 8).sign() * size).requires_grad_()
    z = head(x)
    z.sum().backward()
    assert z.isfinite().all() and x.grad.isfinite().all() and bool(z.any()) == bool(size)
    assert all(p.grad.isfinite().all() for p in head.parameters())
