"""train_step on a CUDA device that computes nothing: what it launches, where it waits, the memory it needs.

    python tests/cudasim.py GUARD.so '[["vitl14", 24, {"batch": 64}], ...]'    one JSON line for each recipe, number of
                                                                             blocks, and changes

A launch is an operation of ATen that is no view: mostly one kernel, but a fused AdamW or a sort is more than one.

Tensors on "cuda" are fake: they have a shape, a type and a device, and no numbers; CPU tensors are real.  So a CPU
build of PyTorch runs all that a GPU's would, and an operation on both devices is noticed.  GUARD.so: noopguard.cpp.
"""

import ctypes
import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)  # before torch
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.utils.clip_grad
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from support.footprint import Alive

CUDA = torch.device("cuda", 0)
VIEWS = ("view", "_unsafe_view", "detach", "alias", "t.", "transpose", "permute", "expand", "slice.", "select.",
         "split", "unsqueeze", "squeeze", "as_strided", "_reshape_alias", "unbind", "unfold", "lift_fresh", "empty",
         "new_empty", "is_pinned", "result_type", "prim.", "is_same_size")  # fmt: skip
ASKS = ("nonzero", "masked_select", "_unique", "bincount", "_local_scalar_dense")  # for a value, or for how many


class CudaSim(TorchDispatchMode):
    """Counts what is dispatched to CUDA: `launches`, `waits` by cause, and bytes `alive`."""

    def __init__(self):
        super().__init__()
        self.fake, self.alive = FakeTensorMode(), Alive()
        self.launches, self.waits = 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(func).removeprefix("aten.")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        fakes = [x for x in tensors if isinstance(x, FakeTensor)]
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if not fakes and to != "cuda":
            return func(*args, **kwargs)
        real = [x for x in tensors if not isinstance(x, FakeTensor) and x.dim()]
        copied_here = not fakes and name.startswith("_to_copy")
        if copied_here and not (getattr(args[0], "pinned", False) and kwargs.get("non_blocking")):
            self.waits[f"a copy from pageable memory of {tuple(args[0].shape)}"] += 1
        if real and not copied_here:
            self.waits[f"{name} mixes devices"] += 1
        if name.startswith(ASKS) or (name.startswith("repeat_interleave") and kwargs.get("output_size") is None):
            self.waits[name] += 1
        if name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:]):
            self.waits[f"{name} with a mask"] += 1
        if name.startswith("_local_scalar_dense"):
            return 1 if not fakes[0].dtype.is_floating_point else 1.0
        if fakes and name.startswith("_to_copy") and to == "cpu":
            self.waits[f"a copy of {tuple(fakes[0].shape)} to the CPU"] += 1
            return torch.zeros(fakes[0].shape, dtype=kwargs.get("dtype") or fakes[0].dtype)
        with self.fake:
            if copied_here:
                out = torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=CUDA)
            else:
                faked = tree_map(lambda x: self.fake.from_tensor(x) if isinstance(x, torch.Tensor)
                                 and not isinstance(x, FakeTensor) else x, (args, kwargs))  # fmt: skip
                out = func(*faked[0], **faked[1])
        if not name.startswith(VIEWS):
            self.launches += 1
        self.alive.track(out)
        return out


def pretend():
    """Let PyTorch believe in one H100 with bf16 arithmetic."""
    torch._C._set_only_lift_cpu_tensors(True)
    FakeTensorMode.__deepcopy__ = lambda self, memo: self
    state = torch.zeros(16, dtype=torch.uint8)
    memory = (70 << 30, 80 << 30)
    for name, answer in {"_lazy_init": None, "is_available": True, "is_bf16_supported": True, "device_count": 1,
                         "current_device": 0, "manual_seed_all": None, "synchronize": None, "max_memory_allocated": 0,
                         "mem_get_info": memory, "get_rng_state": state, "set_rng_state": None}.items():  # fmt: skip
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda._initialized = True
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(major=9, minor=0, multi_processor_count=132)

    def pin_memory(self, *_):
        copy = self.clone()
        copy.pinned = True
        return copy

    def attention(q, k, v):
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))  # as autocast would
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    torch.Tensor.pin_memory = pin_memory
    torch.nn.functional.scaled_dot_product_attention = attention
    torch.nn.utils.clip_grad._has_foreach_support = lambda tensors, device: True
    for name in ("trunc_normal_", "zeros_"):
        setattr(torch.nn.init, name, lambda x, **_: x)


def step(recipe, depth, **changes):
    """One train_step of a recipe's first blocks: launches by part, bytes at its peak, and waits by cause, of the step
    and of what the loop does when it logs one."""
    import train
    from bench import measure_parts
    from recipes import get_recipe
    from support.log import collapse_meter, means
    from support.scaling import keep_blocks

    r, sim, build = get_recipe(recipe, **changes), CudaSim(), train.build_network

    keep_blocks(r.arch, depth)

    def build_there(*arguments):
        with _disable_current_modes(), sim.fake, CUDA:
            network = build(*arguments)
        sim.alive.track(list(network.parameters()))
        network.to = lambda *_: network
        return network

    with sim, patch.object(train, "build_network", build_there):
        run = train.start_run(r, CUDA)
        crop = train.make_crop(r)
        images = torch.empty(r.batch, 3, r.image_size, r.image_size, dtype=torch.uint8, device=CUDA)
        for p in run.student.parameters():
            p.grad = torch.zeros_like(p)
        for optimizer in run.optimizers:
            optimizer.step()  # the first one makes the moments
            optimizer.zero_grad()
        sim.waits.clear()
        sim.alive.forget()
        found = []
        parts = measure_parts(
            lambda crop: found.extend(train.train_step(run, images, crop, train.schedules_at(run.step, r))),
            crop, run, lambda: sim.launches)  # fmt: skip
        waits, (losses, p_t, cls) = dict(sim.waits), found
        sim.waits.clear()
        healthy = losses["grad_norm"].isfinite()
        means({"healthy": healthy, **losses, **collapse_meter(p_t, losses["dino"], cls)})
    return {"launches": parts, "waits": waits, "log": dict(sim.waits), "peak": sim.alive.peak}


def loader():
    """Waits of a batch after the first one: of images that stay in the device's memory, and of a streamed set."""
    from support.images import Files, Images, batches

    square, names, waits = torch.zeros(3, 4, 4, dtype=torch.uint8), list("abcdefgh"), {}
    files = Files(names, None, 4, None, None, 1)
    files.load = lambda i, epoch: (square.numpy(), None)
    for kind, pixels in (("in memory", square.expand(8, -1, -1, -1)), ("streamed", None)):
        sim, images = CudaSim(), Images("eight", pixels, None, [], files=files)
        with sim:
            stream = batches(images, 4, device=CUDA, workers=0)
            assert next(stream).device == CUDA
            sim.waits.clear()
            next(stream)
        waits[kind] = dict(sim.waits)
    return waits


def faults():
    """What waits says of one of each thing that a step must not do."""
    sim = CudaSim()
    with sim:
        x = torch.ones(4, device=CUDA)
        for fault in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero(), lambda: x.cpu(),
                      lambda: torch.ones(4).to(CUDA), lambda: torch.ones(4).pin_memory().to(CUDA, non_blocking=True),
                      lambda: x + torch.ones(4)):  # fmt: skip
            with suppress(Exception):  # the last one raises, as on a GPU, and what has no shape until it is computed
                fault()
    return {"waits": dict(sim.waits)}


if __name__ == "__main__":
    pretend()
    print(json.dumps(faults()))
    print(json.dumps(loader()))
    for recipe, depth, changes in json.loads(sys.argv[2]):
        print(json.dumps(step(recipe, depth, **changes)), flush=True)
