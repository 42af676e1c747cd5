"""Fixed networks of any code against torchvision's; the known ones are in test_convert_weights.py."""

from __future__ import annotations

import pytest
import torch
from networks import CR_RESNET50, random_architecture, randomise
from torch import nn
from torchvision_networks import STAGES, assert_same_features, torchvisions

from crnas_d2.architecture import Architecture
from crnas_d2.modeling.backbone.family import build_network
from crnas_d2.modeling.backbone.mobilenetv2 import MOBILENETV2
from crnas_d2.modeling.backbone.resnet import RESNET_BASIC, resnet, resnext

FAMILIES = {f.name: f for f in (RESNET_BASIC, resnet(), resnext(), MOBILENETV2)}
CODES = [random_architecture(family, seed) for family in FAMILIES for seed in range(5)]


def ours(architecture: Architecture) -> nn.Module:
    """The network with random weights."""
    family = FAMILIES[architecture.family]
    network = build_network(
        family,
        architecture,
        in_channels=3,
        stem_channels=family.stem_channels,
        widths=family.widths,
        norm="BN",
        out_features=STAGES,
    ).eval()
    randomise(network, seed=1)
    return network


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


def load(reference: nn.Module, network: nn.Module, family: str) -> None:
    state = as_torchvision(network, reference, family)
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert all(name.startswith(("fc.", "classifier.")) for name in missing)
    assert not unexpected


@pytest.mark.parametrize("architecture", CODES, ids=str)
def test_features_equal_torchvisions(architecture: Architecture) -> None:
    network, reference = ours(architecture), torchvisions(architecture)
    load(reference, network, architecture.family)
    assert_same_features(network, reference, architecture, (96, 128))


def test_a_wrong_dilation_is_seen() -> None:
    """The comparison above can fail: one digit of one block makes a difference far above it."""
    wrong = Architecture(CR_RESNET50.family, CR_RESNET50.stage_code, (0,) * 16)
    network, reference = ours(wrong), ours(CR_RESNET50)
    reference.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        a, b = network(x)["res5"], reference(x)["res5"]
    assert (a - b).abs().max() > 0.01 * b.abs().max()


def test_a_partial_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resnet/1-1-1-1/0-1-_-_.*needs its digit"):
        ours(Architecture("resnet", (1, 1, 1, 1), (0, 1)))
