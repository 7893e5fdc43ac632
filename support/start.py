"""What a run starts from besides nothing: its checkpoint, or other weights (--init), with heads where these fit."""

from dataclasses import replace
from pathlib import Path

import torch

import distributed
import vit
from support.checkpoint import CheckpointError, read_checkpoint
from support.flags import CHOICES, UserError, check_recipe, recipe_of, show
from support.weights import given_vit

HEADS = ("dino_head", "ibot_head")


def adopt(recipe, changes, build, resize=True):
    """A recipe with --init -> (the recipe of a network as in that file, its state dict, what this is in words).

    changes: the fields set by hand, which may not contradict the file.  build(recipe) -> the network and its heads.
    Positions are resized to the run's grid as the file's family does, or with resize=False kept.  Heads that fit need
    no warm-up.
    """
    network = given_vit(recipe.init)
    block = network.blocks[0]
    found = {"arch": arch_of(network, recipe.init), "patch_size": network.patch_size,
             "n_registers": network.n_registers, "ffn": "swiglu" if hasattr(block.mlp, "w12") else "mlp",
             "stem": network.stem}  # fmt: skip
    for name, value in found.items():
        if changes.get(name, value) != value:
            raise UserError(f"--{name} {changes[name]}, but {recipe.init} has {value}")
    recipe = replace(recipe, **found)
    check_recipe(recipe)
    heads = heads_of(recipe.init)
    with torch.device("meta"):
        needed = {name: x.shape for name, x in build(recipe).state_dict().items() if name.startswith(HEADS)}
    if {name: x.shape for name, x in heads.items()} != needed or (recipe.tied_heads and not are_one(heads)):
        heads = {}
    elif "head_warmup" not in changes:
        recipe = replace(recipe, head_warmup=0.0)
    if recipe.head_warmup + recipe.hires_share > 1:
        raise UserError(f"--head_warmup {recipe.head_warmup}, --hires_share {recipe.hires_share}: more than all steps")
    alone = round(recipe.steps * recipe.head_warmup)
    words = [f"{value}" if name in ("arch", "ffn") else f"{name} {value}" for name, value in found.items() if value]
    words = f"{', '.join(words)}, {'its' if heads else 'new'} heads, alone for {alone} steps"
    n = (recipe.hires_size if recipe.hires_share else recipe.global_size) // recipe.patch_size
    state = network.state_dict()
    if resize:
        state["pos_embed"] = network.positions(n, n).detach()
    return recipe, {f"backbone.{name}": x for name, x in state.items()} | heads, words


def are_one(heads):
    """Whether the two heads in a state dict hold the same values."""
    return all(torch.equal(x, heads[name.replace(HEADS[0], HEADS[1])]) for name, x in heads.items())


def recipe_to_go_on(saved, checkpoint, name, changes):
    """The recipe of a checkpoint; UserError if the command line, of recipe `name` or None, says anything else."""
    recipe, missing = recipe_of(saved, checkpoint)
    if missing and distributed.rank() == 0:
        print(f"{checkpoint} is of an older version, and has the defaults of {', '.join(missing)}")
    asked = {"recipe": (recipe.name, name)} if name and recipe.name else {}
    asked |= {name: (getattr(recipe, name), value) for name, value in changes.items()}
    for flag, (is_, wanted) in asked.items():
        if is_ != wanted:
            raise UserError(f"the run in {checkpoint.parent} has --{flag} {show(is_)}, not {show(wanted)}")
    return recipe


def arch_of(network, name):
    """The --arch of a ViT; UserError if it is none of them."""
    size = network.embed_dim, len(network.blocks), network.blocks[0].attn.n_heads
    for arch in CHOICES["arch"]:
        with torch.device("meta"):
            known = getattr(vit, arch)()
        if size == (known.embed_dim, len(known.blocks), known.blocks[0].attn.n_heads):
            return arch
    raise UserError(f"{name} is {size[0]} wide and {size[1]} deep with {size[2]} heads, which is no --arch")


def heads_of(path):
    """The teacher's two heads in a checkpoint.pt of train.py, by name; {} for any other file."""
    try:
        teacher = read_checkpoint(Path(path))["teacher"]
    except CheckpointError:
        return {}
    return {name: x for name, x in teacher.items() if name.startswith(HEADS)}
