"""Run train_step on a CUDA device that computes nothing, and count launches, waits and memory.

    python tests/cudasim.py GUARD.so '[["vitl14", 24, {"batch": 64}]]'    recipe, number of blocks, changed fields

Tensors on "cuda" are fake: they have a shape and no numbers.  Tensors on the CPU are real.  GUARD.so is noopguard.cpp,
compiled.  The program prints a line of JSON for faults that must be noticed, one for the loader, and one for each
recipe.  A launch is an operation that is not a view: mostly one kernel, but a fused AdamW or a sort is several.  Its
traffic is the bytes of all tensors that it reads and writes.
"""

import ctypes
import json
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)  # before torch
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

import train
import vit
from bench import MemoryCounter, start_fake_run
from recipes import get_recipe
from support.images import Images, batches
from support.log import collapse_meter, mean_over_ranks
from support.start import make_crop

CUDA = torch.device("cuda", 0)
LIBRARY = torch.library.Library("aten", "IMPL")
VIEWS = ("view", "_unsafe_view", "detach", "alias", "t.", "transpose", "permute", "expand", "slice.", "select.",
         "split", "unsqueeze", "squeeze", "as_strided", "_reshape_alias", "unbind", "unfold", "lift_fresh", "empty",
         "new_empty", "is_pinned", "result_type", "prim.", "is_same_size")  # fmt: skip
FILLS = ("fill_", "zero_", "new_", "zeros_like", "ones_like", "full_like")  # read nothing
ASKS = ("nonzero", "masked_select", "_unique", "bincount", "_local_scalar_dense")  # for a value, or for a shape


class CudaSim(MemoryCounter):
    """Count launches, their traffic in bytes, and the causes for which the host waits for the device."""

    def __init__(self):
        super().__init__()
        self.launches, self.traffic, self.waits = 0, 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(func).removeprefix("aten.")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        fakes = [x for x in tensors if isinstance(x, FakeTensor)]
        to = torch.device(kwargs.get("device") or "meta").type
        if not fakes and to != "cuda":
            return func(*args, **kwargs)
        if not fakes and name.startswith("_to_copy"):
            if not (getattr(args[0], "pinned", False) and kwargs.get("non_blocking")):
                self.waits[f"a copy from pageable memory of {tuple(args[0].shape)}"] += 1
            dtype = kwargs.get("dtype") or args[0].dtype
            func, args, kwargs, tensors = torch.empty, [args[0].shape], {"dtype": dtype, "device": CUDA}, []
        if any(x.dim() for x in tensors if not isinstance(x, FakeTensor)):
            self.waits[f"{name} mixes devices"] += 1
        if name.startswith(ASKS) or (name.startswith("repeat_interleave") and kwargs.get("output_size") is None):
            self.waits[name] += 1
        if name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:]):
            self.waits[f"{name} with a mask"] += 1
        if name.startswith("_local_scalar_dense"):
            return 1.0 if fakes[0].dtype.is_floating_point else 1
        if name.startswith("_to_copy") and to == "cpu":
            self.waits[f"a copy of {tuple(fakes[0].shape)} to the CPU"] += 1
            return torch.zeros(fakes[0].shape, dtype=kwargs.get("dtype") or fakes[0].dtype)
        with self.fake:  # also what makes a tensor on the GPU from nothing
            out = super().__torch_dispatch__(func, types, args, kwargs)
        if not name.startswith(VIEWS):
            self.launches += 1
            moved = [x for x in tree_leaves(out if name.startswith(FILLS) else (args, kwargs, out))
                     if isinstance(x, FakeTensor)]  # fmt: skip
            self.traffic += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in moved)  # expand repeats elements
        return out


def pretend():
    """Make PyTorch believe in one H100 with bf16 arithmetic."""
    LIBRARY.impl("silu_backward", lambda *_: None, "CUDA")  # or this build takes it apart into ten operations
    torch._C._set_only_lift_cpu_tensors(True)
    for name, answer in {"_lazy_init": None, "is_available": True, "is_bf16_supported": True, "device_count": 1,
                         "current_device": 0, "manual_seed_all": None, "get_rng_state": torch.zeros(16).byte(),
                         "set_rng_state": None, "mem_get_info": (2**36, 2**36)}.items():  # fmt: skip
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda._initialized = True
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(major=9, minor=0, multi_processor_count=132)

    def pin_memory(self, *_):
        copy = self.clone()
        copy.pinned = True
        return copy

    def attention(*qkv):
        qkv = [x.to(torch.bfloat16) for x in qkv]  # as autocast would
        return torch.ops.aten._scaled_dot_product_flash_attention(*qkv)[0]

    torch.Tensor.pin_memory = pin_memory
    torch.nn.functional.scaled_dot_product_attention = attention
    torch.nn.utils.clip_grad._has_foreach_support = lambda tensors, device: True


def count_faults():
    """The waits of one of each thing that a step must not do."""
    with CudaSim() as sim:
        x, y = torch.ones(4, device=CUDA), torch.ones(4)
        for fault in (x.tolist, lambda: x[x > 0], x.nonzero, x.cpu, lambda: y.to(CUDA), lambda: x + y):
            with suppress(Exception):  # the last one raises, as on a GPU; so do shapes that depend on values
                fault()
    return sim.waits


def count_loader():
    """The waits of a batch after the first one: of images in the device's memory, and of a streamed dataset."""
    waits = Counter()
    for pixels in (torch.zeros(8, 3, 4, 4, dtype=torch.uint8), None):
        with CudaSim() as sim:
            images = Images(pixels, None, [], names="abcdefgh", read=lambda name: b"P6 4 4 255 " + bytes(48), size=4)
            stream = batches(images, 4, device=CUDA, workers=0)
            assert next(stream).device == CUDA and not sim.waits.clear()
            next(stream)
        waits += sim.waits
    return waits


def count_step(recipe, depth, changes):
    """Launches and traffic without the augmentation's, waits, and bytes at a step's peak; and the waits of logging."""
    r, sim = get_recipe(recipe, **changes), CudaSim()
    arch = getattr(vit, r.arch)
    setattr(vit, r.arch, partial(arch.func, arch.args[0], depth, *arch.args[2:], **arch.keywords))
    run, crop, values = start_fake_run(r, CUDA, sim), make_crop(r, r.global_size), train.schedules_at(r.steps // 2, r)
    with sim:
        images = torch.empty(r.batch, 3, r.image_size, r.image_size, dtype=torch.uint8, device=CUDA)
        train.train_step(run, images, crop, values)  # makes the moments
        sim.waits.clear()
        views = crop(images, 0)
        sim.launches = sim.traffic = 0
        losses, p_t, cls_t = train.train_step(run, images, lambda *_: views, values)
        result = {"launches": sim.launches, "traffic": sim.traffic, "waits": dict(sim.waits), "peak": sim.peak}
        sim.waits.clear()
        mean_over_ranks({**losses, **collapse_meter(p_t, cls_t)})
    return {**result, "log": sim.waits}


if __name__ == "__main__":
    pretend()
    for result in (count_faults(), count_loader(), *(count_step(*case) for case in json.loads(sys.argv[2]))):
        print(json.dumps(result))
