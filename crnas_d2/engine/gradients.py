"""Gradients averaged over the processes, and stepped, for the active path only.

Parameters off the path have no gradient: they are neither sent nor stepped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

from detectron2.utils import comm

BUCKET = 25 * 2**20  # bytes, DistributedDataParallel's default; a larger tensor has its own


def average_gradients(parameters: Sequence[nn.Parameter], *values: torch.Tensor) -> None:
    """Average gradients and ``values``, at least one scalar, over all processes, in place.

    A rank without a gradient counts as zeros (a mask head, if its images have no mask). A parameter
    without a gradient on every rank, such as one off the path, is neither sent nor given one.
    """
    if comm.get_world_size() == 1:
        return
    shares = values[0].new_tensor([parameter.grad is not None for parameter in parameters])
    average([*values, shares])
    sent = [parameter for parameter, share in zip(parameters, shares.tolist()) if share]
    for parameter in sent:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average([parameter.grad for parameter in sent])


def average(tensors: list[torch.Tensor]) -> None:
    """Average tensors of the same shapes over all processes, in place, in flat buckets of one dtype."""
    for same in _take_tensors(tensors, BUCKET):
        flat = _flatten_dense_tensors(same)
        dist.all_reduce(flat)
        flat /= comm.get_world_size()
        for tensor, mean in zip(same, _unflatten_dense_tensors(flat, same)):
            tensor.copy_(mean)


@contextmanager
def path_only(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the optimizer's groups hold only the parameters that have a gradient.

    Clipping loops over all parameters in Python: over a supernet that costs more than the step.
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
