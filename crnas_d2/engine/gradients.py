"""Gradients averaged over the processes, and stepped, for the active path only.

Parameters off the path have no gradient: they are neither sent nor stepped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _take_tensors, _unflatten_dense_tensors

from crnas_d2.modeling.backbone.supernet import find_supernet
from detectron2.utils import comm

BUCKET = 25 * 2**20  # bytes, DistributedDataParallel's default; a larger tensor has its own


class GradientAverage:
    """Averages a model's gradients over all processes after each backward pass.

    What is sent is the same list on every process, even if a rank has no gradient for some of it (a
    mask head without a mask in the rank's images): all parameters of the current path and outside of
    the supernet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._supernet = find_supernet(model)
        inside = set() if self._supernet is None else set(self._supernet.parameters())
        # Cached, since a walk through all modules takes milliseconds.
        self._outside = [p for p in model.parameters() if p not in inside]

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained in the current step."""
        found = list(self._outside)
        if self._supernet is not None:
            for segment in self._supernet.segments(self._supernet.path):
                for _, module in segment.modules():
                    found += module.parameters(recurse=False)
        return [parameter for parameter in found if parameter.requires_grad]

    def __call__(self, *values: torch.Tensor) -> None:
        """Average the gradients and ``values``, at least one scalar, in place.

        A rank without a gradient counts as zeros; a parameter that has none on any rank stays without
        one, so that the optimizer skips it.
        """
        if comm.get_world_size() == 1:
            return
        parameters = self.parameters()
        ranks = values[0].new_tensor([parameter.grad is not None for parameter in parameters])
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        average([*values, ranks, *(parameter.grad for parameter in parameters)])
        for parameter, share in zip(parameters, ranks.tolist()):
            if not share:
                parameter.grad = None


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
