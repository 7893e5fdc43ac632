"""How a run starts: from the seed, from its checkpoint (--resume), from other weights (--init), with its images."""

import copy
import math
import os
import zipfile
from dataclasses import asdict, dataclass, field, replace
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
from support.cli import CHOICES, check_recipe
from support.device import amp_dtype, choose_threads, find_device, total_memory
from support.files import UserError, reason_of
from support.images import load_splits
from support.weights import load_vit

# --resume may change these.  amp and compile change rounding, micro_batch what a step draws and centers.
CHANGEABLE = ("data", "teacher", "workers", "micro_batch", "checkpointing", "compile", "amp", "log_every", "save_every",
              "eval_every", "eval_images")  # fmt: skip
NEW_RUN = "or go on from its weights: python train.py --recipe {} --init {}/checkpoint.pt --out NEW, with your flags"
HEAD_FIELDS = ("n_prototypes", "head_hidden", "dino_bottleneck", "ibot_bottleneck", "tied_heads")


@dataclass
class Run:
    """What a step needs and changes, and where it is saved."""

    recipe: Recipe
    device: torch.device
    student: nn.ModuleDict
    teacher: nn.ModuleDict  # gives the targets: the EMA, or in distillation a frozen larger network
    ema: nn.ModuleDict  # the moving average of the student: the result of the run
    centering: nn.ModuleDict  # the two moving centres; empty for Sinkhorn-Knopp
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, for fp16; otherwise it does nothing
    step: int = 0
    training_flops: int = 0  # for the steps so far, on all ranks
    out: Path = Path()  # the folder of its files
    images_digest: str = ""  # of the names of its images, their classes and splits
    teacher_digest: list = field(default_factory=list)  # checksums of the distilled network


def start_run(r, device, weights=None, img_size=None):
    """A Run at step 0: weights from the seed, or from the dict `weights` where it has them.  img_size: network.py."""
    torch.manual_seed(r.seed)
    student = build_network(r, img_size or stored_size(weights or {}, r))
    student.load_state_dict(weights or {}, strict=False)
    student = student.to(device)
    ema = distributed.shard(copy.deepcopy(student).requires_grad_(False).eval())
    student = distributed.shard(student)
    teacher = distributed.shard(load_teacher(r).to(device)) if r.teacher else ema
    names = ("dino", "ibot") if r.centering == "softmax" else ()
    centering = nn.ModuleDict({name: SoftmaxCentering(r.n_prototypes) for name in names}).to(device)
    if r.compile:  # one graph for all blocks of a network; sizes are fixed within a phase, so each phase compiles once
        torch._dynamo.config.cache_size_limit = 32  # graphs; 8 are too few for three phases with micro_batch
        for block in [*student.backbone.blocks, *teacher.backbone.blocks]:
            block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)  # without the hooks of FSDP2
    optimizer = make_optimizer(parameter_groups(student, r))
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype(device, r.amp) == torch.float16)
    digest = [member.CRC for member in zipfile.ZipFile(r.teacher).infolist()] if r.teacher else []
    return Run(r, device, student, teacher, ema, centering, optimizer, scaler, teacher_digest=digest)


def prepare_run(options, recipe, changes):
    """train.py's command line -> a new Run, or one that continues from its checkpoint."""
    recipe, saved = find_checkpoint(options, recipe, changes)
    device = find_device(options.device)
    distributed.start(device)
    threads = choose_threads(saved and saved.get("threads"))
    weights, how = None, "random weights"
    if recipe.init and not saved:
        recipe, weights, how = init_from(recipe, changes)
    check_start(recipe, device)
    run = start_run(recipe, device, weights, saved and stored_size(saved["student"], recipe))
    run.out = options.out
    if saved:
        restore(run, saved)
        how = f"continues at step {run.step}"
    n = sum(p.numel() for p in run.student.backbone.parameters()) / 1e6
    words = f"{recipe.arch}, {n:.1f} M parameters, {how}, {recipe.steps} steps, on {device}, {threads}"
    distributed.print_first(f"{run.out}: {words}")
    return run


def load_splits_of(r, image_size):
    """The training and the test images of a recipe, decoded to squares of image_size pixels."""
    return load_splits(r.data, image_size, r.seed, r.scale if any(r.scale) else None, r.labels)


def check_images(run, splits):
    """Note the digest of a run's images and return the splits; UserError if the run began with other images."""
    digest = "".join(images.digest for images in splits) or run.recipe.data
    if run.images_digest not in ("", digest):
        name, new_run = run.recipe.data, NEW_RUN.format(run.recipe.name, run.out)
        raise UserError(f"{name} does not hold the images that the run began with; put them back, {new_run}")
    run.images_digest = digest
    return splits


def make_crop(r, size):
    """The multi-crop of a recipe, with global views of `size` pixels."""
    return MultiCrop(size, r.local_size, r.n_local, r.global_scale, r.local_scale, r.blur_sigma, r.jitter)


def check_start(r, device):
    """UserError for a recipe that cannot start on this device, with these processes."""
    check_recipe(r)
    if not r.data:
        raise UserError(f"--recipe {r.name} needs your images; give a folder or an archive with --data")
    world = distributed.world_size()
    if r.batch % world:
        raise UserError(f"--batch {r.batch} does not divide among {world} processes; use a multiple of {world}")
    if amp_dtype(device, r.amp) == torch.float16 and device.type not in ("cpu", "cuda"):
        raise UserError(f"--amp fp16 does not work on {device.type}; use --amp bf16 or none")
    if r.compile and device.type == "cpu" and torch.__version__ < (2, 7):
        raise UserError("--compile on a CPU needs PyTorch 2.7; older ones compute wrong gradients")
    if world > 1 and device.type == "cpu" and torch.__version__ < (2, 9):
        raise UserError("several processes without GPUs need PyTorch 2.9; in older ones FSDP2 fails on CPUs")
    with torch.device("meta"):
        weights = sum(p.numel() for p in build_network(r).parameters())
    pixels = 3 * min(r.micro_batch or r.batch, r.batch // world) * (2 * r.global_size**2 + r.n_local * r.local_size**2)
    needed = 4 * (5 * weights / world + pixels)  # weights, gradients, two moments, the teacher; crops
    if needed > total_memory(device):
        sizes = f"{needed / 2**30:,.0f} GiB, and {device} has {total_memory(device) / 2**30:,.0f} GiB"
        raise UserError(f"the weights, AdamW's moments and the crops need {sizes}; use a smaller --arch or --batch")


def find_checkpoint(options, recipe, changes):
    """train.py's command line -> (the run's recipe, its checkpoint or None); --resume may change CHANGEABLE."""
    path = options.out / "checkpoint.pt"
    for name in changes.keys() & {"data", "init", "teacher"}:  # absolute, so that --resume works in every folder
        place = os.path.abspath(os.path.expanduser(changes[name]))
        if changes[name] not in ("", "shapes", "cifar10") and os.path.exists(place):
            changes[name] = place
    if not path.exists():
        return replace(recipe, **changes), None
    if not options.resume:
        raise UserError(f"{options.out} already holds a run; continue it with --resume, or choose another --out")
    saved = read_checkpoint(path)
    recipe = recipe_of(saved, path)
    stored = asdict(recipe) | {"recipe": recipe.name}
    for flag, value in {**changes, "recipe": options.recipe or recipe.name}.items():
        if flag not in CHANGEABLE and stored[flag] != value:
            raise UserError(f"the run in {options.out} has --{flag} {stored[flag]}, not {value}; leave --{flag} out, "
                            + NEW_RUN.format(recipe.name, options.out))  # fmt: skip
    recipe = replace(recipe, **{name: value for name, value in changes.items() if name in CHANGEABLE})
    if os.path.isabs(recipe.data) and not os.path.exists(recipe.data):
        raise UserError(f"{recipe.data}: the images of this run are gone; if they moved, add --data NEW")
    return recipe, saved


def recipe_of(saved, path):
    """The Recipe stored in a checkpoint; UserError if its fields or their types are those of another version."""
    stored, default = saved["recipe"], asdict(Recipe())
    if different := [name for name in {**default, **stored} if type(stored.get(name)) is not type(default.get(name))]:
        raise UserError(f"{path} was written by another version ({different[0]!r} in its recipe); "
                        f"start a new run from its weights with --init {path}")  # fmt: skip
    return Recipe(**stored)


def init_from(recipe, changes):
    """A recipe with --init -> (the recipe with the file's architecture, a state dict, a description for the user).

    changes: the fields set by flags; they must not contradict the file.  Positions are resized to the run's grid,
    unless only the heads train.  Heads in the file are used if they fit; then they need no warm-up.
    """
    network = load_vit(recipe.init)
    width, depth, n_heads = size = network.embed_dim, network.n_blocks, network.num_heads
    arch = next((name for name in CHOICES["arch"] if getattr(vit, name).args == size), None)
    if not arch:
        raise UserError(f"{recipe.init} is {width} wide and {depth} deep with {n_heads} heads; no --arch has this size")
    found = {"arch": arch, "patch_size": network.patch_size, "stem": network.stem,
             "n_registers": network.n_registers, "ffn": "swiglu" if hasattr(network.blocks[0].mlp, "w12") else "mlp"}
    for name, value in found.items():
        if changes.get(name, value) != value:
            raise UserError(f"--{name} {changes[name]}, but {recipe.init} has {value}; leave --{name} out")
    recipe = replace(recipe, **found)
    heads = heads_of(recipe.init, recipe)
    if heads and "head_warmup" not in changes:
        recipe = replace(recipe, head_warmup=0.0)
    if recipe.head_warmup + recipe.hires_share > 1:
        raise UserError(f"--head_warmup {recipe.head_warmup} and --hires_share {recipe.hires_share} add up to over 1")
    how = f"weights of {recipe.init} with {'its' if heads else 'new'} heads"
    how += f", alone for the first {round(recipe.steps * recipe.head_warmup)} steps" * bool(recipe.head_warmup)
    state = network.state_dict()
    if recipe.head_warmup < 1:
        n = (recipe.hires_size if recipe.hires_share else recipe.global_size) // recipe.patch_size
        state["pos_embed"] = network.positions(n, n).detach()
    return recipe, {f"backbone.{name}": x for name, x in state.items()} | heads, how


def heads_of(path, r):
    """The tensors of the teacher's heads in a checkpoint.pt, if its heads are those of recipe r; {} for other files."""
    try:
        saved = read_checkpoint(path)
    except (OSError, UserError):  # an official name, or another file
        return {}
    fit = all(saved["recipe"].get(name) == getattr(r, name) for name in HEAD_FIELDS)
    return {name: x for name, x in saved["teacher"].items() if fit and not name.startswith("backbone.")}


def load_teacher(r):
    """The frozen teacher that a recipe distils, with its heads, from another run's checkpoint.pt (§5)."""
    if r.teacher == "?":
        raise UserError(f"--recipe {r.name} needs a teacher; give the checkpoint.pt of a run with --teacher")
    try:
        saved = read_checkpoint(r.teacher)
    except (OSError, UserError):  # not a checkpoint of train.py
        load_vit(r.teacher)  # raises if the file holds no network
        raise UserError(f"--teacher {r.teacher} has no heads; to train them, add --teacher= --init {r.teacher} "
                        "--head_warmup 1 --hires_share 0 --out runs/teacher to this command; then use "
                        "--teacher runs/teacher/checkpoint.pt") from None  # fmt: skip
    theirs = recipe_of(saved, r.teacher)
    for name in ("patch_size", "n_prototypes"):
        if getattr(theirs, name) != getattr(r, name):
            raise UserError(f"the teacher was trained with --{name} {getattr(theirs, name)}; use the same")
    teacher = build_network(theirs, stored_size(saved["teacher"], theirs))
    try:
        teacher.load_state_dict(saved["teacher"])
    except RuntimeError as error:
        raise UserError(f"{r.teacher}: its tensors do not fit its recipe ({reason_of(error)[:200]})") from None
    return teacher.requires_grad_(False).eval()


def stored_size(state, r):
    """The image size in pixels that the positions in a network's state dict are stored for; None without positions."""
    positions = state.get("backbone.pos_embed", torch.empty(0))
    return math.isqrt(positions.shape[1] - 1) * r.patch_size if positions.dim() == 3 else None
