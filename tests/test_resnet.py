"""Fixed networks against torchvision's, which this project did not write."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torchvision
from networks import CR_RESNET18, CR_RESNET50, CR_RESNET101, random_architecture, randomise
from torch import nn
from torch.testing import assert_close

from crnas_d2.architecture import Architecture
from crnas_d2.modeling.build import FAMILIES
from crnas_d2.modeling.family import build_network

STAGES = ("res2", "res3", "res4", "res5")
# torchvision's ResNets have these widths alone.
STEM, WIDTHS = 64, (64, 128, 256, 512)
CODES = [
    CR_RESNET18,
    CR_RESNET50,
    CR_RESNET101,
    *(random_architecture(family, seed) for family in FAMILIES for seed in range(5)),
]
BASELINES = [
    Architecture.undilated("resnet_basic", (2, 2, 2, 2)),
    Architecture.undilated("resnet", (3, 4, 6, 3)),
]


def ours(architecture: Architecture) -> nn.Module:
    return build_network(
        FAMILIES[architecture.family],
        architecture,
        in_channels=3,
        stem_channels=STEM,
        widths=WIDTHS,
        norm="BN",
        out_features=STAGES,
    ).eval()


def torchvisions(architecture: Architecture) -> nn.Module:
    """torchvision's ResNet of the stage code, its 3x3 convolutions patched to the dilation code."""
    resnet = torchvision.models.resnet
    block = {"resnet_basic": resnet.BasicBlock, "resnet": resnet.Bottleneck}[architecture.family]
    network = resnet.ResNet(block, list(architecture.stage_code)).eval()
    blocks = [b for i in range(1, 5) for b in getattr(network, f"layer{i}")]
    for b, digit in zip(blocks, architecture.dilation_code):
        assert b.conv2.kernel_size == (3, 3)
        b.conv2.dilation = b.conv2.padding = (digit + 1, digit + 1)
    return network


def torchvision_features(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    features = []
    for i in range(1, 5):
        x = getattr(network, f"layer{i}")(x)
        features.append(x)
    return features


def as_torchvision(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names to torchvision's: a table of the test's own."""
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


@pytest.mark.parametrize("architecture", CODES + BASELINES, ids=str)
def test_features_equal_torchvisions(architecture: Architecture) -> None:
    network, reference = ours(architecture), torchvisions(architecture)
    randomise(network, seed=1)
    missing, unexpected = reference.load_state_dict(as_torchvision(network.state_dict()), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features, expected = network(x), torchvision_features(reference, x)
    for name, reference_feature in zip(STAGES, expected):
        scale = reference_feature.abs().max().item()
        assert scale > 1e-3
        assert_close(features[name], reference_feature, rtol=0, atol=1e-5 * scale)


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
