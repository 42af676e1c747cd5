"""Gradients averaged over processes, for the active path only.

Parameters off the path have no gradient, so they are neither sent nor stepped; every process has the
same path, hence the same list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from detectron2.utils import comm


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over all processes, in one flat bucket a dtype, the gradients that exist."""
    if comm.get_world_size() == 1:
        return
    buckets: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            buckets[parameter.grad.dtype].append(parameter.grad)
    for gradients in buckets.values():
        flat = _flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        flat /= comm.get_world_size()
        for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients)):
            gradient.copy_(mean)


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
