"""The few lines that know of other GPUs (§5).  Every function is a no-op in a single process.

`torchrun --nproc-per-node N train.py ...` starts N ranks, each with its share of the batch and, by PyTorch's FSDP2, of
every parameter, gradient and moment: a block's weights are gathered when it is computed and let go again, and its
gradients are averaged while the backward pass goes on.  Of several nodes each holds the whole model among its GPUs.
Besides, these cross in a step: for each loss the largest score of each prototype and three times its sum, in
Sinkhorn-Knopp (or the centre); the norms of the gradients; in a logged step its numbers, and who was told to stop.
"""

import os
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist


def start(device, patience=None):
    """Join the group that torchrun announces in the environment; returns this rank's device.

    patience: hours that a rank may wait for another before it gives up; PyTorch's minutes without it.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return torch.device(device)
    device, bound = torch.device(device), {}
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        bound = {"device_id": device}
    timeout = timedelta(hours=patience) if patience else None
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout, **bound)
    return device


def stop():
    """Leave the group, if there is one, all ranks together."""
    if dist.is_initialized():
        dist.barrier()
        time.sleep(0.1)  # PyTorch 2.6 waits below for threads that may still need the lock of Python, which it holds
        dist.destroy_process_group()


def rank():
    """This process's number, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """The number of processes, 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(x):
    """Sum of x over all ranks, in place; any shape, no gradient."""
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.SUM)
    return x


def max_over_ranks(x):
    """Largest x over all ranks, in place; any shape, no gradient."""
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def any_rank(flag):
    """Whether `flag` is true on any rank."""
    if world_size() == 1:
        return bool(flag)
    return max_over_ranks(torch.tensor(float(bool(flag)), device=device())).item() > 0


def device():
    """Where a tensor has to be to cross between ranks."""
    return "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"


def gather(x):
    """x (...) of equal shape on each rank -> (world, ...), in the order of ranks; no gradient."""
    if world_size() == 1:
        return x[None]
    mine = x.to(device()).contiguous()
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    return torch.stack(parts).to(x.device)  # (world, ...)


def wait():
    """Until all ranks are here."""
    if world_size() > 1:
        dist.barrier()


def print_first(text, **options):
    """Print, on rank 0 alone."""
    if rank() == 0:
        print(text, **options)


def from_first_rank(make):
    """make() as rank 0 computes it, on all ranks: any object that can be pickled.  Errors too are everybody's."""
    answer = [None, None]
    if rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:
            answer[1] = error
    if world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def in_shares(compute, x):
    """compute(x), row by row (N, ...): each rank computes a share of the rows, and all of them get all."""
    if world_size() == 1:
        return compute(x)
    share = -(-len(x) // world_size())
    rows = torch.arange(rank() * share, (rank() + 1) * share).clamp(max=len(x) - 1)  # the last ones come twice
    return gather(compute(x[rows])).flatten(0, 1)[: len(x)]


# ---------------------------------------------------------------------------- a network in shards


def shard(network):
    """A ModuleDict of backbone and heads, each of its parts and blocks spread over the ranks; in place."""
    if world_size() == 1:
        return network
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # they take a second to import

    warnings.filterwarnings("ignore", ".*returned a view tensor")  # it is not written to
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))  # shards within a node, replicas between nodes
    shape, names = ((world_size() // local, local), ("replicate", "shard"))
    if local == world_size():
        shape, names = (local,), ("shard",)
    device = next(network.parameters()).device.type
    mesh = dist.device_mesh.init_device_mesh(device, shape, mesh_dim_names=names)
    for part in [*network.backbone.blocks, *network.children()]:  # of tied heads one
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for method in ("training_features", "forward_features"):
        register_fsdp_forward_method(network.backbone, method)
    return network


def local_shards(network):
    """What this rank holds of each parameter."""
    if world_size() == 1:
        return list(network.parameters())
    for part in network.children():
        part.reshard()  # in PyTorch 2.7 its own weights stay whole after a forward pass
    return [p.to_local() for p in network.parameters()]


def full_tensor(x):
    """A sharded tensor as a plain one, on all ranks."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def unsharded(network, build):
    """The network, or on each of several ranks a plain one from build(), with all of its values."""
    if world_size() == 1:
        return network
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    plain = build()
    plain.load_state_dict(get_model_state_dict(network, options=StateDictOptions(full_state_dict=True)))
    return plain
