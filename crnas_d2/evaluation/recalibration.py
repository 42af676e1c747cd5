"""BatchNorm statistics of a path, recomputed over fixed images; state is put back afterwards.

In a supernet the running statistics of a layer mix all paths that led to it, so a path's own are
recomputed before it is scored. Statistics are exact and pooled: each batch is normalised by its own
mean and variance, as in training, and mean and variance of the whole population are set. They are
taken per batch and put together in batch order in float64: the same to the bit for any number of
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.batches import FixedBatches, gather_in_order
from crnas_d2.modeling.supernet import Supernet

# Of one layer and one batch: number of values a channel; mean and biased variance, (C,) in float64.
Moments = tuple[int, torch.Tensor, torch.Tensor]


@contextmanager
def recording(norms: Mapping[str, _BatchNorm]) -> Iterator[dict[str, Moments]]:
    """Inside, the layers normalise by their batch's own statistics and leave them in the dict.

    Layers that are not reached leave nothing; nothing is synchronised between processes and no
    running statistics change.
    """
    seen: dict[str, Moments] = {}

    def forward_of(name: str, norm: _BatchNorm) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            output, mean, invstd = torch.native_batch_norm(
                x, norm.weight, norm.bias, None, None, True, 0.0, norm.eps
            )
            variance = invstd.double().pow(-2) - norm.eps
            seen[name] = (x.numel() // x.shape[1], mean.double(), variance)
            return output

        return forward

    for name, norm in norms.items():
        norm.forward = forward_of(name, norm)  # hides the class's, until it is deleted
    try:
        yield seen
    finally:
        for norm in norms.values():
            del norm.forward


def pooled(moments: list[Moments]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance over the batches together, each (C,) in float64."""
    total = sum(count for count, _, _ in moments)
    mean = sum(count * mean for count, mean, _ in moments) / total
    square = sum(count * (variance + (m - mean) ** 2) for count, m, variance in moments)
    return mean, square / max(total - 1, 1)


@contextmanager
def recalibrated(
    detector: nn.Module,
    supernet: Supernet,
    batches: FixedBatches,
    path_of: Callable[[int], Architecture],
) -> Iterator[None]:
    """Inside, BatchNorm layers of the backbone that the paths reach have statistics of their own.

    Args:
        detector: in eval mode; detectron2's, with ``preprocess_image`` and ``backbone``.
        batches: images of archtrain.
        path_of: the path that a batch takes; one path, or a completion of a partial code a batch.
    """
    norms = {n: m for n, m in detector.backbone.named_modules() if isinstance(m, _BatchNorm)}
    mine = []
    with torch.no_grad(), recording(norms) as seen:
        for number, inputs in batches.mine():
            seen.clear()
            with supernet.using_path(path_of(number)):
                detector.backbone(detector.preprocess_image(inputs).tensor)
            mine.append((number, {n: (c, m.cpu(), v.cpu()) for n, (c, m, v) in seen.items()}))
    per_batch = gather_in_order(mine)
    before = {}
    for name, norm in norms.items():
        moments = [batch[name] for batch in per_batch if name in batch]
        if moments:
            before[name] = (norm.running_mean.clone(), norm.running_var.clone())
            mean, variance = pooled(moments)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    try:
        yield
    finally:
        for name, (mean, variance) in before.items():
            norms[name].running_mean.copy_(mean)
            norms[name].running_var.copy_(variance)
