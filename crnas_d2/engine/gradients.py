"""Gradients averaged over processes, for the active path only.

Parameters off the path have no gradient, so they are neither sent nor stepped; every process has the
same path, hence the same list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

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


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if comm.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
