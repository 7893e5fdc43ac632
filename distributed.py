"""The few lines that know of other GPUs (§5).  Every function is a no-op in a single process.

`torchrun --nproc-per-node N train.py ...` starts N ranks; each holds the whole model and its share of the batch.
Three things cross between them in a step: the gradients, the prototype sums of Sinkhorn-Knopp and its largest row (or
the centre), and whether somebody pressed Ctrl-C.  The official code shards the model with FSDP; plain replicas are
enough up to ViT-g on 80 GB.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist


def start(device, patience=None):
    """Join the group that torchrun announces in the environment; returns this rank's device.

    patience: hours that a rank may wait for another before it gives up; PyTorch's minutes without it.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return torch.device(device)
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    timeout = timedelta(hours=patience) if patience else None
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    return device


def stop():
    """Leave the group, if there is one, all ranks together."""
    if dist.is_initialized():
        dist.barrier()  # PyTorch 2.6 can hang in the next line when an all_reduce has only just ended
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
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return max_over_ranks(torch.tensor(float(bool(flag)), device=device)).item() > 0


def gather(x):
    """x (...) of equal shape on each rank -> (world, ...), in the order of ranks; no gradient."""
    if world_size() == 1:
        return x[None]
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)  # (world, ...)


def wait():
    """Until all ranks are here."""
    if world_size() > 1:
        dist.barrier()


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


def average_gradients(parameters):
    """Mean of each gradient over all ranks, as one message."""
    if world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = sum_over_ranks(torch.cat([g.flatten() for g in grads])) / world_size()
    for g, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(mean.view_as(g))
