"""The device of a run: which one, its precision, its CPU threads, its memory, the FLOPs that it computes."""

import contextlib
import ctypes
import math
import os
import platform
import sys
import time

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from support.files import UserError

TIMING_SECONDS = 0.6  # ours: how long timing the thread counts may take
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def default_device():
    """cuda if available, else mps if antialiased bicubic resizing works there, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        with contextlib.suppress(NotImplementedError, RuntimeError):
            F.interpolate(torch.zeros(1, 1, 4, 4, device="mps"), (2, 2), mode="bicubic", antialias=True)
            return "mps"
    return "cpu"


def find_device(name):
    """The torch.device called `name`; UserError if this machine does not have it."""
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # PyTorch's own messages take many lines
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps", "xpu"):
        raise UserError(f"there is no device {name} here; try --device cpu")
    return device


def autocast(device, enabled=True):
    """bf16 autocast where the hardware computes in bf16; emulated bf16 would be slower than float32."""
    device = torch.device(device)
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    on_cpu = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and (on_gpu or on_cpu))


def choose_threads(resumed=None):
    """Set the number of CPU threads and describe it: OMP_NUM_THREADS, or a resumed run's number, or the fastest.

    Timing is needed because virtual machines over-report cores: two threads can be slower than one.
    """
    most = torch.get_num_threads()
    counts = sorted({1, (most + 1) // 2, most})
    if "OMP_NUM_THREADS" in os.environ:
        reason = "OMP_NUM_THREADS"
    elif resumed:  # the same number: the order of sums decides the last bits
        torch.set_num_threads(resumed)
        reason = "as before"
    else:
        seconds = time_threads(counts)
        torch.set_num_threads(min(seconds, key=seconds.get))
        reason = "the fastest of " + ", ".join(map(str, counts))
    return f"{torch.get_num_threads()} threads ({reason})"


def time_threads(counts):
    """{number of threads: seconds of its fastest round} for an MLP of about a small training step's size."""
    x, w, seconds = torch.ones(512, 256), torch.ones(256, 1024), dict.fromkeys(counts, math.inf)
    end = time.perf_counter() + TIMING_SECONDS
    while time.perf_counter() < end or math.inf in seconds.values():
        for count in counts:
            torch.set_num_threads(count)
            for _ in range(2):  # the first one wakes the threads
                start = time.perf_counter()
                (F.gelu(F.layer_norm(x, x.shape[1:]) @ w) @ w.mT).softmax(-1)
            seconds[count] = min(seconds[count], time.perf_counter() - start)
    return seconds


def keep_pages():
    """Make glibc keep freed memory for this process; otherwise it clears every large tensor's pages again."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


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
    """PyTorch's FLOP counter; compiled functions run uncompiled inside it, because it cannot see into them."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        yield counter
