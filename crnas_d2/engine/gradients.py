"""Gradients averaged over processes, for the active path only.

Parameters off the path have no gradient, so they are neither sent nor stepped; every process has the
same path, hence the same list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

from detectron2.utils import comm

BUCKET = 25 * 2**20  # bytes; DistributedDataParallel's default


def average(tensors: Iterable[torch.Tensor], bucket: int = BUCKET) -> None:
    """Average tensors over all processes, in place, in flat buckets of one dtype.

    Args:
        tensors: the same list on every process.
        bucket: bytes of a bucket at most; a larger tensor has one of its own.
    """
    if comm.get_world_size() == 1:
        return
    for same in _take_tensors(list(tensors), bucket):
        flat = _flatten_dense_tensors(same)
        dist.all_reduce(flat)
        flat /= comm.get_world_size()
        for tensor, mean in zip(same, _unflatten_dense_tensors(flat, same)):
            tensor.copy_(mean)


@contextmanager
def path_only(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the optimizer's groups hold the parameters that have a gradient, and no others.

    Clipping goes through every parameter of a group in Python, with or without a gradient: over a
    whole supernet that costs more than the step itself.
    """
    everything = [group["params"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p.grad is not None]
    try:
        yield
    finally:
        for group, parameters in zip(optimizer.param_groups, everything):
            group["params"] = parameters


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if comm.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
