"""How a run starts: from the seed, from its checkpoint (--resume), from other weights (--init), with its images."""

import copy
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

import distributed
import vit
from augment import MultiCrop
from centering import SoftmaxCentering
from network import build_network
from optimizer import make_optimizer, parameter_groups
from recipes import Recipe
from support.checkpoint import read_checkpoint, restore
from support.cli import CHOICES, as_flag, check_recipe, parse_args
from support.device import choose_threads, find_device, total_memory
from support.files import UserError, reason_of
from support.images import batches, load_splits
from support.weights import load_vit

HEADS = ("dino_head", "ibot_head")


@dataclass
class Run:
    """What a step needs and changes."""

    recipe: Recipe
    student: nn.ModuleDict
    teacher: nn.ModuleDict  # gives the targets: the EMA, or in distillation a frozen larger network
    ema: nn.ModuleDict  # the moving average of the student: the result of the run
    centering: nn.ModuleDict  # the two moving centres; empty for Sinkhorn-Knopp
    optimizer: torch.optim.Optimizer
    step: int = 0
    training_flops: int = 0  # of the steps so far, on all ranks


def start_run(r, device, weights=None):
    """A Run at step 0: weights drawn from the seed, or taken from the state dict `weights` where it has them."""
    torch.manual_seed(r.seed)
    student = build_network(r, weights and stored_size(weights, r))
    student.load_state_dict(weights or {}, strict=False)
    student = student.to(device)
    ema = distributed.shard(copy.deepcopy(student).requires_grad_(False).eval())
    student = distributed.shard(student)
    teacher = distributed.shard(load_teacher(r).to(device)) if r.teacher else ema
    names = ("dino", "ibot") if r.centering == "softmax" else ()
    centering = nn.ModuleDict({name: SoftmaxCentering(r.n_prototypes) for name in names}).to(device)
    if r.compile:  # sizes are fixed within a phase, so each phase compiles once
        for block in [*student.backbone.blocks, *teacher.backbone.blocks]:
            block.compile(fullgraph=True, dynamic=False)
    return Run(r, student, teacher, ema, centering, make_optimizer(parameter_groups(student, r)))


def prepare_run(options, recipe, changes):
    """train.py's command line -> (Run, device): a new run, or one that continues from its checkpoint."""
    recipe, saved = find_checkpoint(options, recipe, changes)
    device = distributed.start(find_device(options.device))
    threads = choose_threads(saved and saved.get("threads"))
    weights, how = None, "random weights"
    if recipe.init and not saved:
        recipe, weights, words = init_from(recipe, changes)
        how = f"weights of {recipe.init} ({words})"
    check_start(recipe, device)
    run = start_run(recipe, device, weights)
    if saved:
        restore(run, saved)
        how = f"continues at step {run.step}"
    n = sum(p.numel() for p in run.student.backbone.parameters()) / 1e6
    distributed.print_first(f"{options.out}: {recipe.arch}, {n:.1f} M parameters, {how}, {recipe.steps} steps, on "
                            f"{device}, {threads}")  # fmt: skip
    return run, device


def load_splits_of(r, image_size):
    """The training and the test images of a recipe, decoded to squares of image_size pixels."""
    return load_splits(r.data, image_size, r.seed, r.scale if any(r.scale) else None)


def start_stream(r, images, step, device):
    """This rank's batches (B, 3, S, S) uint8 of the training images, from that step on."""
    rank, world = distributed.rank(), distributed.world_size()
    return batches(images, r.batch // world, r.seed, step, device, r.workers or None, (rank, world))


def make_crop(r, size):
    """The multi-crop of a recipe, with global views of `size` pixels."""
    return MultiCrop(size, r.local_size, r.n_local, r.global_scale, r.local_scale, r.blur_sigma, r.jitter)


def check_start(r, device):
    """UserError for a recipe that cannot start: no data, too many processes, not enough memory."""
    if not r.data:
        raise UserError(f"--recipe {r.name} needs your images; give a folder or an archive with --data")
    world = distributed.world_size()
    if r.batch % world:
        raise UserError(f"--batch {r.batch} does not divide among {world} processes")
    if r.compile and world > 1:
        raise UserError("--compile works in a single process only; leave it out")
    if world > 1 and device.type == "cpu" and torch.__version__ < (2, 9):
        raise UserError("several processes without GPUs need PyTorch 2.9; in older ones FSDP2 fails on CPUs")
    with torch.device("meta"):
        weights = sum(p.numel() for p in build_network(r).parameters())
    images = min(r.micro_batch or r.batch, r.batch // world)
    pixels = 3 * images * (2 * r.global_size**2 + r.n_local * r.local_size**2)
    needed = 4 * (5 * weights / world + pixels)  # weights, gradients, two moments, the teacher; crops
    if needed > total_memory(device):
        sizes = f"{needed / 2**30:,.0f} GiB, and there are {total_memory(device) / 2**30:,.0f}"
        raise UserError(f"weights, moments and crops alone take {sizes}; use a smaller --arch or --batch")


def find_checkpoint(options, recipe, changes):
    """train.py's command line -> (the run's recipe, its checkpoint if it resumes, else None)."""
    path = options.out / "checkpoint.pt"
    if not path.exists():
        return recipe, None
    if not options.resume:
        raise UserError(f"{options.out} already holds a run; continue it with --resume, or choose another --out")
    saved = read_checkpoint(path)
    recipe = recipe_of(saved, path)
    stored = asdict(recipe) | {"recipe": recipe.name}
    asked = changes | ({"recipe": options.recipe} if options.recipe else {})
    for flag, value in asked.items():
        if stored[flag] != value:
            raise UserError(f"the run in {options.out} has --{flag} {as_flag(stored[flag])}, not {as_flag(value)}")
    return recipe, saved


def recipe_of(saved, path):
    """The Recipe stored in a checkpoint; UserError if it is of another version or cannot train."""
    values, words = saved["recipe"], []
    if different := sorted({f.name for f in fields(Recipe)} ^ set(map(str, values))):
        raise UserError(f"{path} was written by another version ({different[0]!r} in its recipe); "
                        f"start a new run from its weights with --init {path}")  # fmt: skip
    for name, value in values.items():
        if isinstance(value, bool):
            words += [f"--{name}" if value else f"--no-{name}"]
        elif name != "name":
            words += [f"--{name}", *map(str, value)] if isinstance(value, tuple) else [f"--{name}={value}"]
    try:
        return replace(parse_args(words)[1], name=str(values["name"]))  # the checks of a command line
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def init_from(recipe, changes):
    """A recipe with --init -> (the recipe with the file's architecture, a state dict, a description for the user).

    changes: the fields set by flags; they must not contradict the file.  Positions are resized to the run's grid,
    unless only the heads train.  Heads in the file are used if they fit; then they need no warm-up.
    """
    network = load_vit(recipe.init)
    found = {"arch": find_arch(network, recipe.init), "patch_size": network.patch_size,
             "n_registers": network.n_registers, "ffn": "swiglu" if hasattr(network.blocks[0].mlp, "w12") else "mlp",
             "stem": network.stem}  # fmt: skip
    for name, value in found.items():
        if changes.get(name, value) != value:
            raise UserError(f"--{name} {changes[name]}, but {recipe.init} has {value}; leave --{name} out")
    recipe = replace(recipe, **found)
    check_recipe(recipe)
    heads = heads_of(recipe.init)
    with torch.device("meta"):
        needed = {name: x.shape for name, x in build_network(recipe).state_dict().items() if name.startswith(HEADS)}
    fit = {name: x.shape for name, x in heads.items()} == needed
    if fit and recipe.tied_heads:
        fit = all(torch.equal(x, heads[name.replace(*HEADS)]) for name, x in heads.items())
    heads = heads if fit else {}
    if fit and "head_warmup" not in changes:
        recipe = replace(recipe, head_warmup=0.0)
    if recipe.head_warmup < 1 and recipe.head_warmup + recipe.hires_share > 1:
        raise UserError(f"--head_warmup {recipe.head_warmup} and --hires_share {recipe.hires_share} add up to over 1")
    words = [f"{value}" if name in ("arch", "ffn") else f"{name} {value}" for name, value in found.items() if value]
    words = f"{', '.join(words)}, {'its' if heads else 'new'} heads"
    words += f", alone for the first {round(recipe.steps * recipe.head_warmup)} steps" * bool(recipe.head_warmup)
    state = network.state_dict()
    if recipe.head_warmup < 1:
        n = (recipe.hires_size if recipe.hires_share else recipe.global_size) // recipe.patch_size
        state["pos_embed"] = network.positions(n, n).detach()
    return recipe, {f"backbone.{name}": x for name, x in state.items()} | heads, words


def find_arch(network, name):
    """The --arch of a ViT; UserError if there is none of its size."""
    size = network.embed_dim, network.n_blocks, network.num_heads
    for arch in CHOICES["arch"]:
        with torch.device("meta"):
            known = getattr(vit, arch)()
        if size == (known.embed_dim, known.n_blocks, known.num_heads):
            return arch
    raise UserError(f"{name} is {size[0]} wide and {size[1]} deep with {size[2]} heads; no --arch has this size")


def heads_of(path):
    """The teacher's two heads in a checkpoint.pt of train.py, by name; {} for any other file."""
    try:
        teacher = read_checkpoint(Path(path))["teacher"]
    except UserError:
        return {}
    return {name: x for name, x in teacher.items() if name.startswith(HEADS)}


def load_teacher(r):
    """The frozen teacher that a recipe distils, with its heads, from another run's checkpoint.pt (§5)."""
    if r.teacher == "?":
        raise UserError(f"--recipe {r.name} needs a teacher; give the checkpoint.pt of a run with --teacher")
    if not heads_of(r.teacher):
        load_vit(r.teacher)  # raises if the file holds no network
        raise UserError(f"--teacher {r.teacher} has no heads; train them first, by the same command with --teacher= "
                        f"--init {r.teacher} --head_warmup 1 --hires_share 0 --out runs/teacher added; then use "
                        "--teacher runs/teacher/checkpoint.pt")  # fmt: skip
    saved = read_checkpoint(Path(r.teacher))
    theirs = recipe_of(saved, r.teacher)
    for name in ("patch_size", "n_prototypes"):
        if getattr(theirs, name) != getattr(r, name):
            raise UserError(f"the teacher was trained with --{name} {getattr(theirs, name)}; use the same")
    try:
        teacher = build_network(theirs, stored_size(saved["teacher"], theirs))
        teacher.load_state_dict(saved["teacher"])
    except (LookupError, RuntimeError) as error:
        raise UserError(f"{r.teacher} does not fit its own recipe ({reason_of(error)[:200]})") from None
    return teacher.requires_grad_(False).eval()


def stored_size(state, r):
    """The image size in pixels that the positions in a network's state dict are stored for."""
    return math.isqrt(state["backbone.pos_embed"].shape[1] - 1) * r.patch_size
