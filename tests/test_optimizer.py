"""AdamW and Muon: a step by hand, each parameter's rate and decay, and who trains what.

    pytest tests/test_optimizer.py
"""

import pytest
import torch
from conftest import needs_muon
from torch import nn

from optimizer import make_optimizers, parameter_groups, set_rates
from recipes import get_recipe
from train import build_network

VALUES = {"lr": 0.1, "weight_decay": 0.5, "frozen_prototypes": False}


def network(**changes):
    """A small student, and its recipe."""
    sizes = {"patch_size": 4, "global_size": 8, "local_size": 4, "hires_size": 8, "n_prototypes": 16, "head_hidden": 16}
    r = get_recipe("shapes", **sizes, **changes)
    return build_network(r), r


def one(value, rate=1.0, decay=1.0, prototypes=False, muon=False):
    """A group of one parameter of that value."""
    p = nn.Parameter(torch.as_tensor(value))
    return {"params": [p], "lr_factor": rate, "decay_factor": decay, "prototypes": prototypes, "muon": muon}


def step(groups, *gradients, values=VALUES):
    """A step of all groups for each of the lists of their parameters' gradients; what the parameters are then."""
    optimizers = make_optimizers(groups)
    set_rates(optimizers, values)
    for some in gradients:
        for group, gradient in zip(groups, some):
            group["params"][0].grad = torch.tensor(gradient)
        for optimizer in optimizers:
            optimizer.step()
    return [group["params"][0].detach() for group in groups]


def test_adamw_by_hand():
    """In the first step m̂ = g and v̂ = g², so m̂ / √v̂ = 1 for g = 3, and θ = 2 becomes 2 − η_θ · (1 + λ_θ · 2): with
    η = 0.1, λ = 0.5 that is 2 − 0.1 · 2 = 1.8; at half the rate 2 − 0.05 · 2 = 1.9; without decay 2 − 0.1 = 1.9."""
    groups = [one([2.0]), one([2.0], rate=0.5), one([2.0], decay=0.0)]
    assert torch.cat(step(groups, [[3.0]] * 3)).tolist() == pytest.approx([1.8, 1.9, 1.9])


def test_adamw_by_hand_in_the_second_step():
    """Gradients 1, then 0: m = 0.9 · 0.1 = 0.09, m̂ = 0.09 / (1 − 0.9²) = 0.4737; v = 0.999 · 0.001 = 0.000999,
    v̂ = 0.000999 / (1 − 0.999²) = 0.49975.  θ = 2 − 0.1 · 1 − 0.1 · 0.4737 / √0.49975 = 1.9 − 0.06701."""
    [theta] = step([one([2.0], decay=0.0)], [[1.0]], [[0.0]])
    assert theta.item() == pytest.approx(1.83299, abs=1e-5)


def test_frozen_prototypes_neither_move_nor_shrink():
    """Their rate is 0; the others take their step of 0.1 · (1 + 0.5 · 2) = 0.2, and so do prototypes later."""
    groups, frozen = [one([2.0], prototypes=True), one([2.0])], {**VALUES, "frozen_prototypes": True}
    assert torch.cat(step(groups, [[3.0]] * 2, values=frozen)).tolist() == pytest.approx([2.0, 1.8])
    assert torch.cat(step([one([2.0], prototypes=True)], [[3.0]])).tolist() == pytest.approx([1.8])


@needs_muon
def test_muon_by_hand():
    """G = (3 0 0 0; 0 −2 0 0) has UVᵀ = (1 0 0 0; 0 −1 0 0), and the larger side is 4: W = 1 everywhere becomes
    1 − 0.1 · (0.2 · √4 · UVᵀ + 0.5 · 1), which is 0.95 where G is 0, and 0.95 ∓ 0.04 at the 3 and the −2; of those
    0.04 five iterations leave 0.65 to 1.25 times as much.  AdamW's parameter beside it: 2 − 0.1 · (1 + 0.5 · 2)."""
    G = [[3.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0]]
    theta, W = step([one([2.0]), one(torch.ones(2, 4), muon=True)], [[3.0], G])
    assert theta.item() == pytest.approx(1.8)
    moved = (0.95 - W) / 0.04
    assert 0.65 < moved[0, 0] < 1.25 and -1.25 < moved[1, 1] < -0.65
    moved[0, 0] = moved[1, 1] = 0
    assert moved.abs().max() < 1e-5


@pytest.mark.parametrize("G, sign", [(-1.3, 1), (-1.5, -1)])
@needs_muon
def test_muon_by_hand_in_the_second_step(G, sign):
    """After a gradient of 3, M = 0.05 · 3 = 0.15, and after G, 0.95 · 0.15 + 0.05 · G = 0.1425 + 0.05 · G.  Then
    0.05 · G + 0.95 · M = 0.0975 · G + 0.1354 is 0 at G = −1.39: W falls for −1.3 and rises for −1.5, by
    0.1 · 0.2 · √1 = 0.02, to within 0.65 and 1.25.  By M alone it would fall until −2.85, by G alone rise from 0."""
    once, twice = (step([one([2.0]), one([[1.0]], decay=0.0, muon=True)], *[[[3.0], [[g]]] for g in some])[1].item()
                   for some in ([3.0], [3.0, G]))  # fmt: skip
    assert 0.65 < (1 - once) / 0.02 < 1.25 and 0.65 < sign * (once - twice) / 0.02 < 1.25


def test_parameter_groups():
    """Layer-wise decay ½ in a ViT of 6 blocks: block 5 has ½, block 0 ½⁶, the tokens ½⁷, the patches ½⁷ · 0.2, and so
    has the stem, its norms too."""
    student, r = network(arch="vit_nano", layer_decay=0.5, patch_embed_lr=0.2, stem=True)
    found = {}
    names = {id(p): name for name, p in student.named_parameters()}
    for group in parameter_groups(student, r):
        for p in group["params"]:
            found[names.pop(id(p))] = (group["lr_factor"], group["decay_factor"], group["prototypes"])
    assert not names  # each parameter is in one group
    assert found["backbone.norm.weight"] == (1, 0, False)
    assert found["backbone.blocks.5.attn.qkv.weight"] == (0.5, 1, False)
    assert found["backbone.blocks.0.mlp.fc1.bias"] == (0.5**6, 0, False)
    assert found["backbone.blocks.0.ls1.gamma"] == (0.5**6, 0, False)
    assert found["backbone.blocks.0.norm2.weight"] == (0.5**6, 0, False)
    assert found["backbone.pos_embed"] == found["backbone.cls_token"] == (0.5**7, 1, False)
    assert found["backbone.patch_embed.proj.weight"] == (0.5**7 * 0.2, 1, False)
    of_stem = {value for name, value in found.items() if ".stem." in name}
    assert of_stem == {(0.5**7 * 0.2, 1, False), (0.5**7 * 0.2, 0, False)}
    assert found["dino_head.prototypes"] == (1, 1, True)


@needs_muon
def test_muon_takes_the_matrices_of_the_blocks():
    """Four of each block: qkv, proj, fc1, fc2; all else, the heads' and the patch embedding's too, is AdamW's."""
    student, r = network(optimizer="muon")
    adamw, muon = make_optimizers(parameter_groups(student, r))
    found = {id(p) for group in muon.param_groups for p in group["params"]}
    blocks = student.backbone.blocks
    assert found == {id(layer.weight) for b in blocks for layer in (b.attn.qkv, b.attn.proj, b.mlp.fc1, b.mlp.fc2)}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert not found & others and len(found) + len(others) == len(list(student.parameters()))


@needs_muon
def test_a_step_of_muon_is_an_orthogonal_matrix():
    """Of a random gradient of 96×96: all directions but the smallest get η · 0.2 · √96, to within 0.65 and 1.35."""
    torch.manual_seed(0)
    W, G = torch.zeros(96, 96), torch.randn(96, 96)
    _, after = step([one([2.0]), one(W.clone(), decay=0.0, muon=True)], [[3.0], G.tolist()])
    sizes = torch.linalg.svdvals(W - after) / (0.1 * 0.2 * 96**0.5)
    assert (sizes[:90] - 1).abs().max() < 0.35
