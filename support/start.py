"""What a run starts from: whether it can; its checkpoint, or other weights (--init), with heads where these fit."""

from dataclasses import replace
from pathlib import Path

import torch

import distributed
import vit
from distributed import print_first
from recipes import TO_BE_GIVEN
from support.checkpoint import read_checkpoint
from support.cli import CHOICES, check_recipe, recipe_of, show
from support.files import UserError
from support.weights import given_vit

HEADS = ("dino_head", "ibot_head")


# ---------------------------------------------------------------------------- whether it can start


def need_teacher(recipe):
    """UserError for a recipe that distils a teacher which nobody has named."""
    if recipe.teacher == TO_BE_GIVEN:
        raise UserError(f"--recipe {recipe.name} has no teacher: --teacher says whom to distil, a run's checkpoint.pt, "
                        "or weights such as dinov2_vitg14")  # fmt: skip


def need_pictures(recipe):
    """UserError for a recipe whose pictures nobody has named."""
    if not recipe.data:
        raise UserError(f"--recipe {recipe.name} has no pictures: --data says where yours are, a folder or archive")


def check_processes(recipe, device):
    """UserError for a recipe that the processes of torchrun, on devices of that kind, cannot train together."""
    world = distributed.world_size()
    if recipe.batch % world:
        raise UserError(f"--batch {recipe.batch} does not divide among {world} processes")
    if recipe.optimizer == "muon" and world > 1:
        raise UserError("--optimizer muon takes matrices whole, and several GPUs hold parts of them; --optimizer adamw")
    if recipe.compile and world > 1:
        raise UserError("--compile takes a ViT whole, and several GPUs take it in blocks; one of the two")
    if world > 1 and device.type == "cpu" and torch.__version__ < (2, 9):
        raise UserError("several processes without GPUs need PyTorch 2.9: FSDP2 fails there in older ones")


# ---------------------------------------------------------------------------- the run's own checkpoint


def warmed_teacher(out):
    """Where a run keeps the teacher whose heads it has trained (train.warm_teacher)."""
    return out / "teacher" / "checkpoint.pt"


def find_checkpoint(options, recipe, changes):
    """The command line of train.py -> (the recipe of the run, its checkpoint if it goes on, else None)."""
    out, checkpoint, warmed = options.out, options.out / "checkpoint.pt", warmed_teacher(options.out)
    if options.resume and checkpoint.exists():
        saved = read_checkpoint(checkpoint)
        return recipe_to_go_on(saved, checkpoint, options.recipe, changes), saved
    if options.resume and warmed.exists() and (not recipe.teacher or heads_of(recipe.teacher)):
        raise UserError(f"{out} holds the heads of a teacher alone; --resume beside all flags of that run goes on")
    if checkpoint.exists() or (warmed.exists() and not options.resume):
        raise UserError(f"{out} already holds a run; --resume to go on with it, or --out for another folder")
    return recipe, None


def recipe_to_go_on(saved, checkpoint, name, changes):
    """The recipe of a checkpoint; UserError if the command line, of recipe `name` or None, says anything else."""
    recipe, missing = recipe_of(saved, checkpoint)
    if missing:
        print_first(f"{checkpoint} is of an older version, and has the defaults of {', '.join(missing)}")
    asked = {"recipe": (recipe.name, name)} if name and recipe.name else {}
    asked |= {name: (getattr(recipe, name), value) for name, value in changes.items()}
    for flag, (is_, wanted) in asked.items():
        if is_ != wanted:
            raise UserError(f"the run in {checkpoint.parent} has --{flag} {show(is_)}, not {show(wanted)}")
    return recipe


# ---------------------------------------------------------------------------- other weights


def init_from(recipe, changes, build, resize=True):
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
    except UserError:
        return {}
    return {name: x for name, x in teacher.items() if name.startswith(HEADS)}
