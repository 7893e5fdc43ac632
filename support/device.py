"""The device of a run: which one, its precision, its CPU threads, its memory, the FLOPs that it computes."""

import contextlib
import ctypes
import math
import os
import platform
import sys
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from support.files import UserError

ROUNDS = 20  # ours: timings of each number of threads; a third of a second on two cores


def find_device(name):
    """The torch.device called `name`; UserError if this machine does not have it."""
    torch.backends.cudnn.allow_tf32 = False  # or --amp none computes the patch convolution with 10 bits of 23
    with contextlib.suppress(RuntimeError, AssertionError):  # PyTorch's own messages take many lines
        if name.split(":")[0] == "cuda" and "LOCAL_RANK" in os.environ:  # each rank its own, nothing on the first
            name = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(name)
        device = torch.empty(0, device=name).device
        if device.type in ("cpu", "cuda", "mps", "xpu"):
            return device
    raise UserError(f"there is no device {name} here; try --device cpu")


def amp_dtype(device, amp="auto"):
    """The type of autocast: bf16, fp16, or None for float32.

    auto: bf16 where the hardware computes in it, since emulated bf16 is slower than float32; else fp16 on a CUDA GPU.
    """
    if amp != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else None


def autocast(device, amp="auto"):
    """PyTorch's autocast in the type of amp_dtype."""
    dtype = amp_dtype(device, amp)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def choose_threads(resumed=None):
    """Set the number of CPU threads and describe it: OMP_NUM_THREADS, or a resumed run's number, or the fastest."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(resumed or fastest_threads())  # the same number: the order of sums decides the last bits
    return f"{torch.get_num_threads()} threads"


def fastest_threads():
    """One, half or all threads: the fastest for an MLP of about a step's size.  Virtual machines over-report cores."""
    most = torch.get_num_threads()
    counts = sorted({1, (most + 1) // 2, most})
    x, w, seconds = torch.ones(512, 256), torch.ones(256, 1024), dict.fromkeys(counts, math.inf)
    for count in counts * ROUNDS:  # in turns, because the machine may be busy for a while
        torch.set_num_threads(count)
        for _ in range(2):  # the first one wakes the threads
            start = time.perf_counter()
            (F.gelu(F.layer_norm(x, x.shape[1:]) @ w) @ w.mT).softmax(-1)
        seconds[count] = min(seconds[count], time.perf_counter() - start)
    return min(seconds, key=seconds.get)


def keep_pages():
    """Make glibc keep freed memory for this process; otherwise the kernel clears each large tensor's pages again."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD


def total_memory(device):
    """Bytes of memory of the device; infinite on Windows, which does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return math.inf if sys.platform == "win32" else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device):
    """Peak memory in bytes: allocated on the GPU, or resident on the CPU; None on Windows, which does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextlib.contextmanager
def flop_counter():
    """PyTorch's FLOP counter (docs/speed.md counts by hand).  Inside, compiled functions run uncompiled."""
    aten = torch.ops.aten  # PyTorch has no formula for attention on CPUs
    name = "_scaled_dot_product_flash_attention_for_cpu"
    formulas = {getattr(aten, name): lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
                getattr(aten, f"{name}_backward"): lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])}
    counting = FlopCounterMode(display=False, custom_mapping=formulas)
    nothing = SimpleNamespace(parents={"Global"}, __enter__=lambda: None, __exit__=lambda *_: None)
    counting.mod_tracker = nothing  # its hooks would keep what checkpointing computes again
    with torch.compiler.set_stance("force_eager"), counting as counter:
        yield counter
