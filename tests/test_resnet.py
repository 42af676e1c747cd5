"""Fixed networks against torchvision's, which this project did not write."""

from __future__ import annotations

import pytest
import torch
import torchvision
from networks import CR_RESNET50, PAPERS, random_architecture, randomise
from torch import nn
from torch.testing import assert_close

from crnas_d2.architecture import Architecture
from crnas_d2.modeling.backbone.family import Family, build_network
from crnas_d2.modeling.backbone.mobilenetv2 import MOBILENETV2
from crnas_d2.modeling.backbone.resnet import RESNET_BASIC, resnet, resnext

STAGES = ("res2", "res3", "res4", "res5")
FAMILIES = {f.name: f for f in (RESNET_BASIC, resnet(), resnext(), MOBILENETV2)}
CODES = [
    *PAPERS,
    *(random_architecture(family, seed) for family in FAMILIES for seed in range(5)),
]
BASELINES = [
    Architecture.undilated("resnet_basic", (2, 2, 2, 2)),
    Architecture.undilated("resnet", (3, 4, 6, 3)),
    Architecture.undilated("resnext", (3, 4, 6, 3)),
    Architecture.undilated("mobilenetv2", (1, 1, 2, 3, 4, 3, 3, 1, 1, 1)),
]
RESNEXT101_32X8D = Architecture.undilated("resnext", (3, 4, 23, 3))


def ours(architecture: Architecture, family: Family | None = None) -> nn.Module:
    family = family or FAMILIES[architecture.family]
    return build_network(
        family,
        architecture,
        in_channels=3,
        stem_channels=family.stem_channels,
        widths=family.widths,
        norm="BN",
        out_features=STAGES,
    ).eval()


def torchvisions(architecture: Architecture, width_per_group: int = 4) -> nn.Module:
    """torchvision's network of the stage code, its 3x3 convolutions patched to the dilation code."""
    if architecture.family == "mobilenetv2":
        network, convs = torchvision_mobilenet(architecture)
    else:
        module = torchvision.models.resnet
        block = module.BasicBlock if architecture.family == "resnet_basic" else module.Bottleneck
        groups = {"groups": 32, "width_per_group": width_per_group}
        more = groups if architecture.family == "resnext" else {}
        network = module.ResNet(block, list(architecture.stage_code), **more).eval()
        convs = [b.conv2 for i in range(1, 5) for b in getattr(network, f"layer{i}")]
    assert len(convs) == len(architecture.dilation_code)
    for conv, digit in zip(convs, architecture.dilation_code):
        if conv is not None:
            assert conv.kernel_size == (3, 3)
            conv.dilation = conv.padding = (digit + 1, digit + 1)
        assert conv is not None or digit == 0
    return network.eval()


# Expansion, channels, stride of the rows of Sandler et al. 2018, Table 2.
ROWS = ((1, 16, 1), (6, 24, 2), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1))


def torchvision_mobilenet(architecture: Architecture) -> tuple[nn.Module, list[nn.Module | None]]:
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


def as_torchvision(network: nn.Module, reference: nn.Module, family: str) -> dict[str, torch.Tensor]:
    """Our weights under torchvision's names: a table of the test's own, or in order of appearance."""
    state = network.state_dict()
    if family == "mobilenetv2":
        names = [name for name in reference.state_dict() if not name.startswith("classifier")]
        assert len(names) == len(state)
        return dict(zip(names, state.values()))
    renamed = {}
    for key, value in state.items():
        key = key.replace("stem.conv1.norm.", "bn1.").replace("stem.", "")
        for i in range(2, 6):
            key = key.replace(f"res{i}.", f"layer{i - 1}.")
        for i in range(1, 4):
            key = key.replace(f".conv{i}.norm.", f".bn{i}.")
        key = key.replace(".shortcut.norm.", ".downsample.1.").replace(".shortcut.", ".downsample.0.")
        renamed[key] = value
    return renamed


def assert_same_features(
    network: nn.Module, reference: nn.Module, architecture: Architecture, size: tuple[int, int]
) -> None:
    randomise(network, seed=1)
    state = as_torchvision(network, reference, architecture.family)
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert all(name.startswith(("fc.", "classifier.")) for name in missing)
    assert not unexpected
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features, expected = network(x), torchvision_features(reference, x, architecture)
    for name, reference_feature in zip(STAGES, expected):
        scale = reference_feature.abs().max().item()
        assert scale > 1e-3
        assert_close(features[name], reference_feature, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("architecture", CODES + BASELINES, ids=str)
def test_features_equal_torchvisions(architecture: Architecture) -> None:
    network, reference = ours(architecture), torchvisions(architecture)
    assert_same_features(network, reference, architecture, (96, 128))


def test_width_per_group() -> None:
    network = ours(RESNEXT101_32X8D, resnext(width_per_group=8))
    reference = torchvisions(RESNEXT101_32X8D, width_per_group=8)
    assert_same_features(network, reference, RESNEXT101_32X8D, (64, 96))


def test_a_wrong_dilation_is_seen() -> None:
    """The comparison above can fail: one digit of one block makes a difference far above it."""
    wrong = Architecture(CR_RESNET50.family, CR_RESNET50.stage_code, (0,) * 16)
    network, reference = ours(wrong), ours(CR_RESNET50)
    randomise(network, seed=1)
    reference.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        a, b = network(x)["res5"], reference(x)["res5"]
    assert (a - b).abs().max() > 0.01 * b.abs().max()


def test_a_partial_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resnet/1-1-1-1/0-1-_-_.*needs its digit"):
        ours(Architecture("resnet", (1, 1, 1, 1), (0, 1)))
