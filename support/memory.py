"""The process's memory: its peak, and pages of large tensors kept, not given back after each use and fetched anew.

glibc maps each large block afresh and unmaps it when it is freed, and the kernel clears each of its pages at the first
touch.  The loss of a batch of 8 over 65,536 prototypes has blocks of 20 MB, many times a step.
"""

import ctypes
import platform
import sys

import torch

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


def peak_memory(device):
    """Most memory so far, in bytes: allocated on the GPU, or resident on the CPU; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
