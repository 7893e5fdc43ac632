"""The recipes hold the paper's numbers and can be trained with.  `pytest tests/test_recipes.py`"""

import math
from dataclasses import fields, replace

import pytest
import torch

import vit
from recipes import RECIPES, Recipe, get_recipe
from support.cli import check_recipe
from train import schedules_at


def test_every_field_is_explained():
    assert all(len(f.metadata["help"]) > 10 for f in fields(Recipe))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_trained_with(name):
    if RECIPES[name].optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("Muon came with PyTorch 2.9")
    check_recipe(RECIPES[name])


def test_changes_leave_the_recipe_alone():
    assert get_recipe("shapes", batch=3).batch == 3
    assert RECIPES["shapes"].batch != 3
    with pytest.raises(TypeError):
        get_recipe("shapes", no_such_field=1)


def test_vitl14_has_the_papers_schedule():
    """Table 16: peak rate 3.5e-4 after 100k iterations of 625k, decay 0.04 -> 0.2, momentum 0.994 -> 1, batch 3k.

    The official base rate is 2e-4: 2e-4 · √(3072/1024) = 2e-4 · 1.732 = 3.46e-4.  Then 10k iterations at 518².
    """
    r = RECIPES["vitl14"]
    peak = schedules_at(100_000, r)
    assert math.isclose(peak["lr"], 3.46e-4, rel_tol=2e-3)
    assert schedules_at(99_000, r)["lr"] < peak["lr"] > schedules_at(101_000, r)["lr"]
    first, last = schedules_at(0, r), schedules_at(624_999, r)
    names = ("lr", "weight_decay", "momentum", "teacher_temp")
    assert [first[name] for name in names] == pytest.approx([0, 0.04, 0.994, 0.04])
    assert [last[name] for name in names] == pytest.approx([1e-6, 0.2, 1.0, 0.07])
    assert not last["hires"] and schedules_at(625_000, r)["hires"]
    assert first["frozen_prototypes"] and schedules_at(1249, r)["frozen_prototypes"]  # the first epoch of 1250
    assert not schedules_at(1250, r)["frozen_prototypes"]


def test_vitg14_is_vitl14_but_for_its_network():
    """Tables 16 and 17: rate 0.4, 3.5e-4, batch 3k, SwiGLU, as ViT-L from scratch; width 1536, 40 blocks, 24 heads."""
    r = RECIPES["vitg14"]
    assert replace(r, name="vitl14", arch="vit_large") == RECIPES["vitl14"]
    with torch.device("meta"):
        network = vit.vit_giant2(ffn=r.ffn)
    assert (network.embed_dim, len(network.blocks), network.blocks[0].attn.n_heads) == (1536, 40, 24)
    assert 1.1e9 < sum(p.numel() for p in network.parameters()) < 1.2e9  # §5: 1.1 B


@pytest.mark.parametrize("name, size", [
    ("vits14", (384, 12, 6)), ("vitb14", (768, 12, 12)), ("vitl14", (1024, 24, 16)),
])  # fmt: skip
def test_distilled_recipes_have_the_papers_values(name, size):
    """Table 16: no stochastic depth, peak 1e-3 = (1e-3 / √2) · √(2048/1024), batch 2048, 625k iterations of which 100k
    warm up.  Table 17: an MLP, but of its blocks ViT-B's 18 are the code's 12.  K is that of the teacher, vitg14."""
    r = RECIPES[f"{name}_distilled"]
    with torch.device("meta"):
        network = getattr(vit, r.arch)(ffn=r.ffn)
    block = network.blocks[0]
    assert (network.embed_dim, len(network.blocks), block.attn.n_heads) == size and isinstance(block.mlp, vit.Mlp)
    assert (r.drop_path, r.batch, r.data, r.teacher) == (0.0, 2048, "", "?")
    assert (r.n_prototypes, r.patch_size) == (RECIPES["vitg14"].n_prototypes, RECIPES["vitg14"].patch_size)
    assert schedules_at(100_000, r)["lr"] == pytest.approx(1e-3) and schedules_at(99_000, r)["lr"] < 1e-3
    first, last = schedules_at(0, r), schedules_at(624_999, r)
    assert (first["weight_decay"], first["momentum"]) == pytest.approx((0.04, 0.994))
    assert (last["weight_decay"], last["momentum"]) == pytest.approx((0.2, 1.0))
    assert not last["hires"] and schedules_at(625_000, r)["hires"]


def test_cifar10_long_is_cifar10_made_longer():
    """8 prototypes for each image: 512 of 64, 4096 of 512.  The teacher reaches back 1/0.05 = 20 of 6,000 steps, 1/300;
    300 / 16,000 = 0.01875, so m = 0.98125.  Peak 4e-3 · √(512/1024) = 4e-3 / 1.41421 = 2.828e-3, after a tenth of the
    15,200 steps at 24²."""
    short, long = RECIPES["cifar10"], RECIPES["cifar10_long"]
    assert (short.n_prototypes, long.n_prototypes) == (8 * 64, 8 * 512) and (short.batch, long.batch) == (64, 512)
    assert short.momentum == 0.95 and long.momentum == pytest.approx(0.98125, abs=5e-4)
    assert schedules_at(1520, long)["lr"] == pytest.approx(2.828e-3, rel=1e-3)
    assert not schedules_at(15_199, long)["hires"] and schedules_at(15_200, long)["hires"]


def test_high_resolution_compresses_every_schedule():
    """B.2: 20 steps of which the last quarter, 5, are at high resolution; each schedule runs through in them."""
    r = get_recipe("shapes", steps=20, hires_share=0.25, lr_warmup=0.2, hires_lr=1e-3, batch=1024)
    at = [schedules_at(step, r) for step in range(20)]
    assert [v["hires"] for v in at] == [False] * 15 + [True] * 5
    for phase in (at[:15], at[15:]):
        ends = {"weight_decay": "weight_decay_end", "momentum": "momentum_end"}
        for name, end in ends.items():
            assert (phase[0][name], phase[-1][name]) == pytest.approx((getattr(r, name), getattr(r, end)))
        assert phase[0]["lr"] == 0 and phase[-1]["lr"] == pytest.approx(r.lr_end)
        assert phase[0]["teacher_temp"] == pytest.approx(r.teacher_temp_start)
        assert phase[-1]["teacher_temp"] == pytest.approx(r.teacher_temp)
    assert at[16]["lr"] == 1e-3  # the one warm-up step is over: hires_lr · √(1024/1024)
