"""Train DINOv2: student, EMA teacher, one step, the loop, the high-resolution phase (§4, §5, B.2).

    python train.py                                    the built-in pictures, minutes on a laptop
    python train.py --data DIR --recipe cifar10        your own pictures; any field of recipes.py is a flag
    python train.py --resume                           go on after Ctrl-C, a crash, or kill -9
    python train.py --init runs/mine/checkpoint.pt ... start from a finished run, or from released weights
    torchrun --nproc-per-node 8 train.py ...           eight GPUs (distributed.py)

    L = L_DINO + w · L_iBOT + 0.1 · Σ_v L_KoLeo(global view v),        teacher ← m · teacher + (1 − m) · student

w is ibot_weight of the recipe, 1 in the paper's.  In distillation the teacher is another network and stays as it is;
then the average of the student is what the run is for.

A run leaves checkpoint.pt, vit.pt, metrics.jsonl, curves.png and pca.png in its folder.  All that is random in
step s is drawn from seeds made of (seed, s, rank), so a resumed run repeats an uninterrupted one, on a CPU to the last
bit; a GPU sums in no fixed order, and with --compile the first step of a session and of a phase is not compiled.
"""

import copy
import math
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import distributed
from augment import MultiCrop, move
from centering import SoftmaxCentering
from dino_loss import dino_loss
from distributed import print_first
from evaluate import measure_knn
from ibot_loss import ibot_loss
from koleo import koleo_loss
from masking import sample_masks
from network import build_network
from optimizer import make_optimizers, parameter_groups, set_rates
from pca_viz import draw_split
from recipes import Recipe
from schedule import cosine_schedule
from sinkhorn import sinkhorn_knopp
from support.checkpoint import read_checkpoint, restore, save_checkpoint
from support.cli import parse_args, recipe_of, report_errors
from support.device import autocast, check_memory, choose_threads, find_device, keep_pages
from support.files import UserError, lock_folder, make_folder, write_safely
from support.images import batches, in_memory, load_splits
from support.log import RunLog, add_metrics, catch_signals, check_health, read_metrics, seconds_of
from support.report import draw_curves, scores_in_words
from support.start import (
    check_processes,
    find_checkpoint,
    heads_of,
    init_from,
    need_pictures,
    need_teacher,
    warmed_teacher,
)

FILES = ("checkpoint.pt", "vit.pt", "metrics.jsonl", "curves.png", "pca.png")  # that a run leaves

# ---------------------------------------------------------------------------- networks


@dataclass
class Run:
    """What a step needs and changes."""

    recipe: Recipe
    student: nn.ModuleDict
    teacher: nn.ModuleDict  # gives the targets: the EMA, or in distillation a frozen larger network
    ema: nn.ModuleDict  # follows the student: what the run is for
    centering: nn.ModuleDict  # the two moving centres, or empty for Sinkhorn-Knopp
    optimizers: list  # AdamW, and Muon where the recipe says so
    step: int = 0
    training_flops: int = 0  # of the steps so far, on all ranks


def start_run(recipe, device, start=None, teacher=None):
    """A Run at step 0: its weights drawn from the seed, but for those in the state dict `start`.

    teacher: the checkpoint.pt that is distilled; the recipe's, if that is one.
    """
    torch.manual_seed(recipe.seed)
    student = build_network(recipe, start and stored_size(start, recipe))
    student.load_state_dict(start or {}, strict=False)
    student = student.to(device)
    ema = distributed.shard(copy.deepcopy(student).requires_grad_(False).eval())
    student = distributed.shard(student)
    teacher = load_teacher(recipe, teacher or recipe.teacher, device) if recipe.teacher else ema
    centering = nn.ModuleDict()
    if recipe.centering == "softmax":
        centering = nn.ModuleDict({name: SoftmaxCentering(recipe.n_prototypes) for name in ("dino", "ibot")})
    optimizers = make_optimizers(parameter_groups(student, recipe))
    if recipe.compile:
        for vit_ in (student.backbone, teacher.backbone):  # sizes are those of the phase: one graph for each phase
            vit_.training_features = torch.compile(vit_.training_features, fullgraph=True, dynamic=False)
    return Run(recipe, student, teacher, ema, centering.to(device), optimizers)


def load_teacher(recipe, path, device):
    """The frozen teacher of a distillation, heads and all, from another run's checkpoint.pt (§5)."""
    need_teacher(recipe)
    saved = read_checkpoint(Path(path))
    theirs, _ = recipe_of(saved, path)
    for name in ("patch_size", "n_prototypes"):
        if getattr(theirs, name) != getattr(recipe, name):
            raise UserError(f"the teacher was trained with --{name} {getattr(theirs, name)}; set the same")
    try:
        teacher = build_network(theirs, stored_size(saved["teacher"], theirs))
        teacher.load_state_dict(saved["teacher"])
    except (LookupError, RuntimeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} does not fit its own recipe ({' '.join(str(error).split())[:200]})") from None
    return distributed.shard(teacher.requires_grad_(False).eval().to(device))


def stored_size(state, r):
    """The side in pixels of the pictures for which a network's state dict has its positions."""
    return math.isqrt(state["backbone.pos_embed"].shape[1] - 1) * r.patch_size


# ---------------------------------------------------------------------------- schedules


def phases(r):
    """(name, first step, the step after the last, base learning rate): heads alone on given weights, low, and high."""
    low = r.steps - round(r.steps * r.hires_share)
    heads = min(round(r.steps * r.head_warmup), low) if r.init else 0
    return [("heads", 0, heads, r.lr), ("low", heads, low, r.init_lr if r.init else r.lr),
            ("hires", low, r.steps, r.hires_lr)]  # fmt: skip


def schedules_at(step, r):
    """What the schedules say at a step: a dict.  Each phase has all of them from their start, compressed; but
    prototypes are frozen in the first phase alone, and not at high resolution."""
    phase, first, end, rate = next(phase for phase in phases(r) if step < phase[2])
    s, total, hires = step - first, end - first, phase == "hires"
    temp_warmup = round(total * r.teacher_temp_warmup)
    return {
        "hires": hires,
        "lr": cosine_schedule(s, total, rate * math.sqrt(r.batch / 1024), r.lr_end, round(total * r.lr_warmup)),
        "weight_decay": cosine_schedule(s, total, r.weight_decay, r.weight_decay_end),
        "momentum": cosine_schedule(s, total, r.momentum, r.momentum_end),
        "teacher_temp": cosine_schedule(s, total, r.teacher_temp, r.teacher_temp, temp_warmup, r.teacher_temp_start),
        "frozen_prototypes": first == 0 and not hires and s < r.freeze_prototypes * total,
        "frozen_backbone": phase == "heads",
    }


def seed_of(seed, step, use=0):
    """One seed for each step, rank and use."""
    return hash((seed, step, distributed.rank(), use)) % 2**62  # of ints: the same in every process


# ---------------------------------------------------------------------------- one step


def train_step(run, images, crop, values):
    """One step on images (B, 3, S, S): updates run; returns the losses and what the collapse meter reads.

    In pieces of micro_batch images, gradients add up to those of the pieces' mean loss; the meter reads the last piece.
    """
    r, sums = run.recipe, {}
    torch.manual_seed(seed_of(r.seed, run.step))
    for number, piece in enumerate(images.split(r.micro_batch or len(images)), start=1):
        views = crop(piece, seed_of(r.seed, run.step, use=number))
        losses, p_dino, cls_t = compute_losses(run, views, values)
        share = len(piece) / len(images)
        (share * losses["loss"]).backward()
        sums = {k: sums.get(k, 0) + share * v.detach() for k, v in losses.items()}
        del losses
    sums["grad_norm"] = update_student(run, values)
    update_teacher(run.student, run.ema, values["momentum"])
    run.step += 1
    return sums, p_dino, cls_t


@contextmanager
def flop_counter():
    """PyTorch's counter of FLOPs.  It cannot look into compiled functions, so they run as they are written."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        yield counter


def counted_step(run, images, crop, values, counts):
    """train_step; run.training_flops grows by its FLOPs, which are counted once for each kind of step, in `counts`."""
    kind = values["hires"], values["frozen_backbone"]
    with nullcontext() if kind in counts else flop_counter() as counter:
        result = train_step(run, images, crop, values)
    if counter:
        counts[kind] = counter.get_total_flops() * distributed.world_size()
    run.training_flops += counts[kind]
    return result


def compute_losses(run, views, values):
    """L and its parts for views (2·B, 3, g, g), (L·B, 3, l, l); the teacher's targets (2, B, K) and [CLS] (2·B, D)."""
    r, student, teacher = run.recipe, run.student, run.teacher
    globals_, locals_ = views
    B, device = len(globals_) // 2, globals_.device
    grid = globals_.shape[-1] // r.patch_size
    masks = sample_masks(2 * B, grid, grid, r.mask_ratio, r.mask_probability)  # (2·B, N)
    masked = move(masks.flatten().nonzero()[:, 0], device)  # (M,)
    masks = move(masks, device)

    with torch.no_grad(), autocast(device, r.amp):
        cls_t, patches_t = teacher.backbone.training_features([globals_], [None], masked)  # (2·B, D), (M, D)
        p_dino = center(run, "dino", teacher.dino_head(cls_t), values)  # (2·B, K)
        p_dino = rearrange(p_dino, "(v b) k -> v b k", b=B)  # (2, B, K)
        p_ibot = center(run, "ibot", teacher.ibot_head(patches_t), values)  # (M, K)

    with autocast(device, r.amp):
        crops = [x for x in (globals_, locals_) if len(x)]  # there may be no local views
        seen = [None if r.teacher else masks, None][: len(crops)]  # §5: a distilled student sees every patch
        with torch.set_grad_enabled(not values["frozen_backbone"]):
            cls, patches = student.backbone.training_features(crops, seen, masked)
        z_dino = rearrange(student.dino_head(cls), "(v b) k -> v b k", b=B)  # ((2 + L)·B, D) -> (2 + L, B, K)
        z_ibot = student.ibot_head(patches)  # (M, D) -> (M, K)
    losses = {
        "dino": dino_loss(z_dino, p_dino, r.student_temp),
        "ibot": ibot_loss(z_ibot, p_ibot, masks, r.student_temp),
        "koleo": sum(koleo_loss(view) for view in cls[: 2 * B].chunk(2)),  # two views of an image need not repel
    }
    del z_dino, z_ibot, p_ibot  # large, and the losses have what the backward pass needs
    losses["loss"] = r.dino_weight * losses["dino"] + r.ibot_weight * losses["ibot"] + r.koleo_weight * losses["koleo"]
    return losses, p_dino, cls_t


def center(run, name, logits, values):
    """Teacher logits (B, K) -> targets (B, K): Sinkhorn-Knopp, or softmax with a moving centre (§4)."""
    centering = run.centering[name] if name in run.centering else sinkhorn_knopp
    return centering(logits, values["teacher_temp"])


def update_student(run, values):
    """Clip the gradients, of the backbone and each head by itself, and take a step; their norm before that."""
    parts = [part for name, part in run.student.named_children()  # of tied heads one
             if not (name == "backbone" and values["frozen_backbone"])]  # fmt: skip
    norms = [nn.utils.clip_grad_norm_(part.parameters(), run.recipe.clip) for part in parts]
    set_rates(run.optimizers, values)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack([distributed.whole(norm) for norm in norms]).norm()


@torch.no_grad()
def update_teacher(student, ema, momentum):
    """teacher ← m · teacher + (1 − m) · student, of all parameters at once."""
    old, new = (distributed.local_shards(network) for network in (ema, student))
    torch._foreach_lerp_(old, new, 1 - momentum)


# ---------------------------------------------------------------------------- images of a phase


def sizes_at(step, r):
    """Sides of the decoded squares and of the global crops in a step's phase; of the last phase, when all is done."""
    hires = schedules_at(min(step, r.steps - 1), r)["hires"]
    return (r.hires_image_size, r.hires_size) if hires else (r.image_size, r.global_size)


def splits_at(step, r):
    """The training and the test images of a step's phase."""
    return load_splits(r.data, sizes_at(step, r)[0], r.seed, r.scale if any(r.scale) else None, r.max_megapixels)


def images_from(step, r, device):
    """This rank's share of the batches of a step's phase, from that step on."""
    rank, world = distributed.rank(), distributed.world_size()
    return batches(splits_at(step, r)[0], r.batch // world, r.seed, step, device, r.workers or None, (rank, world))


def make_crop(r, step=0):
    """The crops of a step's phase."""
    size = sizes_at(step, r)[1]
    return MultiCrop(size, r.local_size, r.n_local, r.global_scale, r.local_scale, r.blur_sigma, r.jitter)


# ---------------------------------------------------------------------------- the loop


def train(run, out, device):
    """Run the steps that are left.  Returns the rows of metrics.jsonl, and whether a person stopped the run.

    Ctrl-C lets the step end and saves a checkpoint; a second one kills.
    """
    r, world = run.recipe, distributed.world_size()
    splits_at(run.step, r)  # before the bar, so that a wrong --data is one line
    record, hires, stop, counts = RunLog(run, out, device), None, False, {}
    with catch_signals() as signals, record.bar:
        while run.step < r.steps and not stop:
            if r.eval_every and run.step and run.step % r.eval_every == 0 and not record.evaluated():
                record.evaluation(evaluate(run, whole_vit(run), out))
            values = schedules_at(run.step, r)
            if values["hires"] != hires:  # a phase begins, or a resumed run joins it
                hires = values["hires"]
                stream, crop = images_from(run.step, r, device), make_crop(r, run.step)
            losses, p_t, cls = counted_step(run, next(stream), crop, values, counts)
            record.step(losses, p_t, cls, values)
            if world == 1 or record.due():  # several ask, and wait for the device, less often
                stop = distributed.any_rank(signals)
            if run.step % r.save_every == 0 or run.step == r.steps or stop:
                check_health(record.healthy, run.step, out)
                save_checkpoint(run, out)
    return record.rows, stop


# ---------------------------------------------------------------------------- the program


def prepare(options, recipe, changes, device):
    """What the command line says -> (run, device): a new run, or one that goes on."""
    out, warmed = options.out, warmed_teacher(options.out)
    recipe, saved = find_checkpoint(options, recipe, changes)
    need_pictures(recipe)
    need_teacher(recipe)
    device = distributed.start(device)
    check_processes(recipe, device)
    threads = choose_threads(options.threads, saved and saved.get("threads"))
    teacher = warmed if saved and warmed.exists() else None  # it was warm when the run began
    if recipe.teacher and not saved and not heads_of(recipe.teacher):
        teacher = warm_teacher(recipe, out, device)
    start, from_where = None, "starts"
    if recipe.init and not saved:
        recipe, start, words = init_from(recipe, changes, build_network)
        from_where = f"starts from {recipe.init} ({words})"
    check_memory(recipe, device, build_network)
    run = start_run(recipe, device, start, teacher)
    if saved:
        restore(run, saved)
    start = f"goes on at step {run.step}" if saved else from_where
    n = sum(p.numel() for p in run.student.backbone.parameters()) / 1e6
    print_first(f"{out}: {recipe.arch} of {n:.1f} M parameters on {device}, {threads}, {start} of {recipe.steps} steps")
    return run, device


def warm_teacher(recipe, out, device):
    """checkpoint.pt of a teacher without heads, with heads that have learned on its frozen weights (§5): a run of its
    own, in the folder `teacher` of the run."""
    checkpoint, steps = warmed_teacher(out), max(1, round(recipe.steps * recipe.head_warmup))
    out = checkpoint.parent
    r = replace(recipe, init=recipe.teacher, teacher="", steps=steps, head_warmup=1.0, hires_share=0.0, eval_every=0,
                drop_path=0.0)  # fmt: skip
    r, start, _ = init_from(r, {"patch_size": recipe.patch_size, "head_warmup": 1.0}, build_network, resize=False)
    make_folder(out)
    run = start_run(r, device, start)
    if checkpoint.exists():
        saved = read_checkpoint(checkpoint)
        if saved["recipe"] != asdict(r):
            raise UserError(f"{out} holds the heads of another run's teacher; the flags of that one, or another --out")
        restore(run, saved)
    print_first(f"{out}: heads for the teacher {recipe.teacher}, {steps} steps")
    _, stopped = train(run, out, device)
    distributed.wait()  # until the first rank has written
    if stopped:
        print_first(f"stopped at step {run.step} of the teacher's heads; the same command with --resume goes on")
        distributed.stop()
        raise SystemExit(130)
    return checkpoint


def whole_vit(run):
    """The EMA's ViT with all its weights, on each rank."""
    device = next(run.ema.parameters()).device
    return distributed.unsharded(run.ema.backbone, lambda: build_network(run.recipe).backbone.to(device).eval())


def evaluate(run, network, out):
    """Draws pca.png; a dict of k-NN accuracies, the scores of draw_split, and the arithmetic that this took.

    On the way by eval_images training images, at the end by all; of a set that is streamed by eval_images at any time.
    """
    r, last = run.recipe, run.step == run.recipe.steps
    size = sizes_at(r.steps, r)[1]
    splits = [in_memory(images, r.eval_images, size) for images in splits_at(run.step, r)]
    with flop_counter() as counter:
        scores = measure_knn(network, *splits, size, None if last else r.eval_images, progress=last)
        if distributed.rank() == 0:
            scores |= draw_split(network, splits[1], size, out / "pca.png")
    flops = torch.tensor(float(counter.get_total_flops()), dtype=torch.float64, device=distributed.device())
    return {**scores, "evaluation_flops": int(distributed.sum_over_ranks(flops))}


def finish(run, out, rows, began):
    """What a finished run leaves besides its checkpoint; prints the last line."""
    network, rank = whole_vit(run), distributed.rank()
    if rank == 0:
        write_safely(out / "vit.pt", lambda path: torch.save(network.state_dict(), path))
    scores = evaluate(run, network, out)
    measuring = sum(row.get("evaluation_flops", 0) for row in [*rows, scores])
    if rank > 0:
        return
    row = {"step": run.recipe.steps, **scores, "training_flops": run.training_flops,
           "seconds": time.perf_counter() - began, "final": True}  # fmt: skip
    add_metrics(out / "metrics.jsonl", row)
    draw_curves([*rows, row], run.recipe, out / "curves.png")
    splits = splits_at(run.step, run.recipe)
    broken = len({name for images in splits for name, _ in images.skipped})
    words = scores_in_words(scores) + (f" by a sample of {len(splits[0].sample)} images" if splits[0].sample else "")
    words += f", {broken} broken files skipped" if broken else ""
    words += f", {run.training_flops / 1e12:.1f} TFLOP and {measuring / 1e12:.1f} for measuring"
    print(f"{words}, {row['seconds']:.0f} s, {out}")


@report_errors("train.py")
def main(argv=None):
    """The program; returns its exit status."""
    began = time.perf_counter()
    keep_pages()
    options, recipe, changes = parse_args(argv)
    device, out = find_device(options.device), options.out
    make_folder(out, *FILES)
    with lock_folder(out):
        run, device = prepare(options, recipe, changes, device)
        began -= seconds_of(read_metrics(out / "metrics.jsonl", run.step))  # of earlier sessions
        rows, stopped = train(run, out, device)
        if stopped:
            print_first(f"stopped at step {run.step} of {run.recipe.steps}; --resume goes on from {out}")
        else:
            finish(run, out, rows, began)
    distributed.stop()
    return 130 if stopped else 0  # 130: what a shell expects of Ctrl-C


if __name__ == "__main__":
    sys.exit(main())
