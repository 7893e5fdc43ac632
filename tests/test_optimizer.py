"""AdamW: two steps by hand, frozen prototypes, and the rate and decay of every kind of parameter."""

import pytest
import torch
from torch import nn

from network import build_network
from optimizer import make_optimizer, parameter_groups, set_rates
from recipes import get_recipe

VALUES = {"lr": 0.1, "weight_decay": 0.5, "frozen_prototypes": False}


def step(groups, *gradients, values=VALUES):
    """Start a parameter of each group (lr_factor, decay_factor, prototypes) at 2; its values after these gradients."""
    thetas = [nn.Parameter(torch.tensor(2.0)) for _ in groups]
    optimizer = make_optimizer([{"params": [theta], "lr_factor": lr, "decay_factor": decay, "prototypes": prototypes}
                                for theta, (lr, decay, prototypes) in zip(thetas, groups)])  # fmt: skip
    set_rates(optimizer, values)
    for gradient in gradients:
        for theta in thetas:
            theta.grad = torch.tensor(gradient)
        optimizer.step()
    return [theta.item() for theta in thetas]


def test_adamw_by_hand():
    """In the first step m̂ = g and v̂ = g², so m̂ / √v̂ = 1 for g = 3, and θ = 2 becomes 2 − η_θ · (1 + λ_θ · 2): with
    η = 0.1, λ = 0.5 that is 2 − 0.1 · 2 = 1.8; at half the rate 2 − 0.05 · 2 = 1.9; without decay 2 − 0.1 = 1.9."""
    groups = [(1.0, 1.0, False), (0.5, 1.0, False), (1.0, 0.0, False)]
    assert step(groups, 3.0) == pytest.approx([1.8, 1.9, 1.9])


def test_adamw_by_hand_in_the_second_step():
    """Gradients 1, then 0: m = 0.9 · 0.1 = 0.09, m̂ = 0.09 / (1 − 0.9²) = 0.4737; v = 0.999 · 0.001 = 0.000999,
    v̂ = 0.000999 / (1 − 0.999²) = 0.49975.  θ = 2 − 0.1 · 1 − 0.1 · 0.4737 / √0.49975 = 1.9 − 0.06701."""
    assert step([(1.0, 0.0, False)], 1.0, 0.0) == pytest.approx([1.83299], abs=1e-5)


def test_frozen_prototypes_neither_move_nor_shrink():
    """Their rate is 0; the other takes its step of 0.1 · (1 + 0.5 · 2) = 0.2, and so do prototypes later."""
    groups = [(1.0, 1.0, True), (1.0, 1.0, False)]
    assert step(groups, 3.0, values={**VALUES, "frozen_prototypes": True}) == pytest.approx([2.0, 1.8])
    assert step(groups, 3.0) == pytest.approx([1.8, 1.8])


def test_parameter_groups():
    """Layer-wise decay ½ in a ViT of 6 blocks: block 5 has ½, block 0 ½⁶, the tokens ½⁷, the patches ½⁷ · 0.2, and so
    has the stem, its norms too."""
    r = get_recipe("shapes", arch="vit_nano", layer_decay=0.5, patch_embed_lr=0.2, stem=True)
    student = build_network(r)
    names = {p: name for name, p in student.named_parameters()}
    found = {names.pop(p): (group["lr_factor"], group["decay_factor"], group["prototypes"])
             for group in parameter_groups(student, r) for p in group["params"]}  # fmt: skip
    assert not names  # every parameter is in one group
    assert found["backbone.norm.weight"] == (1, 0, False)
    assert found["backbone.blocks.5.attn.qkv.weight"] == (0.5, 1, False)
    for name in ("mlp.fc1.bias", "ls1.gamma", "norm2.weight"):
        assert found[f"backbone.blocks.0.{name}"] == (0.5**6, 0, False)
    assert found["backbone.pos_embed"] == found["backbone.cls_token"] == (0.5**7, 1, False)
    assert found["backbone.patch_embed.proj.weight"] == (0.5**7 * 0.2, 1, False)
    of_stem = {value for name, value in found.items() if ".stem." in name}
    assert of_stem == {(0.5**7 * 0.2, 1, False), (0.5**7 * 0.2, 0, False)}
    assert found["ibot_head.mlp.0.weight"] == (1, 1, False)
    assert found["dino_head.prototypes"] == (1, 1, True)
