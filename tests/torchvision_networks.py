"""torchvision's networks of any architecture: the reference, which this project did not write."""

from __future__ import annotations

import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from crnas_d2.architecture import Architecture

STAGES = ("res2", "res3", "res4", "res5")
# Expansion, channels, stride of the rows of Sandler et al. 2018, Table 2.
ROWS = ((1, 16, 1), (6, 24, 2), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1))


def torchvisions(architecture: Architecture, width_per_group: int = 4) -> nn.Module:
    """torchvision's network of the stage code, its 3x3 convolutions patched to the dilation code."""
    if architecture.family == "mobilenetv2":
        network, convs = _mobilenet(architecture)
    else:
        module = torchvision.models.resnet
        block = module.BasicBlock if architecture.family == "resnet_basic" else module.Bottleneck
        groups = {"groups": 32, "width_per_group": width_per_group}
        more = groups if architecture.family == "resnext" else {}
        network = module.ResNet(block, list(architecture.stage_code), **more)
        convs = [b.conv2 for i in range(1, 5) for b in getattr(network, f"layer{i}")]
    assert len(convs) == len(architecture.dilation_code)
    for conv, digit in zip(convs, architecture.dilation_code):
        if conv is not None:
            assert conv.kernel_size == (3, 3)
            conv.dilation = conv.padding = (digit + 1, digit + 1)
        assert conv is not None or digit == 0
    return network.eval()


def _mobilenet(architecture: Architecture) -> tuple[nn.Module, list[nn.Module | None]]:
    """The network, and the depthwise convolution of each digit; None for stem, tail, pooling."""
    setting = [[t, c, n, s] for (t, c, s), n in zip(ROWS, architecture.stage_code[1:8])]
    network = torchvision.models.MobileNetV2(inverted_residual_setting=setting)
    depthwise = [
        next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
        for block in network.features[1:-1]
    ]
    return network, [None, *depthwise, None, None]


def torchvision_features(
    network: nn.Module, x: torch.Tensor, architecture: Architecture
) -> list[torch.Tensor]:
    """What STAGES name, by the forward code of torchvision's blocks."""
    features = []
    if architecture.family == "mobilenetv2":
        code = architecture.stage_code
        ends = [sum(code[: i + 1]) for i in (2, 3, 5, 8)]  # after m1, m2, m4 and the tail
        for number, block in enumerate(network.features, 1):
            x = block(x)
            if number in ends:
                features.append(x)
        return features
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    for i in range(1, 5):
        x = getattr(network, f"layer{i}")(x)
        features.append(x)
    return features


def assert_same_features(
    network: nn.Module, reference: nn.Module, architecture: Architecture, size: tuple[int, int]
) -> None:
    """To 1e-5 of each feature's largest value."""
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features, expected = network(x), torchvision_features(reference, x, architecture)
    assert list(features) == list(STAGES)
    for name, reference_feature in zip(STAGES, expected):
        scale = reference_feature.abs().max().item()
        assert scale > 1e-3
        assert_close(features[name], reference_feature, rtol=0, atol=1e-5 * scale)
