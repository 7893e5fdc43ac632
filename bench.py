"""Time real training steps: images/s, memory, arithmetic, and where the time goes. (§5)

    python bench.py --recipe vitl14 --arch vit_small --batch 8
    python bench.py --part sinkhorn                    one part alone: augment, sinkhorn, losses, attention or loader
    python bench.py --memory cuda --recipe vitl14      what a step will take, without a GPU and without allocating
    python bench.py --all                              all that wants a GPU, in one table
    python bench.py --scaling                          bench.png: images/s and memory against batch, K, ...

    share of peak = (FLOPs of an image · images/s) / (FLOP/s of a large matrix product, measured in the same run)

The step is `train.train_step` itself, on random pixels.  Two passes give its time, with crops made before and with
augmentation; a third, with a clock around what the step calls, where the time goes; a fourth counts the FLOPs of matrix
products and attention.
"""

import json
import statistics
import sys
import time
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import cross_entropy
import train
import vit
from dino_loss import dino_loss
from sinkhorn import sinkhorn_knopp
from support.cli import Parser, parse_args, positive, report_errors
from support.device import autocast, choose_threads, find_device, keep_pages, peak_memory
from support.everything import run_everything
from support.files import UserError
from support.footprint import Footprint, largest_batches, memory_table
from support.images import batches
from support.scaling import draw_scaling

WARMUP = 4  # steps that are not timed: allocators fill their pools, and kernels are chosen


def clock(device):
    """Seconds, once the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(call, device, repeats):
    """Seconds of each of `repeats` calls, after WARMUP more."""
    times = []
    for _ in range(WARMUP + repeats):
        start = clock(device)
        call()
        times.append(clock(device) - start)
    return times[WARMUP:]


def spread(times):
    """Median, and the relative distance between the fastest and the slowest."""
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


# ---------------------------------------------------------------------------- a whole step


def parts_of(run):
    """(owner, attribute, part) of all that train_step calls but the crop."""
    parts = []
    for role, network in (("teacher", run.teacher), ("student", run.student)):
        parts.append((network.backbone, "training_features", f"{role} ViT"))
        heads = [part for name, part in network.named_children() if name != "backbone"]  # of tied ones one
        parts += [(head, "forward", f"{role} heads") for head in heads]
    names = {"sample_masks": "masks", "center": "centering", "dino_loss": "DINO loss", "ibot_loss": "iBOT loss",
             "koleo_loss": "KoLeo", "update_student": "optimizer", "update_teacher": "EMA"}  # fmt: skip
    return [*parts, *((train, name, part) for name, part in names.items()), (torch.Tensor, "backward", "backward")]


def in_parts(step, crop, run, around):
    """step(crop), with each part inside of around(its name), a context manager."""

    def named(call, part):
        def inner(*args, **kwargs):
            with around(part):
                return call(*args, **kwargs)

        return inner

    with ExitStack() as stack:
        for owner, name, part in parts_of(run):
            stack.enter_context(patch.object(owner, name, named(getattr(owner, name), part)))
        step(named(crop, "augmentation"))


def measure_parts(step, crop, run, meter):
    """step(crop) with meter() read before and after each part: a Counter of what it rose by, "rest" included."""
    spent = Counter()

    @contextmanager
    def around(part):
        start = meter()
        yield
        spent[part] += meter() - start

    start = meter()
    in_parts(step, crop, run, around)
    spent["rest"] = meter() - start - sum(spent.values())
    return spent


def make_step(r, device):
    """A run of a recipe, its crop, a step(crop), and a crop that hands out what was made before."""
    run = train.start_run(r, device)
    crop = train.make_crop(r)
    images = torch.randint(0, 256, (r.batch, 3, r.image_size, r.image_size), dtype=torch.uint8, device=device)
    values = train.schedules_at(r.steps // 2, r)
    made = {len(piece): crop(piece, 0) for piece in images.split(r.micro_batch or r.batch)}  # before the clock starts

    def step(crop=crop):
        train.train_step(run, images, crop, values)

    return run, crop, step, lambda images, seed: made[len(images)]


def most_memory(device):
    """peak_memory, or NaN where it is not known."""
    return peak_memory(device) or float("nan")


def bench_step(r, steps, device):
    """A dict of all that the table shows, for a recipe."""
    run, crop, step, made = make_step(r, device)
    without, _ = spread(seconds_of(lambda: step(made), device, steps))
    memory_without = most_memory(device)
    seconds, around = spread(seconds_of(step, device, steps))
    memory = {"peak_memory": most_memory(device), "peak_memory_crops_made_before": memory_without}
    if device.type == "cuda":
        memory["reserved_memory"] = torch.cuda.max_memory_reserved(device)
    parts = measure_parts(step, crop, run, lambda: clock(device))
    with train.flop_counter() as counter:
        flops = measure_parts(step, crop, run, counter.get_total_flops)
    flops = {name: sum(flops[part] for part in flops if part.startswith(start)) / r.batch
             for name, start in (("forward", "student"), ("backward", "backward"), ("teacher", "teacher"))}  # fmt: skip
    total = sum(flops.values())
    peak = matrix_peak(r.amp, device)
    return {
        "arch": r.arch, "batch": r.batch, "n_prototypes": r.n_prototypes, "global_size": r.global_size,
        "device": str(device), "bf16": precision(r.amp, device) == torch.bfloat16,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "images_per_s": r.batch / seconds, "images_per_s_crops_made_before": r.batch / without,
        "seconds": seconds, "spread": around, **memory, "flops_per_image": total, "flops": flops,
        "flops_per_s": total * r.batch / seconds, "matrix_peak": peak,
        "share_of_peak": total * r.batch / seconds / peak, "parts": dict(parts),
    }  # fmt: skip


def precision(amp, device):
    """The type that matrix products have in a step."""
    with autocast(device, amp):
        return (torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)).dtype


def matrix_peak(amp, device):
    """FLOP/s of a large matrix product, at the precision of the step."""
    n = 1024 if device.type == "cpu" else 4096  # where a core has its peak; a GPU wants more at once
    a = torch.randn(n, n, device=device, dtype=precision(amp, device))
    return 2 * n**3 / min(seconds_of(lambda: a @ a, device, 3))


def table(result, threads):
    """The dict as lines for a person; threads: how many, and why."""
    flops, G = result["flops"], 1e9
    lines = [
        ("images/s", f"{result['images_per_s']:.2f}"),
        ("  crops made before", f"{result['images_per_s_crops_made_before']:.2f}"),
        ("seconds a step", f"{result['seconds']:.3f} (spread {result['spread']:.0%})"),
        ("peak memory", f"{result['peak_memory'] / 2**30:.2f} GiB"),
        ("  crops made before", f"{result['peak_memory_crops_made_before'] / 2**30:.2f} GiB"),
        *([("  reserved", f"{result['reserved_memory'] / 2**30:.2f} GiB")] if "reserved_memory" in result else []),
        ("GFLOP an image", f"{result['flops_per_image'] / G:.1f}"),
        *[(f"  {name}", f"{value / G:.1f}") for name, value in flops.items()],
        ("GFLOP/s", f"{result['flops_per_s'] / G:.0f}, {result['share_of_peak']:.0%} of a matrix product's "
                    f"{result['matrix_peak'] / G:.0f}"),
    ]  # fmt: skip
    total = sum(result["parts"].values())
    parts = sorted(result["parts"].items(), key=lambda item: -item[1])
    lines += [("one step, by part", f"{total:.3f} s"), *[(f"  {name}", f"{t / total:6.1%}") for name, t in parts]]
    title = f"{result['arch']}, batch {result['batch']}, K {result['n_prototypes']}, on {result['device']}, {threads}"
    return "\n".join([title, *[f"{name:28} {value}" for name, value in lines]])


# ---------------------------------------------------------------------------- memory, on paper


def count_memory(r, device_type):
    """Bytes that are alive at the peak of a recipe's step, by what made them: a Counter; nothing is allocated.

    device_type: "cpu", or "cuda", where attention is fused and losses take all rows at once, without what CUDA itself
    takes.  Temporary tensors of the augmentation are left out: they are gone when the peak comes.
    """
    footprint = Footprint()
    alive, build = footprint.alive, train.build_network

    def build_there(*arguments):
        network = footprint.made(lambda: build(*arguments), "weights")
        network.to = lambda *_: network
        return network

    def crop(images, seed):
        sizes = ((2 * len(images), r.global_size), (r.n_local * len(images), r.local_size))
        return footprint.made(lambda: tuple(torch.empty(n, 3, size, size) for n, size in sizes), "views")

    @contextmanager
    def around(part):
        before, alive.part = alive.part, part
        yield
        alive.part = before

    with ExitStack() as stack:
        patches = [(FakeTensorMode, "__deepcopy__", lambda mode, _: mode), (train, "build_network", build_there),
                   (torch.nn.init, "trunc_normal_", lambda x, **_: x)]  # fmt: skip
        if device_type == "cuda":
            patches += [(vit, "attend", F.scaled_dot_product_attention), (cross_entropy, "CACHED", 2**62),
                        (train, "autocast", lambda _, enabled: torch.autocast("cpu", enabled=enabled))]  # fmt: skip
        for owner, name, value in patches:
            stack.enter_context(patch.object(owner, name, value, create=name == "__deepcopy__"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of what has no numbers
        stack.enter_context(footprint)
        with around("teacher's weights"):
            run = train.start_run(r, torch.device("cpu"))
        with around("optimizers' state"):
            for p in run.student.parameters():
                p.grad = torch.zeros_like(p)
            for optimizer in run.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        images = torch.empty(r.batch, 0)  # crops are made of nothing
        alive.forget()
        in_parts(lambda crop: train.train_step(run, images, crop, train.schedules_at(0, r)), crop, run, around)
    return alive.at_peak


# ---------------------------------------------------------------------------- one part alone


def bench_part(part, r, steps, device):
    """A dict for one part at the recipe's sizes: seconds, spread, and what to hold it against."""
    B, K = r.batch, r.n_prototypes
    if part == "augment":
        crop = train.make_crop(r)
        images = torch.randint(0, 256, (B, 3, r.image_size, r.image_size), dtype=torch.uint8, device=device)
        seconds, around = spread(seconds_of(lambda: crop(images, 0), device, steps))
        return {"part": part, "seconds": seconds, "spread": around, "images_per_s": B / seconds}
    if part == "loader":
        stream = batches(train.splits_at(0, r)[0], B, r.seed, 0, device, r.workers or None)
        seconds = statistics.mean(seconds_of(lambda: next(stream), device, 10 * steps))  # they come in bursts
        return {"part": part, "seconds": seconds, "images_per_s": B / seconds}
    if part == "launches":
        return {"part": part, **launches_and_waits(r, device)}
    if part == "attention":
        backbone, tokens = train.build_network(r).backbone, 1 + (r.global_size // r.patch_size) ** 2
        n_heads = backbone.blocks[0].attn.n_heads
        shape = (2 * B, n_heads, tokens, backbone.embed_dim // n_heads)
        q, k, v = (torch.randn(shape, device=device, dtype=precision(r.amp, device), requires_grad=True)
                   for _ in range(3))  # fmt: skip
        seconds, around = spread(seconds_of(lambda: vit.attend(q, k, v).sum().backward(), device, steps))
        return {"part": part, "seconds": seconds, "spread": around}
    if part == "sinkhorn":
        logits = torch.randn(B, K, device=device)
        size = logits

        def call():
            sinkhorn_knopp(logits, 0.07)

    else:
        size = torch.randn(B * (2 + r.n_local), K, device=device)
        logits, probs = size.view(2 + r.n_local, B, K).requires_grad_(), torch.randn(2, B, K, device=device).softmax(-1)

        def call():
            logits.grad = None
            dino_loss(logits, probs).backward()

    before = most_memory(device)
    copy = min(seconds_of(size.detach().clone, device, steps))
    seconds, around = spread(seconds_of(call, device, steps))
    matrices = (most_memory(device) - before) / (size.numel() * 4)
    return {"part": part, "seconds": seconds, "spread": around, "copies": seconds / copy, "extra_matrices": matrices}


def launches_and_waits(r, device):
    """What a step on a GPU launches, by the profiler, and how often the CPU waits for it, as PyTorch warns."""
    if device.type != "cuda":
        raise UserError("--part launches needs a GPU; without one, pytest tests/test_cuda_step.py -s")
    *_, step, _ = make_step(r, device)
    for _ in range(WARMUP):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return {"launches": sum(event.count for event in profile.key_averages()),
            "waits": sum("synchroniz" in str(warning.message) for warning in waits)}  # fmt: skip


def largest_batch(r, device):
    """The recipe with the largest batch, of whole eights, that is expected to fit on this GPU."""
    if device.type != "cuda":
        raise UserError("--largest needs a GPU; --memory cuda says what fits without one")
    if r.micro_batch:
        raise UserError("--largest is of a step in one piece: with --micro_batch any batch takes as much")
    [batch] = largest_batches(count_memory, r, [torch.cuda.mem_get_info(device)[0]])
    return replace(r, batch=max(batch // 8 * 8, 1))


# ---------------------------------------------------------------------------- the program


@report_errors("bench.py")
def main(argv=None):
    """The program; returns its exit status."""
    keep_pages()
    parser = Parser(prog="bench.py",
                    description="Time training steps.  Any field of a recipe is a flag (train.py --help).")  # fmt: skip
    parser.add_argument("--steps", type=positive, default=5, help="steps that are timed (default: %(default)s)")
    parser.add_argument("--amp", choices=("bf16", "none"), default="bf16", help="precision (default: %(default)s)")
    parser.add_argument("--no-amp", dest="amp", action="store_const", const="none", help="the same as --amp none")
    parser.add_argument("--json", action="store_true", help="one line for machines")
    parser.add_argument("--part", choices=("augment", "sinkhorn", "losses", "attention", "loader", "launches"),
                        help="one part alone; loader: of --data; launches: on a GPU, and its waits")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="all that wants a GPU, each part in a process of its own: a "
                        "table and bench.json, in 9 minutes; --data PATH is where CIFAR-10 is")  # fmt: skip
    parser.add_argument("--largest", action="store_true", help="the largest batch that fits on this GPU")
    parser.add_argument("--memory", choices=("cpu", "cuda"), help="on paper: what a step will take there, by part")
    parser.add_argument("--scaling", action="store_true", help="draw bench.png: batch, K, crop size and depth")
    args, rest = parser.parse_known_args(argv)
    options, r, _ = parse_args([*rest, "--amp" if args.amp == "bf16" else "--no-amp"], parser)
    if r.init:
        raise UserError("--init is for train.py: here --arch, --patch_size, --n_registers and --ffn say the network")
    if args.memory:
        print(memory_table(count_memory, r, args.memory))
        return 0
    device, threads = find_device(options.device), choose_threads(options.threads)
    if args.all:
        data = r.data if "--data" in rest else None
        return int(run_everything(device, device.type == "cuda", data, "bench.json") > 0)
    r = largest_batch(r, device) if args.largest else r
    if args.scaling:
        flags = [*rest, "--amp", args.amp, "--threads", str(torch.get_num_threads())]
        print(draw_scaling(flags, r, "bench.png"))
        return 0
    result = bench_part(args.part, r, args.steps, device) if args.part else bench_step(r, args.steps, device)
    if args.json:
        print(json.dumps(result))
    elif args.part:
        print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{value}"
                        for name, value in result.items()) + f", {threads}")  # fmt: skip
    else:
        print(table(result, threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
