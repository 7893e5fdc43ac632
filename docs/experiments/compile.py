"""Count the bytes that a block of ViT-L/14 reads and writes, forward and backward, uncompiled and compiled.

    TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 OMP_NUM_THREADS=1 python -m docs.experiments.compile

Sixteen images of `vitl14` with --amp bf16.  Compiled: Inductor's own count, for the code that it writes for a CPU.
Uncompiled: all tensors that an operation gets or returns.  Products of matrices and attention are the same in both.
"""

import logging
import math

import torch
from torch._inductor import metrics
from torch._inductor.scheduler import ExternKernelSchedulerNode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vit
from recipes import get_recipe

PRODUCTS = ("mm", "addmm", "bmm", "_scaled_dot_product")
VIEWS = ("view", "_unsafe_view", "t.", "transpose", "permute", "expand", "split", "select", "slice", "detach", "unbind",
         "unsqueeze", "squeeze", "as_strided", "alias", "empty")  # fmt: skip


class Traffic(TorchDispatchMode):
    """Add up the bytes of all operations that are neither a view nor a product."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), str(func).removeprefix("aten.")
        if not name.startswith((*VIEWS, *PRODUCTS)):
            moved = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.total += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in moved)
        return out


def count_compiled(run):
    """The same for compiled code: the bytes of the kernels that Inductor writes, without those of libraries."""
    metrics.reset()
    run()
    return sum(4 * n for node, n in metrics.nodes_num_elem if not isinstance(node, ExternKernelSchedulerNode))


def measure(rate, images=16):
    """Both counts in MB, for the student at this rate of stochastic depth."""
    r = get_recipe("vitl14")
    n, m = (1 + (size // r.patch_size) ** 2 for size in (r.global_size, r.local_size))
    shapes = [(2 * images, n), (r.n_local * images, m)]
    block, [subset] = vit.Block(1024, 16, r.ffn, r.layer_scale), vit.draw_subsets(shapes, rate, 1, torch.device("cpu"))
    x = torch.randn(sum(math.prod(shape) for shape in shapes), 1024, requires_grad=True)

    def step(forward):
        with torch.autocast("cpu", torch.bfloat16):
            y = forward(x, shapes, subset if rate else None)
        torch.autograd.backward(y, torch.ones_like(y))

    with Traffic() as plain:
        step(block)
    compiled = count_compiled(lambda: step(torch.compile(block.forward, fullgraph=True, dynamic=False)))
    return plain.total / 1e6, compiled / 1e6


if __name__ == "__main__":
    logging.getLogger("torch._inductor.compile_fx.__inductor_metrics").setLevel("INFO")  # or it does not count
    vit.PLAIN_ATTENTION = 0  # as on a GPU
    for rate in (0.4, 0.0):
        plain, compiled = measure(rate)
        print(f"stochastic depth {rate}: {plain:.0f} MB, compiled {compiled:.0f} MB, {plain / compiled:.2f} times less")
