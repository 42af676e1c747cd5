"""What tests of networks share: codes of the paper, small widths, random weights."""

from __future__ import annotations

import random

import torch
from torch import nn

from crnas_d2.architecture import Architecture

# Paper, Tables 5 and 6.
CR_RESNET18 = Architecture.parse("resnet_basic/1-1-2-4/0-0-10-1021")
CR_RESNET50 = Architecture.parse("resnet/1-3-5-7/0-010-00120-0102112")
CR_RESNET101 = Architecture(
    "resnet",
    (2, 3, 17, 11),
    tuple(map(int, "000000101000200010101011001012011")),
)
SMALL_WIDTHS = (4, 8, 12, 16)


def random_architecture(family: str, seed: int, largest: int = 4) -> Architecture:
    rng = random.Random(seed)
    code = [rng.randint(1, largest) for _ in range(4)]
    return Architecture(family, tuple(code), tuple(rng.randrange(3) for _ in range(sum(code))))


def randomise(module: nn.Module, seed: int) -> None:
    """Every weight, bias and BatchNorm buffer random at unit scale; no value left at its default.

    Convolutions are scaled by their fan-in and variances lie in 0.5 .. 1.5, so that features neither
    vanish nor grow without bound over a hundred layers.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            m.weight.data.copy_(normal(m.weight) / m.weight[0].numel() ** 0.5)
        elif isinstance(m, nn.BatchNorm2d):
            m.weight.data.copy_(normal(m.weight))
            m.bias.data.copy_(normal(m.bias))
            m.running_mean.copy_(normal(m.running_mean))
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=generator) + 0.5)
            m.num_batches_tracked.fill_(7)
