"""Activation checkpointing: a block's activations are computed again in the backward pass, not kept.

Weights, gradients and BatchNorm statistics stay the same, to the last bit where the arithmetic is
deterministic; a training step takes about a third longer (Chen et al., Training Deep Nets with
Sublinear Memory Cost, 2016).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from detectron2.layers import CNNBlockBase


def recompute_blocks(backbone: nn.Module) -> None:
    """Let every block of a backbone, in place, keep its input alone while it is trained."""
    for block in backbone.modules():
        if isinstance(block, CNNBlockBase):
            block.forward = functools.partial(_forward, block, block.forward)  # type: ignore[assignment]


def _forward(block: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(x)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """Of the forward pass, and of its repetition."""
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """BatchNorm has taken its statistics in the forward pass, and takes them once."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
