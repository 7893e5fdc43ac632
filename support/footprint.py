"""The memory that a step takes, on paper: counted on tensors that have a shape and a type, and no numbers.

A tensor made from such a tensor is one too, and is counted while its storage is alive, under the name of the part of
the step that made it.  All others are real and small: what is drawn at random, and what is made of that.
"""

import weakref
from collections import Counter
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALIGNED = 512  # bytes: PyTorch's CUDA allocator rounds up to so many
RESERVE = 2  # GiB, ours: what CUDA's own kernels and the gaps between tensors may take
GPUS = (24, 48, 80)  # GiB of memory of those that people have


class Alive:
    """Bytes of the fake tensors that are alive, now and at the peak, by `part`, what the caller says is being done."""

    def __init__(self):
        self.storages, self.part = set(), "rest"
        self.now, self.total = Counter(), 0
        self.peak, self.at_peak = 0, Counter()

    def track(self, out):
        """Count the storages that are new in a result, until they are freed."""
        for x in tree_leaves(out):
            if not isinstance(x, FakeTensor):
                continue
            storage = x.untyped_storage()
            key, n = storage._cdata, -(-storage.nbytes() // ALIGNED) * ALIGNED
            if key not in self.storages:
                self.storages.add(key)
                self.add(self.part, n)
                weakref.finalize(storage, self.free, key, self.part, n)

    def add(self, part, n):
        self.now[part] += n
        self.total += n
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, self.now.copy()

    def free(self, key, part, n):
        self.storages.discard(key)
        self.add(part, -n)

    def forget(self):
        """The peak is what is alive now."""
        self.peak, self.at_peak = self.total, self.now.copy()


class Footprint(TorchDispatchMode):
    """While it is on, operations on fake tensors are counted in `alive`."""

    def __init__(self):
        super().__init__()
        self.fake, self.alive = FakeTensorMode(allow_non_fake_inputs=True), Alive()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))):
            return func(*args, **(kwargs or {}))
        with self.fake:
            out = func(*args, **(kwargs or {}))
        self.alive.track(out)
        return out

    def made(self, make, part):
        """make(), of fake tensors all through, counted as `part`."""
        with torch.utils._python_dispatch._disable_current_modes(), self.fake:
            out = make()
        before, self.alive.part = self.alive.part, part
        self.alive.track(list(out.parameters()) if isinstance(out, torch.nn.Module) else out)
        self.alive.part = before
        return out


def largest_batches(count, r, rooms):
    """The largest batch for each number of bytes of a GPU, less RESERVE; 0 where not even one image fits.

    count(recipe, "cuda") -> bytes of a step by part.  The peak is that of the forward pass, a line in the batch, or
    where that is less, that of gradients and moments.
    """
    least, some, more = (sum(count(replace(r, batch=n), "cuda").values()) for n in (1, 64, 128))
    each, rooms = (more - some) / 64, [room - RESERVE * 2**30 for room in rooms]
    return [int(max(0, (room - some) / each + 64)) if room >= least else 0 for room in rooms]


def memory_table(count, r, device_type):
    """What a step of a recipe takes, by part, and the largest batch of GPUS: lines for a person.

    count(recipe, device_type) -> Counter of bytes by part.
    """
    parts = count(r, device_type)
    peak = sum(parts.values())
    lines = [(f"{r.arch}, batch {r.batch}, K {r.n_prototypes}, a step on {device_type}", f"{peak / 2**30:.2f} GiB")]
    lines += [(f"  {part}", f"{n / 2**30:.2f}") for part, n in parts.most_common() if n]
    if device_type == "cuda" and not r.micro_batch:
        found = largest_batches(count, r, [gpu * 2**30 for gpu in GPUS])
        lines += [(f"  largest batch in {gpu} GiB, less {RESERVE} for CUDA and gaps", n) for gpu, n in zip(GPUS, found)]
    return "\n".join(f"{name:56} {value}" for name, value in lines)
