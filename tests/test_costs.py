"""Costs against independent counts: torchvision's parameters, and hooks on every convolution."""

from __future__ import annotations

import functools

import pytest
import torch
import torchvision
from networks import FAMILIES, SMALL_CODES, SMALL_WIDTHS, by_hooks, random_architecture
from torch import nn

from crnas_d2.analysis.costs import backbone_costs, input_size
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs
from crnas_d2.config import add_crnas_config
from crnas_d2.modeling.backbone.family import build_network
from crnas_d2.space import DilationSpace, block_costs
from detectron2.config import CfgNode, get_cfg

FULL = {name: (family.stem_channels, family.widths) for name, family in FAMILIES.items()}
# torchvision's network of the same stage code: model, stage code.
TORCHVISION = {
    "resnet18": ("resnet_basic", (2, 2, 2, 2)),
    "resnet34": ("resnet_basic", (3, 4, 6, 3)),
    "resnet50": ("resnet", (3, 4, 6, 3)),
    "resnet101": ("resnet", (3, 4, 23, 3)),
    "mobilenet_v2": ("mobilenetv2", (1, 1, 2, 3, 4, 3, 3, 1, 1, 1)),
}


def config(
    family: str, short_side: int, stem: int = 0, widths: tuple[int, ...] = (), multiplier: float = 1
) -> CfgNode:
    cfg = get_cfg()
    add_crnas_config(cfg)
    widths = dict(STEM_CHANNELS=stem, WIDTHS=list(widths), WIDTH_MULTIPLIER=float(multiplier))
    groups = dict(NUM_GROUPS=2, WIDTH_PER_GROUP=32)  # as networks.FAMILIES has it
    cfg.MODEL.CRNAS.update(FAMILY=family, **widths, **groups)
    cfg.INPUT.MIN_SIZE_TEST = short_side
    return cfg


@functools.cache  # building and tracing a network takes a second
def costs_at(
    family: str, short_side: int, stem: int, widths: tuple[int, ...], multiplier: float = 1
) -> Costs:
    return backbone_costs(config(family, short_side, stem, widths, multiplier))


def count_macs(network: nn.Module, size: tuple[int, int]) -> int:
    return by_hooks(network.to("meta"), torch.zeros(1, 3, *size, device="meta"))["macs"]


def ours(architecture: Architecture, stem: int, widths: tuple[int, ...]) -> nn.Module:
    shape = dict(in_channels=3, widths=(stem, *widths), norm="BN", out_features=("res5",))
    with torch.device("meta"):
        return build_network(FAMILIES[architecture.family], architecture, **shape)


@pytest.mark.parametrize(
    ("short", "size"),
    [(800, (800, 1088)), (240, (256, 352)), (64, (64, 96)), (640, (640, 896)), (32, (32, 64))],
)
def test_input_size(short: int, size: tuple[int, int]) -> None:
    """The paper's 800 x 1088; for other short sides the same shape, in multiples of 32 pixels."""
    assert input_size(config("resnet", short)) == size


@pytest.mark.parametrize("name", TORCHVISION)
def test_baselines_against_torchvision(name: str) -> None:
    family, stages = TORCHVISION[name]
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(weights=None)
    setattr(network, "classifier" if family == "mobilenetv2" else "fc", nn.Identity())
    costs = costs_at(family, 800, *FULL[family])(Architecture.undilated(family, stages))
    assert costs == {
        "blocks": 16 if family == "mobilenetv2" else sum(stages),
        "macs": count_macs(network, (800, 1088)),
        "params": sum(p.numel() for p in network.parameters()),
    }


@pytest.mark.parametrize(("short", "multiplier"), [(800, 1), (64, 0.25), (240, 0.5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_codes_against_hooks(family: str, short: int, multiplier: float) -> None:
    costs = costs_at(family, short, 0, (), multiplier)
    stem, widths = FULL[family]
    scaled = tuple(int(width * multiplier) for width in widths)
    for seed in range(3):
        architecture = random_architecture(family, seed)
        network = ours(architecture, int(stem * multiplier), scaled)
        assert costs(architecture) == {
            **block_costs(architecture),
            "macs": count_macs(network, input_size(config(family, short))),
            "params": sum(p.numel() for p in network.parameters()),
        }


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_cost_nothing_and_a_partial_code_costs_what_a_whole_one_does(family: str) -> None:
    costs = costs_at(family, 64, 4, SMALL_WIDTHS[family])
    space = DilationSpace(family, SMALL_CODES[family])
    codes = [space.root, space.extensions(space.root)[2], *(space.sample(0, i) for i in range(3))]
    found = [costs(code) for code in codes]
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize(
    "changes",
    [
        ["MODEL.CRNAS.SUPERNET", "stage", "MODEL.CRNAS.STAGE_CODE", [1, 1, 1, 1]],
        ["MODEL.CRNAS.SUPERNET", "dilation", "MODEL.CRNAS.DILATION_CODE", [1] * 16],
        ["MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.CRNAS.NORM", "BN"],
        ["MODEL.BACKBONE.FREEZE_AT", 5],
    ],
    ids=str,
)
def test_costs_are_those_of_the_architecture_alone(changes: list[object]) -> None:
    """Supernet, codes and frozen stages of the config say nothing about the network in question."""
    architecture = Architecture.undilated("resnet", (1, 2, 3, 1))
    cfg = config("resnet", 64, 4, (4, 8, 12, 16))
    cfg.merge_from_list(changes)
    before = cfg.clone()
    cfg.freeze()
    expected = costs_at("resnet", 64, 4, (4, 8, 12, 16))(architecture)
    assert backbone_costs(cfg)(architecture) == expected
    assert cfg == before
