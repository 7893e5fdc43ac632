"""Time training steps, and count their arithmetic and memory (§5).

    python bench.py --recipe vitl14 --batch 64             on a GPU or CPU; recipes' fields are flags
    python bench.py --recipe vitl14 --batch 64 --peer lightly    lightly's step too, by turns (tests/lightly_step.py)
    python bench.py --memory cuda --recipe vitl14          memory of a step on a GPU, counted without a GPU

    mfu = FLOPs of the model / (seconds of a step · peak)      peak: FLOP/s in the GPU's data sheet, or measured,
    hfu = FLOPs computed / (seconds of a step · peak)          with a large matrix product in the same run

FLOPs are those of matrix products and attention.  Checkpointing computes some twice, which counts for hfu (hardware)
and not for mfu (model).  host_ms: until Python has launched a step.  step_ms: until the device has computed it.
"""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
import vit
from support.cli import Parser, parse_args, positive, report_errors
from support.device import autocast, choose_threads, find_device, flop_counter, keep_pages, peak_memory
from support.files import UserError
from support.start import make_crop, start_run

ROUNDS, WARMUP = 3, 3  # ours: timings, and untimed steps before them, in which memory pools fill
DATA_SHEET = {  # dense TFLOP/s in bf16, or in fp16 for those without, by torch.cuda.get_device_name()
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756,
    "NVIDIA H200": 989, "NVIDIA L4": 121, "Tesla T4": 65, "Tesla V100-SXM2-16GB": 125,
}  # fmt: skip


def time_calls(call, device, n):
    """Time n calls between two waits for the device: seconds until the first one returns, and seconds of each."""
    wait = (lambda: None) if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)
    wait()
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    for _ in range(n - 1):
        call()
    wait()
    return host, (time.perf_counter() - start) / n


def measured_peak(device, amp):
    """FLOP/s of a large matrix product, several in a row, and its type."""
    n = 1024 if device.type == "cpu" else 16384  # ours: large enough for full speed
    a = torch.randn(n, n, device=device)
    with autocast(device, amp):
        a = a @ a  # now in the precision of a step's products
    return 2 * n**3 / min(time_calls(lambda: a @ a, device, 8)[1] for _ in range(ROUNDS)), a.dtype


def describe_device(device):
    """The device's name, and a GPU's driver and clock, if nvidia-smi is there."""
    if device.type != "cuda":
        return {"device": device.type}
    which = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"  # nvidia-smi numbers GPUs otherwise
    query = ["nvidia-smi", which, "--query-gpu=driver_version,clocks.sm", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True) if shutil.which("nvidia-smi") else None
    said = done.stdout.strip().split(", ") if done and not done.returncode else ()
    return {"device": torch.cuda.get_device_name(device), **dict(zip(("driver", "clock"), said))}


def bench_step(r, steps, device, peer=None):
    """Measure the training step of a recipe: a dict of numbers by name.  peer: another step, timed by turns with it."""
    run, crop, values = start_run(r, device), make_crop(r, r.global_size), train.schedules_at(r.steps // 2, r)
    images = torch.randint(0, 256, (r.batch, 3, r.image_size, r.image_size), dtype=torch.uint8, device=device)
    views = crop(images, 0)
    ours = (lambda *_: views) if peer else crop  # the peer has no augmentation, so neither has ours then
    calls = {"ours": lambda: train.train_step(run, images, ours, values)} | ({"peer": peer(r, views)} if peer else {})
    for call in calls.values():
        time_calls(call, device, WARMUP)
    rounds = [{name: time_calls(call, device, steps) for name, call in calls.items()} for _ in range(ROUNDS)]
    hosts, seconds = zip(*(timed["ours"] for timed in rounds))
    host, t = statistics.median(hosts), statistics.median(seconds)
    clock, memory = describe_device(device), peak_memory(device)
    with flop_counter() as counter:
        calls["ours"]()
    computed, (peak, dtype) = counter.get_total_flops(), measured_peak(device, r.amp)
    flops = count_step(replace(r, checkpointing=False), device.type)[2] if r.checkpointing else computed
    sheet = DATA_SHEET.get(clock["device"]) if dtype != torch.float32 else None
    result = {
        **clock, "dtype": str(dtype), "torch": torch.__version__, "images_per_s": r.batch / t, "step_ms": 1e3 * t,
        "spread": (max(seconds) - min(seconds)) / t, "host_ms": 1e3 * host, "peak_gib": memory and memory / 2**30,
        "predicted_gib": count_step(r, "cuda")[1] / 2**30 if device.type == "cuda" else None,
        "gflop_per_image": flops / r.batch / 1e9, "tflop_per_s": flops / t / 1e12, "peak_tflop_per_s": peak / 1e12,
    }  # fmt: skip
    for name, n in (("mfu", flops), ("hfu", computed))[: 1 + r.checkpointing]:
        result |= {f"{name}_measured": n / t / peak, f"{name}_data_sheet": n / t / 1e12 / sheet if sheet else None}
    return result | {"ours_over_peer": [x["peer"][1] / x["ours"][1] for x in rounds]} if peer else result


class MemoryCounter(TorchDispatchMode):
    """Count the bytes of fake tensors, which have a shape but no numbers."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.alive = self.peak = 0  # bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count the storages that it makes until they are freed."""
        fake = any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs)))
        with self.fake if fake else contextlib.nullcontext():
            out = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, FakeTensor)):
            if not hasattr(storage, "counted"):
                storage.counted = True
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        return out

    def add(self, size):
        """Count `size` more bytes."""
        self.alive += size
        self.peak = max(self.peak, self.alive)


def start_fake_run(r, device, counter):
    """Start a run whose weights are fake tensors on the device."""
    with (  # what fake tensors do not support
        patch.object(FakeTensor, "__deepcopy__", lambda x, _: torch.nn.Parameter(x.detach().clone(), x.requires_grad)),
        patch.object(torch.nn.Module, "to", lambda module, _: module),
        patch.object(torch.nn.init, "trunc_normal_", lambda x, **_: x),
        counter.fake, device,
    ):  # fmt: skip
        run = start_run(r, device)
    with counter:
        for p in [*run.student.parameters(), *run.ema.parameters(), *run.teacher.parameters()]:
            p.detach()  # any operation, so that its memory is counted
    return run


def count_step(r, device_type):
    """Count a step on "cpu" or "cuda", but compute nothing: bytes of weights and moments, bytes at the peak, FLOPs."""
    counter, cast, plain = MemoryCounter(), autocast, vit.PLAIN_ATTENTION
    if device_type == "cuda":  # bf16, and fused attention
        cast, plain = lambda _, amp: torch.autocast("cpu", enabled=amp != "none"), 0
    run = start_fake_run(r, torch.device("cpu"), counter)

    def crop(images, seed):  # only the results: temporary tensors of the augmentation are gone before the peak
        sizes = ((2, r.global_size), (r.n_local, r.local_size))
        return [images.new_empty(n * len(images), 3, size, size) for n, size in sizes]

    with counter, patch.object(train, "autocast", cast), patch.object(vit, "PLAIN_ATTENTION", plain):
        images = next(run.student.parameters()).new_empty(r.batch, 0)
        for _ in range(2):  # the first step makes the moments
            state = counter.alive
            with flop_counter() as flops:
                train.train_step(run, images, crop, train.schedules_at(r.steps // 2, r))
    return state, counter.peak, flops.get_total_flops()


@report_errors("bench.py")
def main(argv=None):
    """Run the program and return its exit status."""
    keep_pages()
    parser = Parser(prog="bench.py", description="Time training steps.  All flags of train.py work too.")
    parser.add_argument("--steps", type=positive, default=4, help="steps in each timing (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--peer", choices=("lightly",), help="time lightly's step too, by turns, on crops made before")
    parser.add_argument("--memory", choices=("cpu", "cuda"), help="count a step's memory there, without running it")
    args, flags = parser.parse_known_args(argv)
    options, r, _ = parse_args(flags, "bench.py")
    if r.init:
        raise UserError("bench.py does not load weights; instead of --init, set --arch, --patch_size and --ffn")
    peer = None
    if args.peer:
        try:
            from tests.lightly_step import lightly_step as peer
        except ImportError as error:
            raise UserError(f"--peer lightly: {error}; run: pip install lightly timm") from None
        if r.arch == "vit_giant2":
            raise UserError("--peer lightly has no SwiGLU; use another --arch")
        r = replace(r, ffn="mlp", checkpointing=False, micro_batch=0)  # as lightly's
    result = {name: getattr(r, name) for name in ("arch", "batch", "n_prototypes", "global_size", "checkpointing")}
    if args.memory:
        state, peak, _ = count_step(r, args.memory)
        result |= {"device": args.memory, "state_gib": state / 2**30, "peak_gib": peak / 2**30}
    else:
        result |= {"threads": choose_threads()} | bench_step(r, args.steps, find_device(options.device), peer)
    lines = (f"{name:32} {f'{x:.4g}' if isinstance(x, float) else x}" for name, x in result.items())
    print(json.dumps(result) if args.json else "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
