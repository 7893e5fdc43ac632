"""The memory that a step takes, on paper: counted on tensors that have a shape and a type, and no numbers.

A tensor made from such a tensor is one too, and is counted while its storage is alive, under the name of the part of
the step that made it.  All others are real and small: what is drawn at random, and what is made of that.
"""

import weakref
from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALIGNED = 512  # bytes: PyTorch's CUDA allocator rounds up to so many


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
