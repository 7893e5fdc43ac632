"""Train DINOv2: student, EMA teacher, one step, the loop, the high-resolution phase (§4, §5, B.2).

    python train.py                                    the built-in images, minutes on a laptop
    python train.py --data DIR --out runs/mine         your own images; any field of recipes.py is a flag
    python train.py --resume                           continue after Ctrl-C, a closed terminal, a crash or kill -9
    python train.py --init W --data DIR --out runs/b   a new run from the weights of another one, or from released ones
    torchrun --nproc-per-node 8 train.py FLAGS         eight GPUs (distributed.py)

    loss = w_D · L_DINO + w_I · L_iBOT + w_K · Σ_v L_KoLeo(global view v)
    teacher ← m · teacher + (1 − m) · student

The weights w are the recipe's dino_weight, ibot_weight and koleo_weight; 1, 1 and 0.1 in the paper.  m is the momentum
of the moving average (EMA).  In distillation the teacher is another network and stays frozen; the EMA of the student is
then only the result (§5).

A run leaves checkpoint.pt, vit.pt, metrics.jsonl, curves.png, pca.png and explore.html in its folder.  All
random numbers come from seeds made of the run's seed and the step and rank, or the epoch.  So a resumed run repeats an
uninterrupted one: on a CPU to the last bit.  On a GPU the last bits of sums vary.
"""

import math
import sys

import torch
from einops import rearrange
from torch import nn

import distributed
from augment import move
from dino_loss import dino_loss
from evaluate import measure_knn
from explore import write_split
from ibot_loss import ibot_loss
from koleo import koleo_loss
from masking import sample_masks
from network import build_network
from optimizer import set_rates
from pca_viz import draw_split
from schedule import cosine_schedule
from sinkhorn import sinkhorn_knopp
from support.checkpoint import save_checkpoint
from support.cli import parse_args, report_errors
from support.device import autocast, keep_pages
from support.files import lock_folder, make_folder, write_safely
from support.images import batches, in_memory
from support.log import RunLog, catch_signals, check_health
from support.start import check_images, load_splits_of, make_crop, prepare_run, stored_size

# ---------------------------------------------------------------------------- schedules


def phases(r):
    """[(name, first step, end, base learning rate), ...]: heads alone (with --init), low and high resolution."""
    low = r.steps - round(r.steps * r.hires_share)
    heads = min(round(r.steps * r.head_warmup), low) if r.init else 0
    return [("heads", 0, heads, r.lr), ("low", heads, low, r.init_lr if r.init else r.lr),
            ("hires", low, r.steps, r.hires_lr)]  # fmt: skip


def schedules_at(step, r):
    """All schedules at a step, as a dict.  Each phase runs every schedule from start to end (B.2).  Prototypes are
    frozen only at the start of the run, and never at high resolution."""
    phase, first, end, rate = next(phase for phase in phases(r) if step < phase[2])
    s, total, hires = step - first, end - first, phase == "hires"
    temp_warmup = round(total * r.teacher_temp_warmup)
    return {
        "hires": hires,
        "image_size": r.hires_image_size if hires else r.image_size,
        "global_size": r.hires_size if hires else r.global_size,
        "lr": cosine_schedule(s, total, rate * math.sqrt(r.batch / 1024), r.lr_end, round(total * r.lr_warmup)),
        "weight_decay": cosine_schedule(s, total, r.weight_decay, r.weight_decay_end),
        "momentum": cosine_schedule(s, total, r.momentum, r.momentum_end),
        "teacher_temp": cosine_schedule(s, total, r.teacher_temp, r.teacher_temp, temp_warmup, r.teacher_temp_start),
        "frozen_prototypes": first == 0 and not hires and s < r.freeze_prototypes * total,
        "frozen_backbone": phase == "heads",
    }


# ---------------------------------------------------------------------------- one step


def train_step(run, images, crop, values):
    """One step on images (B, 3, S, S): updates the run; returns the losses, targets and teacher [CLS].

    With micro_batch the gradients of the pieces add up; targets and [CLS] are those of the last piece.
    """
    r, sums = run.recipe, {}
    torch.manual_seed(make_seed(r.seed, run.step))
    for number, piece in enumerate(images.split(r.micro_batch or len(images)), start=1):
        views = crop(piece, make_seed(r.seed, run.step, number))
        losses, p_dino, cls_t = compute_losses(run, views, values)
        share = len(piece) / len(images)
        run.scaler.scale(share * losses["loss"]).backward()
        sums = {k: sums.get(k, 0) + share * v.detach() for k, v in losses.items()}
        del losses  # frees the graph of this piece before the next one
    sums["grad_norm"] = update_student(run, values)
    update_teacher(run.student, run.ema, values["momentum"])
    run.step += 1
    return sums, p_dino, cls_t


def make_seed(seed, step, use=0):
    """One seed for each step, rank and use: 0 for masks and stochastic depth, i for the crops of piece i."""
    return hash((seed, step, distributed.rank(), use)) % 2**62  # a hash of ints is the same in every process


def compute_losses(run, views, values):
    """Views (2·B, 3, g, g), (L·B, 3, l, l) -> {name: loss}, the teacher's targets (2, B, K), its [CLS] (2·B, D)."""
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
        # §5: a distilled student sees every patch; the patch loss stays at the masked positions
        student_masks = [None if r.teacher else masks, None][: len(crops)]
        with torch.set_grad_enabled(not values["frozen_backbone"]):
            cls_s, patches_s = student.backbone.training_features(crops, student_masks, masked)
        z_dino = rearrange(student.dino_head(cls_s), "(v b) k -> v b k", b=B)  # ((2 + L)·B, D) -> (2 + L, B, K)
        z_ibot = student.ibot_head(patches_s)  # (M, D) -> (M, K)
    losses = {
        "dino": dino_loss(z_dino, p_dino, r.student_temp),
        "ibot": ibot_loss(z_ibot, p_ibot, masks, r.student_temp),
        "koleo": sum(koleo_loss(view) for view in cls_s[: 2 * B].chunk(2)),  # two views of an image need not repel
    }
    losses["loss"] = r.dino_weight * losses["dino"] + r.ibot_weight * losses["ibot"] + r.koleo_weight * losses["koleo"]
    return losses, p_dino, cls_t


def center(run, name, logits, values):
    """Teacher logits (B, K) -> targets (B, K): Sinkhorn-Knopp, or softmax with a moving centre (§4)."""
    centering = run.centering[name] if name in run.centering else sinkhorn_knopp
    return centering(logits, values["teacher_temp"])


def update_student(run, values):
    """Clip the gradients of the backbone and of each head, take a step, and return the norm before."""
    parts = [part for name, part in run.student.named_children()  # lists a shared head once
             if not (name == "backbone" and values["frozen_backbone"])]  # fmt: skip
    run.scaler.unscale_(run.optimizer)
    norms = [nn.utils.clip_grad_norm_(part.parameters(), run.recipe.clip) for part in parts]
    set_rates(run.optimizer, values)
    run.scaler.step(run.optimizer)  # skipped if fp16 overflowed
    run.scaler.update()
    run.optimizer.zero_grad()
    return torch.stack([distributed.full_tensor(norm) for norm in norms]).norm()


@torch.no_grad()
def update_teacher(student, ema, momentum):
    """ema ← m · ema + (1 − m) · student, for all parameters at once."""
    old, new = (distributed.local_shards(network) for network in (ema, student))
    torch._foreach_lerp_(old, new, 1 - momentum)


# ---------------------------------------------------------------------------- the loop


def train(run, log):
    """Run the steps that are left.  Returns True if Ctrl-C or another signal stopped the run; it is saved then."""
    r, world, hires, stop = run.recipe, distributed.world_size(), None, False
    with catch_signals() as signals, log.bar:
        while run.step < r.steps and not stop:
            values = schedules_at(run.step, r)
            if values["hires"] != hires:  # a phase begins, or a resumed run enters it
                hires, splits = values["hires"], check_images(run, load_splits_of(r, values["image_size"]))
                stream = batches(splits[0], r.batch // world, r.seed, run.step, run.device, r.workers or None,
                                 (distributed.rank(), world))  # fmt: skip
                crop = make_crop(r, values["global_size"])
            if r.eval_every and run.step == 0 and splits[0].labels is not None:  # the network before training
                log.add_evaluation(evaluate_run(run, gather_vit(run), splits))
            with log.count_flops(hires, values["frozen_backbone"]):
                losses, p_t, cls_t = train_step(run, next(stream), crop, values)
            log.add_step(losses, p_t, cls_t, values)
            if r.eval_every and run.step % r.eval_every == 0 and run.step < r.steps:
                log.add_evaluation(evaluate_run(run, gather_vit(run), splits))
            if world == 1 or log.is_due():  # several ranks ask each other, which waits for the device
                stop = any(distributed.gather(bool(signals)))
            if run.step % r.save_every == 0 or run.step == r.steps or stop:
                check_health(log.healthy, run)
                save_checkpoint(run)
    return stop


def gather_vit(run):
    """The EMA's ViT with all its weights, on every rank."""
    size = stored_size(run.ema.state_dict(), run.recipe)
    vit = distributed.unsharded(run.ema.backbone, lambda: build_network(run.recipe, size).backbone.eval())
    return vit.to(run.device)


def evaluate_run(run, vit, splits):
    """Return all scores at the last phase's resolution; draw pca.png (not before step 1), at the end explore.html.

    k-NN uses eval_images training images during the run, all at the end; a streamed split gives eval_images or fewer.
    """
    r, last = run.recipe, run.step == run.recipe.steps
    size = schedules_at(r.steps - 1, r)["global_size"]
    splits = [in_memory(images, r.eval_images, size) for images in splits]
    with torch.compiler.set_stance("force_eager"):  # or each batch size of an evaluation would be compiled
        scores = measure_knn(vit, *splits, size, None if last else r.eval_images)
        if distributed.rank() == 0 and run.step:
            scores |= draw_split(vit, splits[1], size, run.out / "pca.png")
            if last:
                write_split(vit, splits[1], size, run.out / "explore.html")
    return scores


# ---------------------------------------------------------------------------- the program


@report_errors("train.py")
def main(argv=None):
    """The program; returns its exit status."""
    keep_pages()
    options, recipe, changes = parse_args(argv)
    make_folder(options.out, "checkpoint.pt", "vit.pt", "metrics.jsonl", "curves.png", "pca.png", "explore.html")
    with lock_folder(options.out):
        run = prepare_run(options, recipe, changes)
        r = run.recipe
        check_images(run, load_splits_of(r, schedules_at(min(run.step, r.steps - 1), r)["image_size"]))  # fails early
        log = RunLog(run)
        stopped = train(run, log)
        if stopped:
            distributed.print_first(f"stopped at step {run.step}; continue with --resume --out {run.out}")
        else:
            vit, splits = gather_vit(run), load_splits_of(r, schedules_at(r.steps - 1, r)["image_size"])
            if log.first:
                write_safely(run.out / "vit.pt", lambda path: torch.save(vit.state_dict(), path))
            log.finish(evaluate_run(run, vit, splits), splits)
    distributed.stop()
    return 130 if stopped else 0  # 130: stopped by a signal


if __name__ == "__main__":
    sys.exit(main())
