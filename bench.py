"""Time training steps, and count their arithmetic and memory (§5).

    python bench.py --recipe vitl14 --arch vit_small --batch 8    any field of a recipe is a flag, as for train.py
    python bench.py --memory cuda --recipe vitl14 --batch 64      memory of a step on a GPU, counted without a GPU

    share_of_peak = FLOP/s of a step / FLOP/s of a large matrix product, measured in the same run
    mfu           = FLOP/s of a step / FLOP/s in the GPU's data sheet

FLOPs are those of matrix products and attention.  --checkpointing computes some twice, which count twice: then the
share of the data sheet is called hfu (hardware FLOPs) instead of mfu (model FLOPs).  The host has launched a step after
host_seconds, and the device has finished it after `seconds`.
"""

import json
import statistics
import sys
import time
import weakref
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

WARMUP = 4  # ours: untimed steps, in which memory pools fill and kernels are chosen
DATA_SHEET = {  # dense bf16 TFLOP/s in NVIDIA's data sheets, by torch.cuda.get_device_name()
    "NVIDIA A100-SXM4-40GB": 312, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989,
}


def time_calls(call, device, repeats):
    """Time call(), `repeats` times: seconds until each returns, and seconds until the device is done."""
    host, total = [], []
    synchronize = (lambda: None) if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)
    for _ in range(WARMUP + repeats):
        synchronize()
        start = time.perf_counter()
        call()
        host.append(time.perf_counter() - start)
        synchronize()
        total.append(time.perf_counter() - start)
    return host[WARMUP:], total[WARMUP:]


def bench_step(r, steps, device):
    """Measure the training step of a recipe: a dict of numbers by name."""
    run, crop, values = start_run(r, device), make_crop(r, r.global_size), train.schedules_at(r.steps // 2, r)
    images = torch.randint(0, 256, (r.batch, 3, r.image_size, r.image_size), dtype=torch.uint8, device=device)
    host, seconds = time_calls(lambda: train.train_step(run, images, crop, values), device, steps)
    t, memory = statistics.median(seconds), peak_memory(device)
    with flop_counter() as counter:
        train.train_step(run, images, crop, values)
    flops = counter.get_total_flops()
    n = 1024 if device.type == "cpu" else 8192  # ours: large enough for full speed
    a = torch.randn(n, n, device=device)
    with autocast(device, r.amp):
        a = a @ a  # now in the precision of a step's products
    speed, peak = flops / t / 1e12, 2 * n**3 / min(time_calls(lambda: a @ a, device, 3)[1]) / 1e12
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    data_sheet = DATA_SHEET.get(name) if a.dtype != torch.float32 else None
    return {
        "device": name, "dtype": str(a.dtype), "torch": torch.__version__,
        "images_per_s": r.batch / t, "seconds": t, "spread": (max(seconds) - min(seconds)) / t,
        "host_seconds": statistics.median(host), "peak_gib": memory and memory / 2**30,
        "tflop_per_s": speed, "matrix_tflop_per_s": peak, "share_of_peak": speed / peak,
        "hfu" if r.checkpointing else "mfu": data_sheet and speed / data_sheet,
        "gflop_per_image": flops / r.batch / 1e9,
    }  # fmt: skip


class MemoryCounter(TorchDispatchMode):
    """Count the bytes of fake tensors, which have a shape but no numbers."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.alive = self.peak = 0  # bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))):
            return self.run_fake(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def run_fake(self, func, args, kwargs):
        """Run an operation, and count the storages that it makes until they are freed."""
        with self.fake:
            out = func(*args, **kwargs)
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


def count_memory(r, device_type):
    """Bytes of weights and moments, and bytes at the peak of a step on "cpu" or "cuda".  Nothing is allocated."""
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
            train.train_step(run, images, crop, train.schedules_at(r.steps // 2, r))
    return state, counter.peak


@report_errors("bench.py")
def main(argv=None):
    """Run the program and return its exit status."""
    keep_pages()
    parser = Parser(prog="bench.py", description="Time training steps.  All flags of train.py work too.")
    parser.add_argument("--steps", type=positive, default=5, help="steps that are timed (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--memory", choices=("cpu", "cuda"), help="count a step's memory there, without running it")
    args, flags = parser.parse_known_args(argv)
    options, r, _ = parse_args(flags + ["--no-compile"] * bool(args.memory), "bench.py")
    if r.init:
        raise UserError("bench.py does not load weights; instead of --init, set --arch, --patch_size and --ffn")
    result = {name: getattr(r, name) for name in ("arch", "batch", "n_prototypes", "global_size", "checkpointing")}
    if args.memory:
        state, peak = count_memory(r, args.memory)
        result |= {"device": args.memory, "state_gib": state / 2**30, "peak_gib": peak / 2**30}
    else:
        result |= {"threads": choose_threads()} | bench_step(r, args.steps, find_device(options.device))
    lines = (f"{name:32} {f'{x:.4g}' if isinstance(x, float) else x}" for name, x in result.items())
    print(json.dumps(result) if args.json else "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
