"""How many threads compute fastest here: measured, for the number of cores does not say.

Two virtual cores are often two threads of one real core, or have a busy neighbour; then two threads are slower than
one, and PyTorch's default is one thread a core.  A training step is products, and reductions that wait for memory.
"""

import os
import statistics
import time

import torch
import torch.nn.functional as F

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
