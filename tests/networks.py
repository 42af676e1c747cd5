"""What tests of networks share: codes of the paper, small widths, random weights."""

from __future__ import annotations

import math
import random
from collections import Counter

import torch
from torch import nn

from crnas_d2.architecture import FAMILY_STAGES, FIXED_ENTRIES, Architecture
from crnas_d2.modeling.backbone.mobilenetv2 import MOBILENETV2
from crnas_d2.modeling.backbone.resnet import RESNET_BASIC, resnet, resnext

# Paper, Tables 5 and 6.
CR_RESNET18 = Architecture.parse("resnet_basic/1-1-2-4/0-0-10-1021")
CR_RESNET50 = Architecture.parse("resnet/1-3-5-7/0-010-00120-0102112")
CR_RESNET101 = Architecture(
    "resnet",
    (2, 3, 17, 11),
    tuple(map(int, "000000101000200010101011001012011")),
)
CR_MOBILENETV2 = Architecture(
    "mobilenetv2",
    (1, 1, 2, 2, 3, 4, 4, 1, 1, 1),
    tuple(map(int, "01010201100110110200")),
)
PAPERS = [CR_RESNET18, CR_RESNET50, CR_RESNET101, CR_MOBILENETV2]

# Every family; ResNeXt with groups that small widths allow.
FAMILIES = {
    family.name: family
    for family in (RESNET_BASIC, resnet(), resnext(num_groups=2, width_per_group=32), MOBILENETV2)
}
SMALL_WIDTHS = {name: (4, 8, 12, 16) for name in FAMILIES}
SMALL_WIDTHS["mobilenetv2"] = (4, 6, 8, 10, 12, 14, 16, 24)
SMALL_CODES = {name: (1, 3, 2, 2) for name in FAMILIES}
SMALL_CODES["mobilenetv2"] = (1, 1, 2, 1, 3, 1, 2, 2, 1, 1)


def random_architecture(family: str, seed: int, largest: int = 4) -> Architecture:
    rng = random.Random(seed)
    fixed = FIXED_ENTRIES.get(family, ())
    code = [1 if i in fixed else rng.randint(1, largest) for i in range(FAMILY_STAGES[family])]
    open_code = Architecture.undilated(family, code)
    digits = [rng.randrange(3) if open_code.has_choice(b) else 0 for b in range(open_code.blocks)]
    return Architecture(family, open_code.stage_code, tuple(digits))


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


def by_hooks(network: nn.Module, *inputs: object) -> Counter[str]:
    """Multiply-accumulates and the paper's FLOPs of all that runs: outputs times kernel times inputs.

    On the meta device tensors have shapes and no values, so a full-sized image costs nothing.
    """
    found: Counter[str] = Counter()

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(layer, nn.BatchNorm2d):
            found["flops"] += 4 * output.numel()
            return
        each = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // layer.groups
        each *= math.prod(getattr(layer, "kernel_size", ()))
        found["macs"] += each * output.numel()
        found["flops"] += (each + (layer.bias is not None)) * output.numel()

    counted = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, counted)]
    network.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    return found
