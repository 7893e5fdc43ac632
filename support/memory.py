"""The process's memory: its peak, and pages of large tensors kept, not given back after each use and fetched anew.

glibc maps each large block afresh and unmaps it when it is freed, and the kernel clears each of its pages at the first
touch.  The loss of a batch of 8 over 65,536 prototypes has blocks of 20 MB, many times a step.
"""

import ctypes
import math
import os
import platform
import sys

import torch

import distributed
from support.flags import UserError

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
