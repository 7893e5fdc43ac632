"""All communication between GPUs (§5).  In a single process nothing is exchanged.

`torchrun --nproc-per-node N train.py ...` starts N ranks.  Each has its share of the batch and, by PyTorch's FSDP2, of
every parameter, gradient and moment: a block's weights are gathered when it is computed and dropped again, and its
gradients are averaged during the backward pass.
"""

import os
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist


def start(device, patience=None):
    """Join torchrun's processes, if there are any, and wait `patience` hours for them; device: this rank's."""
    if "RANK" in os.environ:
        timeout = timedelta(hours=patience) if patience else None
        backend, gpu = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=timeout, device_id=gpu)


def stop():
    """Leave the process group, all ranks together."""
    if dist.is_initialized():
        dist.barrier()
        time.sleep(0.1)  # PyTorch 2.6 can wait forever for threads that need Python's lock, which it holds
        dist.destroy_process_group()


def rank():
    """This process's number; 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def print_first(text):
    """Print, on rank 0 only."""
    if rank() == 0:
        print(text)


# ---------------------------------------------------------------------------- exchange


def sum_over_ranks(x):
    """The sum of x (any shape) over the ranks, in place; no gradient."""
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.SUM)
    return x


def max_over_ranks(x):
    """The maximum of x (any shape) over the ranks, in place; no gradient."""
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def gather(x):
    """The list of every rank's x, any object that can be pickled.  Waits until all ranks are here."""
    answers = [x] * world_size()
    if world_size() > 1:
        dist.all_gather_object(answers, x)
    return answers


def in_shares(compute, x):
    """compute(x) row by row, (N, ...) on the CPU: each rank computes a share, and every rank gets all."""
    if world_size() == 1:
        return compute(x)
    share = -(-len(x) // world_size())
    rows = torch.arange(rank() * share, (rank() + 1) * share).clamp(max=len(x) - 1)  # pads with the last row
    return torch.cat(gather(compute(x[rows])))[: len(x)]


# ---------------------------------------------------------------------------- sharded networks


def shard(network):
    """Spread each block and each part of a backbone and its heads over the ranks, in place."""
    if world_size() == 1:
        return network
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # take a second to import

    warnings.filterwarnings("ignore", ".*returned a view tensor")  # nothing writes to it
    mesh = dist.device_mesh.init_device_mesh(next(network.parameters()).device.type, (world_size(),))
    for part in [*network.backbone.blocks, *network.children()]:  # tied heads are one part
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for method in ("training_features", "forward_features"):
        register_fsdp_forward_method(network.backbone, method)
    return network


def local_shards(network):
    """This rank's part of each parameter."""
    if world_size() == 1:
        return list(network.parameters())
    for part in network.children():
        part.reshard()  # PyTorch 2.7 keeps a part's own weights whole after a forward pass
    return [p.to_local() for p in network.parameters()]


def full_tensor(x):
    """A sharded tensor as a plain one, on all ranks."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def unsharded(network, build):
    """The network itself, or with several ranks a plain one from build(), with all values."""
    if world_size() == 1:
        return network
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    plain = build()
    plain.load_state_dict(get_model_state_dict(network, options=StateDictOptions(full_state_dict=True)))
    return plain
