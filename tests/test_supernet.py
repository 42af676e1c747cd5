"""Supernets against the fixed networks of their paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import FAMILIES, SMALL_CODES, SMALL_WIDTHS, randomise
from torch import nn

from crnas_d2.architecture import Architecture
from crnas_d2.modeling.backbone.family import build_network
from crnas_d2.modeling.backbone.supernet import (
    ChoiceBlock,
    DilationSupernet,
    JointSupernet,
    StageSupernet,
    Supernet,
)
from crnas_d2.space import FAMILY_DEPTHS, DilationSpace, JointSpace, StageSpace

STAGES = ("res2", "res3", "res4", "res5")
FIXED_OUTSIDE = {"mobilenetv2": 2}  # stem and pooling are in no stage
KINDS = ("stage", "stage shared", "dilation", "dilation shared", "joint")


def shape(family: str) -> dict[str, Any]:
    return {
        "in_channels": 3,
        "widths": (4, *SMALL_WIDTHS[family]),
        "norm": "BN",
        "out_features": STAGES,
    }


def make(kind: str, family: str) -> Supernet:
    torch.manual_seed(0)
    name, _, sharing = kind.partition(" ")
    kinds = {
        "stage": (StageSupernet, StageSpace(family, FAMILY_DEPTHS[family])),
        "dilation": (DilationSupernet, DilationSpace(family, SMALL_CODES[family])),
        "joint": (JointSupernet, JointSpace(family, FAMILY_DEPTHS[family])),
    }
    supernet, space = kinds[name]
    shared = bool(sharing) or name == "joint"
    return supernet(FAMILIES[family], space, shared=shared, **shape(family))


def image(seed: int = 3) -> torch.Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_subnet_gives_its_paths_outputs_exactly(kind: str, family: str) -> None:
    supernet = make(kind, family).eval()
    randomise(supernet, seed=4)
    seen = []
    for i in range(20):
        path = supernet.space.sample(seed=5, iteration=i)
        subnet = build_network(FAMILIES[family], path, **shape(family)).eval()
        state = supernet.state_dict()
        subnet.load_state_dict({there: state[k] for k, there in supernet.subnet_keys(path).items()})
        with torch.no_grad(), supernet.using_path(path):
            ours, alone = supernet(image()), subnet(image())
        assert list(ours) == list(alone) == list(STAGES)
        assert all(torch.equal(ours[name], alone[name]) for name in STAGES)
        assert supernet.output_shape() == subnet.output_shape()
        seen.append((path, alone["res5"]))
    for i, (path, output) in enumerate(seen):
        for other, another in seen[:i]:
            assert path == other or not torch.equal(output, another), (path, other)
    assert len({path for path, _ in seen}) > 15


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ("stage", "dilation"))
def test_no_two_branches_share_a_parameter(kind: str, family: str) -> None:
    supernet = make(kind, family)
    stem = {p.data_ptr() for p in supernet.stem.parameters()}
    if kind == "stage":
        branches: list[nn.Module] = [
            branch for name in STAGES for chain in getattr(supernet, name) for branch in chain.values()
        ]
        assert len(branches) == sum(map(len, supernet.space.depths)) - FIXED_OUTSIDE.get(family, 0)
    else:
        choices = [m for m in supernet.modules() if isinstance(m, ChoiceBlock)]
        branches = [conv for choice in choices for conv in choice]
        assert len(branches) == 3 * supernet.space.alternatives.count((0, 1, 2))
    pointers = [p.data_ptr() for branch in branches for p in branch.parameters()]
    assert len(pointers) == len(set(pointers))
    assert not stem & set(pointers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ("dilation shared", "joint"))
def test_shared_rates_have_one_weight_and_norms_of_their_own(kind: str, family: str) -> None:
    choices = [m for m in make(kind, family).modules() if isinstance(m, ChoiceBlock)]
    for choice in choices:
        assert len({id(conv.weight) for conv in choice}) == 1
        assert len({id(conv.norm.weight) for conv in choice}) == 3
        assert [conv.dilation for conv in choice] == [(1, 1), (2, 2), (3, 3)]
    depths = [max(depths) for depths in FAMILY_DEPTHS[family]]
    blocks = depths if kind == "joint" else SMALL_CODES[family]
    undilated = Architecture.undilated(family, blocks)
    assert len(choices) == sum(undilated.has_choice(block) for block in range(undilated.blocks))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_branches_start_from_different_weights(kind: str, family: str) -> None:
    weights = [p for p in make(kind, family).parameters() if p.dim() == 4]
    firsts = [tuple(p.flatten()[:4].tolist()) for p in weights]
    assert len(set(firsts)) == len(firsts)


def test_no_path_is_an_error() -> None:
    supernet = make("stage", "resnet")
    with pytest.raises(RuntimeError, match="no path is set"):
        supernet(image())
    with supernet.using_path(supernet.space.sample(0, 0)):
        supernet(image())
    with pytest.raises(RuntimeError, match="no path is set"):
        supernet(image())


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("stage", "resnet/1-1-1-2/0-0-0-00"),  # 1 is not in T3
        ("stage", "resnet/1-1-2-2/0-0-01-00"),  # dilation in a stage supernet
        ("stage", "resnet_basic/1-1-2-2/0-0-00-00"),
        ("dilation", "resnet/1-3-2-2/0-000-0_-__"),
        ("dilation", "resnet/1-3-2-3/0-000-00-000"),
    ],
)
def test_a_path_of_another_space_is_refused(kind: str, path: str) -> None:
    supernet = make(kind, "resnet")
    before = supernet.space.sample(0, 0)
    supernet.set_path(before)
    with pytest.raises(ValueError, match=path):
        supernet.set_path(Architecture.parse(path))
    assert supernet.path == before
