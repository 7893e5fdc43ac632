"""How many threads compute fastest here: measured, for the number of cores does not say.

Two virtual cores are often two threads of one real core, or have a busy neighbour; then two threads are slower than
one, and PyTorch's default is one thread a core.  A training step is products, and reductions that wait for memory.
"""

import ctypes
import math
import os
import platform
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import distributed
from support.files import UserError

DEVICES = ("cpu", "cuda", "mps", "xpu")


def mps_works():
    """Whether there is a GPU of Apple's, and PyTorch has on it what is most likely to be missing."""
    if not torch.backends.mps.is_available():
        return False
    try:
        F.interpolate(torch.zeros(1, 1, 4, 4, device="mps"), (2, 2), mode="bicubic", antialias=True)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def find_device(name):
    """The torch.device of that name, or UserError if it is not here, or none to compute on."""
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # PyTorch's texts for it run over many lines
        device = None
    if device is None or device.type not in DEVICES:
        raise UserError(f"there is no device {name} here; try --device cpu")
    return device


SECONDS = 0.6  # ours: about what measuring may take
ROWS, WIDTH = 512, 256  # ours: tokens and features, about those of a small step


def choose_threads(asked=None, before=None):
    """Set PyTorch's number of threads, and return what a program says of it.

    asked: --threads, which wins, then OMP_NUM_THREADS.  before: of the run that goes on, whose sums shall keep their
    order.  Otherwise the fastest of 1, half and all, found in under a second.
    """
    if asked:
        torch.set_num_threads(asked)
        return said("as asked")
    if os.environ.get("OMP_NUM_THREADS"):
        return said("OMP_NUM_THREADS")
    if before:
        torch.set_num_threads(before)
        return said("as before")
    most = torch.get_num_threads()  # of the cores that this process may use
    counts = sorted({1, (most + 1) // 2, most})
    if len(counts) > 1:
        seconds = measure_threads(counts)
        torch.set_num_threads(min(seconds, key=seconds.get))
    return said("the fastest of " + ", ".join(map(str, counts)))


def said(why):
    """The number of threads and why, for a program's first line."""
    n = torch.get_num_threads()
    return f"{n} thread{'s' * (n > 1)} ({why})"


def measure_threads(counts):
    """Seconds of a bit of work with each number of threads: {count: seconds}, the median of rounds by turns."""
    x, w = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, 4 * WIDTH)
    seconds = {count: [] for count in counts}
    end = time.perf_counter() + SECONDS
    while len(seconds[counts[0]]) < 3 or time.perf_counter() < end:
        for count in counts:
            torch.set_num_threads(count)
            work(x, w)  # the first one wakes the threads
            start = time.perf_counter()
            work(x, w)
            seconds[count].append(time.perf_counter() - start)
    return {count: statistics.median(times) for count, times in seconds.items()}


def work(x, w):
    """Products and reductions, as an MLP has them: (T, D), (D, 4·D)."""
    hidden = F.gelu(F.layer_norm(x, x.shape[1:]) @ w)
    return (hidden @ w.mT).softmax(-1)


def autocast(device, enabled=True):
    """bf16 where the hardware computes in it; elsewhere nothing, for emulated bf16 is slower than float32."""
    device = torch.device(device)
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    on_cpu = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and (on_gpu or on_cpu))


try:
    import resource
except ImportError:  # on Windows
    resource = None

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_pages():
    """Ask glibc's allocator, from now on and for this process, to map nothing and to trim nothing."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def check_memory(r, device, build):
    """UserError if the least that a recipe takes is more than the memory, before any of it is asked for.

    build: recipe -> network.  That is weights, gradients, two moments, the teacher, and the crops of a step in float32.
    """
    with torch.device("meta"):
        weights = sum(p.numel() for p in build(r).parameters())
    images = min(r.micro_batch or r.batch, r.batch // distributed.world_size())
    pixels = 3 * images * (2 * r.global_size**2 + r.n_local * r.local_size**2)
    needed = 4 * (5 * weights / distributed.world_size() + pixels)
    there = total_memory(device)
    if needed > there:
        sizes = f"{needed / 2**30:,.0f} GiB, and there are {there / 2**30:,.0f}"
        raise UserError(f"weights, moments and crops alone take {sizes}; a smaller --arch or --batch takes less")


def total_memory(device):
    """Bytes of memory of a device; infinite where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # on Windows
        return math.inf


def peak_memory(device):
    """Most memory so far, in bytes: allocated on the GPU, or resident on the CPU; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
