"""The recipes hold the paper's numbers, and can be trained with."""

from dataclasses import asdict, replace

import pytest
import torch

import vit
from recipes import RECIPES
from support.cli import check_recipe
from support.start import recipe_of
from train import schedules_at


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_name_and_is_accepted_also_from_a_checkpoint(name):
    check_recipe(RECIPES[name])
    assert RECIPES[name].name == name and recipe_of({"recipe": asdict(RECIPES[name])}, "x.pt") == RECIPES[name]


PAPER = {  # Table 16: peak learning rate, batch; Table 17: width, blocks, heads, FFN
    "vitl14": (3.5e-4, 3072, 1024, 24, 16, vit.SwiGLU),
    "vitg14": (3.5e-4, 3072, 1536, 40, 24, vit.SwiGLU),
    "vits14_distilled": (1e-3, 2048, 384, 12, 6, vit.Mlp),
    "vitb14_distilled": (1e-3, 2048, 768, 12, 12, vit.Mlp),  # Table 17 has 18 blocks, the code 12
    "vitl14_distilled": (1e-3, 2048, 1024, 24, 16, vit.Mlp),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_values(name):
    """Table 16: 625k steps, 100k of them to warm up; weight decay 0.04 → 0.2, momentum 0.994 → 1.  B.2: then 10k steps
    at 518².  The official base rate of vitl14 gives the peak 2e-4 · √(3072/1024) = 3.46e-4."""
    r, (rate, batch, *network) = RECIPES[name], PAPER[name]
    first, frozen, free, before, peak, after, last, hires = (
        schedules_at(step, r) for step in (0, 1249, 1250, 99_000, 100_000, 101_000, 624_999, 625_000))
    assert peak["lr"] == pytest.approx(rate, rel=0.02) and before["lr"] < peak["lr"] > after["lr"]
    names = ("lr", "weight_decay", "momentum", "teacher_temp")
    assert [first[name] for name in names] == pytest.approx([0, 0.04, 0.994, 0.04])
    assert [last[name] for name in names] == pytest.approx([1e-6, 0.2, 1.0, 0.07])
    assert (last["hires"], hires["hires"]) == (False, True)
    assert (frozen["frozen_prototypes"], free["frozen_prototypes"]) == (True, False)
    with torch.device("meta"):
        built = getattr(vit, r.arch)(ffn=r.ffn)
    assert [built.embed_dim, built.n_blocks, built.num_heads, type(built.blocks[0].mlp)] == network
    distilled = name.endswith("distilled")
    assert (r.data, r.teacher, r.drop_path, r.batch) == ("", "?" * distilled, 0.0 if distilled else 0.4, batch)
    assert (r.n_prototypes, r.patch_size) == (131_072, 14)  # a student has those of its teacher
    assert name != "vitg14" or replace(r, name="vitl14", arch="vit_large") == RECIPES["vitl14"]
