"""tools/convert_weights.py: converted weights compute what their source does; bad input is refused."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectors import ROOT, command_line
from networks import PAPERS, randomise
from test_resnet import STAGES, torchvision_features, torchvisions
from torch import nn
from torch.testing import assert_close

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.engine.setup import check_weights
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import input_convention
from crnas_d2.modeling.checkpoint.array_pickle import load_arrays
from crnas_d2.modeling.checkpoint.published import CONVENTIONS, read_source
from crnas_d2.modeling.checkpoint.weights import check_backbone_weights
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

RESNET18 = Architecture.undilated("resnet_basic", (2, 2, 2, 2))
RESNET50 = Architecture.undilated("resnet", (3, 4, 6, 3))
RESNET101 = Architecture.undilated("resnet", (3, 4, 23, 3))
RESNEXT50 = Architecture.undilated("resnext", (3, 4, 6, 3))
RESNEXT101 = Architecture.undilated("resnext", (3, 4, 23, 3))
MOBILENETV2 = Architecture.undilated("mobilenetv2", (1, 1, 2, 3, 4, 3, 3, 1, 1, 1))
SHORT = {  # few blocks, full width: the chains of the supernets' sources
    "resnet_basic": RESNET18,
    "resnet": Architecture.undilated("resnet", (2, 2, 3, 2)),
    "resnext": Architecture.undilated("resnext", (2, 2, 3, 2)),
    "mobilenetv2": MOBILENETV2,
}

# Written down by hand, from the documents that crnas_d2/modeling/checkpoint/published.py names.
TORCHVISION = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], False)
MSRA = ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], True)
FAIR = ("BGR", [103.53, 116.28, 123.675], [57.375, 57.12, 58.395], False)
DETECTRON = ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], False)
Convention = tuple[str, list[float], list[float], bool]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("convert_tool", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options_of(architecture: Architecture, convention: Convention = TORCHVISION) -> list[Any]:
    order, mean, std, stride_in_1x1 = convention
    return [
        *("MODEL.BACKBONE.NAME", "build_crnas_backbone"),
        *("MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.WEIGHTS", ""),
        *("MODEL.DEVICE", "cpu"),
        *("MODEL.CRNAS.FAMILY", architecture.family),
        *("MODEL.CRNAS.STAGE_CODE", list(architecture.stage_code)),
        *("MODEL.CRNAS.DILATION_CODE", list(architecture.dilation_code)),
        *("MODEL.CRNAS.STRIDE_IN_1X1", stride_in_1x1),
        *("INPUT.FORMAT", order),
        *("MODEL.PIXEL_MEAN", mean),
        *("MODEL.PIXEL_STD", std),
    ]


def config(architecture: Architecture, *options: Any, convention: Convention = TORCHVISION) -> CfgNode:
    return read_config("", [*options_of(architecture, convention), *options])


def reference_of(architecture: Architecture, width_per_group: int = 4) -> nn.Module:
    """torchvision's network of the architecture with random weights, dilation patched in."""
    with torch.device("meta"):  # without its own initialisation
        network = torchvisions(architecture, width_per_group)
    network = network.to_empty(device="cpu")
    randomise(network, seed=1)
    for name, value in network.state_dict().items():
        if name.startswith(("fc.", "classifier.")):
            value.fill_(0.5)
    return network


def saved(network: nn.Module, folder: Path) -> str:
    path = folder / "source.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def pickled(content: Any, folder: Path, protocol: int = 4) -> str:
    path = folder / "source.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


def outline(cfg: CfgNode) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(cfg)


def converted(
    tool: ModuleType, cfg: CfgNode, source: str, folder: Path, convention: str | None = None
) -> dict[str, torch.Tensor]:
    """The weights that the tool writes, by the backbone's own names; they pass the strict check."""
    output = folder / "output.pth"
    output.unlink(missing_ok=True)
    tool.convert_file(cfg, source, output, convention)
    backbone = outline(cfg)
    check_backbone_weights(backbone, str(output), "MODEL.WEIGHTS", input_convention(cfg))
    content = torch.load(output, weights_only=True)
    assert content["source"] == Path(source).name
    state = {name.removeprefix("backbone."): v for name, v in content["model"].items()}
    assert set(state) == set(backbone.state_dict())
    assert sorted(path.name for path in folder.iterdir()) == ["output.pth", Path(source).name]
    return state


def assert_same_features(
    cfg: CfgNode,
    state: dict[str, torch.Tensor],
    reference: nn.Module,
    architecture: Architecture,
    *sizes: tuple[int, int],
) -> None:
    network = outline(cfg)
    network.load_state_dict(state, assign=True)
    network.eval()
    for size in sizes:
        x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            features, expected = network(x), torchvision_features(reference, x, architecture)
        assert list(features) == list(STAGES)
        for name, reference_feature in zip(STAGES, expected):
            scale = reference_feature.abs().max().item()
            assert scale > 1e-3
            assert_close(features[name], reference_feature, rtol=0, atol=1e-5 * scale)


# ---- weights of the same network -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "width_per_group"),
    [
        pytest.param(RESNET18, 4, id="ResNet18"),
        pytest.param(RESNET50, 4, id="ResNet50"),
        pytest.param(RESNET101, 4, id="ResNet101"),
        pytest.param(RESNEXT50, 4, id="ResNeXt50-32x4d"),
        pytest.param(RESNEXT101, 8, id="ResNeXt101-32x8d"),
        pytest.param(MOBILENETV2, 4, id="MobileNetV2"),
        *(pytest.param(architecture, 4, id=f"CR-{architecture}") for architecture in PAPERS),
    ],
)
def test_features_are_torchvisions(
    tool: ModuleType, tmp_path: Path, architecture: Architecture, width_per_group: int
) -> None:
    reference = reference_of(architecture, width_per_group)
    cfg = config(architecture, "MODEL.CRNAS.WIDTH_PER_GROUP", width_per_group)
    state = converted(tool, cfg, saved(reference, tmp_path), tmp_path)
    assert_same_features(cfg, state, reference, architecture, (224, 224), (320, 256))


def as_detectron2(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """torchvision's names as detectron2's tools/convert-torchvision-to-d2.py changes them."""
    changed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0].startswith("layer"):
            parts[0] = f"res{int(parts[0][-1]) + 1}"
        else:
            parts.insert(0, "stem")
        parts = [f"conv{part[-1]}.norm" if re.fullmatch(r"bn\d", part) else part for part in parts]
        name = ".".join(parts)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        changed[name] = value.numpy()
    return changed


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_detectron2s_converter(tool: ModuleType, tmp_path: Path, protocol: int) -> None:
    state = reference_of(RESNET18).state_dict()
    content = {"model": as_detectron2(state), "__author__": "torchvision", "matching_heuristics": True}
    source = pickled(content, tmp_path, protocol)
    found = converted(tool, config(RESNET18), source, tmp_path)
    assert_close(found["stem.conv1.norm.running_var"], state["bn1.running_var"], rtol=0, atol=0)
    assert_close(
        found["res3.0.shortcut.norm.bias"], state["layer2.0.downsample.1.bias"], rtol=0, atol=0
    )
    assert found["res5.1.conv2.norm.num_batches_tracked"] == 7
    assert sum(v.numel() for v in found.values()) == sum(
        v.numel() for name, v in state.items() if not name.startswith("fc.")
    )


def with_stride_in_1x1(network: nn.Module) -> nn.Module:
    for i in range(1, 5):
        block = getattr(network, f"layer{i}")[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return network


def as_caffe2(network: nn.Module, suffixes: dict[str, str], fuse: bool) -> dict[str, np.ndarray]:
    """The weights under Caffe2's names, with momenta and other entries as its files have them.

    Args:
        suffixes: Caffe2's names of weight, bias, running_mean and running_var.
        fuse: BatchNorm becomes a factor and an addend.
    """
    blobs = {"fc1000_w": np.zeros((3, 4), "f4"), "fc1000_b": np.zeros(3, "f4")}
    for name, module in network.named_modules():
        place = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)", name)
        if place is not None:
            stage, block, kind, number = place.groups()
            branch = "branch1" if kind.startswith("down") else f"branch2{' abc'[int(number)]}"
            caffe2 = f"res{int(stage) + 1}_{block}_{branch}"
        else:
            caffe2 = "res_conv1" if name == "bn1" else "conv1"
        if isinstance(module, nn.Conv2d):
            blobs[f"{caffe2}_w"] = module.weight.detach().numpy()
            blobs[f"{caffe2}_w_momentum"] = np.ones_like(blobs[f"{caffe2}_w"])
            if module.bias is not None:
                blobs[f"{caffe2}_b"] = module.bias.detach().numpy()
        elif isinstance(module, nn.BatchNorm2d):
            values = {name: value.double() for name, value in module.state_dict().items()}
            if fuse:
                factor = values["weight"] / (values["running_var"] + module.eps).sqrt()
                addend = values["bias"] - values["running_mean"] * factor
                values = {"weight": factor, "bias": addend}
            for part, value in values.items():
                if part in suffixes:
                    blobs[f"{caffe2}_bn_{suffixes[part]}"] = value.float().numpy()
    return dict(reversed(blobs.items()))  # Python 2 kept no order


SPELLED = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
BRIEF = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


@pytest.mark.parametrize(
    ("family", "suffixes", "fuse", "convention"),
    [
        pytest.param("resnet", SPELLED, False, MSRA, id="R-50.pkl of detectron2"),
        pytest.param("resnet", BRIEF, True, MSRA, id="R-50.pkl of Detectron"),
        pytest.param("resnext", BRIEF, False, FAIR, id="X-101-32x8d.pkl of detectron2"),
        pytest.param("resnext", BRIEF, True, DETECTRON, id="X-152-32x8d-IN5k.pkl of Detectron"),
    ],
)
def test_pickles_of_caffe2(
    tool: ModuleType,
    tmp_path: Path,
    family: str,
    suffixes: dict[str, str],
    fuse: bool,
    convention: Convention,
) -> None:
    architecture = Architecture.undilated(family, (1, 11, 1, 1))
    reference = reference_of(architecture, width_per_group=8)
    if convention is MSRA:
        with_stride_in_1x1(reference)
        bias = torch.randn(64, generator=torch.Generator().manual_seed(3))
        reference.conv1.bias = nn.Parameter(bias)  # as its conv1_b
    blobs = as_caffe2(reference, suffixes, fuse)
    source = pickled({"blobs": blobs} if fuse else blobs, tmp_path, protocol=2)
    norm = "FrozenBN" if fuse else "BN"
    options = ["MODEL.CRNAS.WIDTH_PER_GROUP", 8, "MODEL.CRNAS.NORM"]
    cfg = config(architecture, *options, norm, convention=convention)
    state = converted(tool, cfg, source, tmp_path)
    assert_same_features(cfg, state, reference, architecture, (64, 96))
    content = torch.load(tmp_path / "output.pth", weights_only=True)
    parts = ("format", "pixel_mean", "pixel_std", "stride_in_1x1")
    assert content["input_convention"] == dict(zip(parts, convention))
    if fuse:
        with pytest.raises(InputError, match=r"^MODEL\.CRNAS\.NORM: .*allowed is FrozenBN"):
            cfg = config(architecture, *options, "BN", convention=convention)
            tool.convert_file(cfg, source, tmp_path / "other.pth")
        assert not (tmp_path / "other.pth").exists()


# ---- matched by position -------------------------------------------------------------------------


BY_HAND = [
    # source, wanted network, options, {its key: the source's}
    pytest.param(
        RESNET50,
        Architecture.undilated("resnet", (1, 3, 8, 7)),
        [],
        {
            "stem.conv1.norm.bias": "bn1.bias",
            "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
            "res3.2.conv3.weight": "layer2.2.conv3.weight",
            "res4.5.conv2.norm.running_mean": "layer3.5.bn2.running_mean",
            "res4.6.conv2.weight": "layer3.1.conv2.weight",
            "res4.7.conv1.norm.weight": "layer3.2.bn1.weight",
            "res5.3.conv3.norm.running_var": "layer4.1.bn3.running_var",
            "res5.6.conv2.weight": "layer4.2.conv2.weight",
        },
        id="ResNet",
    ),
    pytest.param(
        MOBILENETV2,
        Architecture.undilated("mobilenetv2", (1, 1, 4, 2, 3, 4, 4, 1, 1, 1)),
        [],
        {
            "stem.conv1.weight": "features.0.0.weight",
            "stem.conv1.norm.running_mean": "features.0.1.running_mean",
            "res2.0.depthwise.weight": "features.1.conv.0.0.weight",
            "res2.0.depthwise.norm.bias": "features.1.conv.0.1.bias",
            "res2.0.project.weight": "features.1.conv.1.weight",
            "res2.0.project.norm.bias": "features.1.conv.2.bias",
            "res2.1.expand.weight": "features.2.conv.0.0.weight",
            "res2.2.project.norm.bias": "features.3.conv.3.bias",
            "res2.4.depthwise.weight": "features.3.conv.1.0.weight",  # of two blocks the second
            "res3.1.expand.norm.weight": "features.5.conv.0.1.weight",
            "res4.2.project.weight": "features.9.conv.2.weight",
            "res4.3.project.weight": "features.11.conv.2.weight",  # the next entry, of 96 channels
            "res4.6.expand.weight": "features.12.conv.0.0.weight",
            "res5.3.depthwise.norm.running_var": "features.15.conv.1.1.running_var",
            "res5.4.project.weight": "features.17.conv.2.weight",
            "res5.5.conv.weight": "features.18.0.weight",
            "res5.5.conv.norm.weight": "features.18.1.weight",
        },
        id="MobileNetV2",
    ),
    pytest.param(
        RESNET50,
        RESNET50,
        ["MODEL.CRNAS.SUPERNET", "stage"],
        {
            "res2.0.1.0.conv1.weight": "layer1.0.conv1.weight",
            "res3.0.10.0.shortcut.norm.bias": "layer2.0.downsample.1.bias",
            "res3.0.10.9.conv2.weight": "layer2.3.conv2.weight",
            "res4.0.23.22.conv3.weight": "layer3.2.conv3.weight",
        },
        id="stage supernet",
    ),
    pytest.param(
        RESNET50,
        RESNET50,
        ["MODEL.CRNAS.SUPERNET", "stage", "MODEL.CRNAS.NESTED_DEPTHS", True],
        {
            "res3.0.9.conv2.weight": "layer2.3.conv2.weight",
            "res4.0.22.conv3.weight": "layer3.2.conv3.weight",
        },
        id="nested stage supernet",
    ),
    pytest.param(
        MOBILENETV2,
        MOBILENETV2,
        ["MODEL.CRNAS.SUPERNET", "stage"],
        {
            "res4.0.7.6.depthwise.weight": "features.10.conv.1.0.weight",  # the third later one
            "res4.1.6.5.depthwise.weight": "features.12.conv.1.0.weight",
            "res5.2.1.0.conv.weight": "features.18.0.weight",
        },
        id="stage supernet of MobileNetV2",
    ),
    pytest.param(
        RESNET50,
        Architecture.undilated("resnet", (1, 3, 5, 7)),
        ["MODEL.CRNAS.SUPERNET", "dilation"],
        {f"res5.4.conv2.{digit}.weight": "layer4.2.conv2.weight" for digit in range(3)}
        | {f"res5.4.conv2.{digit}.norm.bias": "layer4.2.bn2.bias" for digit in range(3)}
        | {"res5.4.conv1.weight": "layer4.2.conv1.weight"},
        id="dilation supernet",
    ),
]


@pytest.mark.parametrize(("source", "wanted", "options", "pairs"), BY_HAND)
def test_which_block_comes_from_where(
    tool: ModuleType,
    tmp_path: Path,
    source: Architecture,
    wanted: Architecture,
    options: list[Any],
    pairs: dict[str, str],
) -> None:
    held = reference_of(source)
    state = converted(tool, config(wanted, *options), saved(held, tmp_path), tmp_path)
    for ours, theirs in pairs.items():
        assert_close(state[ours], held.state_dict()[theirs], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("source", "code", "lines"),
    [
        (
            RESNET18,
            (1, 1, 2, 4),
            [
                *("stem <- stem", "res2.0 <- res2.0", "res3.0 <- res3.0"),
                *("res4.0 <- res4.0", "res4.1 <- res4.1"),
                *("res5.0 <- res5.0", "res5.1 <- res5.1", "res5.2 <- res5.1", "res5.3 <- res5.1"),
                "9 blocks from 7",
                "not used: res2.1, res3.1, fc.weight, fc.bias",
            ],
        ),
        (
            MOBILENETV2,
            (1, 1, 1, 4, 1, 1, 3, 1, 1, 1),
            [
                *("stem <- stem", "res2.0 <- features.1", "res2.1 <- features.2"),
                *("res3.0 <- features.4", "res3.1 <- features.5", "res3.2 <- features.6"),
                *("res3.3 <- features.5", "res4.0 <- features.7", "res4.1 <- features.11"),
                *("res5.0 <- features.14", "res5.1 <- features.15", "res5.2 <- features.16"),
                *("res5.3 <- features.17", "res5.4 <- features.18"),
                "14 blocks from 13",
                "not used: features.3, features.8, features.9, features.10, features.12, features.13, "
                "classifier.1.weight, classifier.1.bias",
            ],
        ),
    ],
    ids=str,
)
def test_the_log(
    tool: ModuleType,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    source: Architecture,
    code: tuple[int, ...],
    lines: list[str],
) -> None:
    cfg = config(Architecture.undilated(source.family, code))
    path = saved(reference_of(source), tmp_path)
    with caplog.at_level(logging.INFO):
        tool.convert_file(cfg, path, tmp_path / "output.pth")
    written = [record.getMessage() for record in caplog.records if record.name == tool.__name__]
    assert [line.removesuffix(" of the source") for line in written] == lines


@pytest.mark.parametrize("kind", ["stage", "nested", "dilation"])
@pytest.mark.parametrize("family", SHORT)
def test_a_supernets_paths_are_the_fixed_networks(
    tool: ModuleType, tmp_path: Path, family: str, kind: str
) -> None:
    """Every family's supernet of the paper, at full width: its paths are what a fixed network gets."""
    code = {"mobilenetv2": (1, 1, 5, 4, 7, 2, 6, 1, 1, 1)}.get(family, (3, 10, 9, 4))
    path = Architecture.undilated(family, code)
    source = saved(reference_of(SHORT[family]), tmp_path)
    fixed = converted(tool, config(path), source, tmp_path)
    options = ["MODEL.CRNAS.SUPERNET", "dilation" if kind == "dilation" else "stage"]
    cfg = config(path, *options, "MODEL.CRNAS.NESTED_DEPTHS", kind == "nested")
    state = converted(tool, cfg, source, tmp_path)
    supernet = outline(cfg)
    paths = [path]
    if kind == "dilation":
        digits = [[d * path.has_choice(b) for b in range(path.blocks)] for d in (1, 2)]
        paths += [Architecture(family, code, tuple(chosen)) for chosen in digits]
    for chosen in paths:
        named = {supernet.subnet_key(name, chosen): value for name, value in state.items()}
        assert named.keys() - {None} == fixed.keys()
        assert all(torch.equal(named[name], value) for name, value in fixed.items())


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.bottom_up."])
@pytest.mark.parametrize("family", SHORT)
def test_our_own_checkpoint(tool: ModuleType, tmp_path: Path, family: str, prefix: str) -> None:
    """A network of another code takes from our checkpoint what it takes from the weights' origin."""
    origin = saved(reference_of(SHORT[family]), tmp_path)
    own = converted(tool, config(SHORT[family]), origin, tmp_path)
    code = {"mobilenetv2": (1, 1, 1, 4, 2, 5, 1, 1, 1, 1)}.get(family, (1, 3, 4, 5))
    wanted = Architecture.undilated(family, code)
    expected = converted(tool, config(wanted), origin, tmp_path)
    Path(origin).unlink()
    checkpoint = {
        "model": {prefix + name: value for name, value in own.items()} | {"fc.bias": torch.ones(9)},
        "input_convention": input_convention(config(wanted)),
        "iteration": 7,
    }
    torch.save(checkpoint, tmp_path / "source.pth")
    found = converted(tool, config(wanted), str(tmp_path / "source.pth"), tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# ---- what is refused -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(reference_of(RESNET18), tmp_path_factory.mktemp("resnet18"))


def refused(
    tool: ModuleType, cfg: CfgNode, source: str, folder: Path, convention: str | None = None
) -> str:
    """The one line of a refusal that leaves nothing behind."""
    before = sorted(folder.iterdir())
    with pytest.raises(InputError) as caught:
        tool.convert_file(cfg, source, folder / "output.pth", convention)
    assert sorted(folder.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("INPUT.FORMAT", "BGR", "'RGB'"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675], "[123.675, 116.28, 103.53]"),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], "[58.395, 57.12, 57.375]"),
        ("MODEL.CRNAS.STRIDE_IN_1X1", True, "False"),
    ],
)
def test_another_input(
    tool: ModuleType, tmp_path: Path, resnet18: str, key: str, value: Any, needed: str
) -> None:
    error = refused(tool, config(RESNET18, key, value), resnet18, tmp_path)
    assert error.startswith(f"{key}: {value!r}: ") and needed in error and resnet18 in error


def test_the_option_takes_the_place_of_the_names(tool: ModuleType, tmp_path: Path) -> None:
    source = saved(reference_of(RESNET18), tmp_path)
    cfg = config(RESNET18, convention=FAIR)
    assert refused(tool, cfg, source, tmp_path).startswith("INPUT.FORMAT: 'BGR': ")
    converted(tool, cfg, source, tmp_path, "fair")
    content = torch.load(tmp_path / "output.pth", weights_only=True)
    assert content["input_convention"] == CONVENTIONS["fair"]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (
            ["MODEL.CRNAS.WIDTH_MULTIPLIER", 0.5],
            "conv1.weight has shape (32, 3, 7, 7) in this config, (64, 3, 7, 7) in the source",
        ),
        (
            ["MODEL.CRNAS.FAMILY", "resnext"],
            "res2.0 from the source's res2.0: shortcut.weight has shape (256, 64, 1, 1) in this config",
        ),
        (["MODEL.CRNAS.NORM", "GN"], "conv1.norm.running_mean has shape none in this config, (64,) in"),
        (
            ["MODEL.CRNAS.FAMILY", "mobilenetv2", "MODEL.CRNAS.STAGE_CODE", [1] * 10],
            "has blocks of 4 widths; MODEL.CRNAS.FAMILY mobilenetv2 takes a network with 8",
        ),
        (
            ["MODEL.BACKBONE.NAME", "build_resnet_backbone"],
            "MODEL.BACKBONE.NAME: 'build_resnet_backbone'",
        ),
        (["MODEL.CRNAS.STAGE_CODE", [1, 2]], "MODEL.CRNAS.STAGE_CODE: "),
    ],
    ids=str,
)
def test_another_network(
    tool: ModuleType, tmp_path: Path, resnet18: str, options: list[Any], shown: str
) -> None:
    plain = ["MODEL.CRNAS.DILATION_CODE", []]
    assert shown in refused(tool, config(RESNET18, *plain, *options), resnet18, tmp_path)


def changed(path: str, folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """The weights with a change, in another folder."""
    state = torch.load(path, weights_only=True)
    folder.mkdir()
    torch.save(change(state) or state, folder / "changed.pth")
    return str(folder / "changed.pth")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (
            lambda s: s.pop("layer2.1.bn2.running_var"),
            "running_var has shape (128,) in this config, none",
        ),
        (lambda s: s.update({"layer2.1.se.weight": torch.ones(3)}), "se.weight has shape none in this"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("layer3.1.")] and s,
            "has no block after res4.0, and res4.1 is a later one",
        ),
        (lambda s: {"a": torch.ones(1)}, "holds no ResNet, ResNeXt or MobileNetV2"),
        (lambda s: {"model": [1]}, "holds no ResNet, ResNeXt or MobileNetV2"),
        (lambda s: {"model": as_detectron2(s)}, "not a file of weights"),
        (
            lambda s: {name: torch.from_numpy(value) for name, value in as_detectron2(s).items()},
            "--input-convention: None: ",
        ),
    ],
)
def test_another_source(
    tool: ModuleType,
    tmp_path: Path,
    resnet18: str,
    change: Callable[[dict[str, Any]], Any],
    shown: str,
) -> None:
    def change_state(state: dict[str, Any]) -> dict[str, Any]:
        found = change(state)
        return found if isinstance(found, dict) else state

    source = changed(resnet18, tmp_path / "changed", change_state)
    assert shown in refused(tool, config(RESNET18), source, tmp_path)


def test_group_norm_is_no_fused_batch_norm(tool: ModuleType, tmp_path: Path) -> None:
    blobs = {"conv1_w": np.ones((64, 3, 7, 7), "f4"), "conv1_gn_s": np.ones(64, "f4")}
    source = pickled(blobs, tmp_path)
    cfg = config(RESNET50, convention=MSRA)
    assert "has GroupNorm; allowed are weights with BatchNorm" in refused(tool, cfg, source, tmp_path)


@pytest.mark.parametrize("name", ["broken.pth", "broken.pkl"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", "half", "list", None], ids=str)
def test_a_file_that_is_none(tool: ModuleType, tmp_path: Path, name: str, content: Any) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        values: Any = [1, 2, 3] if content == "list" else {"conv1.weight": np.ones(9)}
        if name.endswith(".pkl"):
            path.write_bytes(pickle.dumps(values))
        else:
            torch.save({k: torch.ones(9) for k in values} if content == "half" else values, path)
        if content == "half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content is not None:
        path.write_bytes(content)
    error = refused(tool, config(RESNET18), str(path), tmp_path)
    shown = "holds a list; a dict" if content == "list" else "not a file of weights ("
    assert error.startswith(f"--weights: {path}: {shown}")


@pytest.mark.parametrize("kind", ["file", "folder", "no folder", "suffix"])
def test_an_output_that_cannot_be(tool: ModuleType, tmp_path: Path, resnet18: str, kind: str) -> None:
    output = tmp_path / "output.pth"
    if kind == "file":
        output.write_text("precious")
    elif kind == "folder":
        output.mkdir()
    elif kind == "no folder":
        output = tmp_path / "gone" / "output.pth"
    else:
        output = tmp_path / "output.pkl"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=re.escape(f"--output: {output}: ")):
        tool.convert_file(config(RESNET18), resnet18, output)
    assert sorted(tmp_path.rglob("*")) == before
    assert kind != "file" or output.read_text() == "precious"


# ---- pickles -------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function; that is how a pickle runs code."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), f"{os.system.__module__}.system"),
        (eval, ("open('{}', 'w')",), r"(__builtin__|builtins)\.eval"),
        (getattr, ("", "format"), r"(__builtin__|builtins)\.getattr"),
        (np.save, ("{}", 1), r"numpy.*\.save"),
        (np.ndarray, ((1,), np.dtype(object), b"12345678"), "an array of 'O8'"),  # a pointer of its own
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_code(
    tool: ModuleType,
    tmp_path: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: str,
    protocol: int,
) -> None:
    trace = tmp_path / "trace"
    filled = [a.format(trace) if isinstance(a, str) else a for a in arguments]
    content = {"conv1_w": np.ones((2, 2), "f4"), "trap": Call(function, *filled)}
    source = pickled(content, tmp_path, protocol)
    error = refused(tool, config(RESNET18), source, tmp_path)
    assert re.search(rf"{named}: allowed are (arrays|numbers)", error)
    assert not trace.exists()
    if function is os.system:  # the trap works
        pickle.loads(Path(source).read_bytes())
        assert trace.exists()


ARRAYS = {
    "float": np.arange(6, dtype="f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">f4"),
    "none": np.array(5, dtype="i8"),
    "half": np.ones(2, "f2"),
    "bool": np.array([True, False]),
    "scalar": np.float32(2.5),
}


@pytest.mark.parametrize("numpy", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_and_numpy(tmp_path: Path, protocol: int, numpy: bytes) -> None:
    content = {"model": OrderedDict(ARRAYS), "__author__": "someone"}
    path = Path(pickled(content, tmp_path, protocol))
    if protocol < 4:  # later ones hold lengths, too
        path.write_bytes(re.sub(rb"numpy\._?core", numpy, path.read_bytes()))
    found = load_arrays(str(path))
    assert found["__author__"] == "someone" and list(found["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        expected = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
        assert_close(found["model"][name], expected, rtol=0, atol=0)


def test_an_array_of_python_2(tmp_path: Path) -> None:
    """Its strings are bytes; the opcodes of {"a": array([1, 255 / 256], float32)} by hand."""
    values = np.array([1, 255 / 256], "<f4").tobytes()
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = (
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + values + b"tb"
    (tmp_path / "old.pkl").write_bytes(b"\x80\x02}U\x01a" + empty + state + b"s.")
    found = load_arrays(str(tmp_path / "old.pkl"))
    assert_close(found["a"], torch.tensor([1, 255 / 256]), rtol=0, atol=0)


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    for array in (np.array([{}, 1], dtype=object), np.array(["text"]), np.zeros(1, "f4,O")):
        with pytest.raises(pickle.UnpicklingError, match="allowed are numbers"):
            load_arrays(pickled({"a": array}, tmp_path))


# ---- as a person starts it -----------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    saved(reference_of(RESNET18), tmp_path)
    file = "configs/COCO-Detection/faster_rcnn_R_18_FPN_1x.yaml"
    arguments = ["--config-file", file, "--weights", str(tmp_path / "source.pth")]
    arguments += ["--output", str(tmp_path / "output.pth")]

    def run(*options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "tools/convert_weights.py", *arguments, *command_line(list(options))]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("INPUT.FORMAT", "BGR")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: INPUT.FORMAT: 'BGR': ")
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]

    code = ["MODEL.CRNAS.STAGE_CODE", [1, 1, 2, 4]]
    done = run(*code)
    assert done.returncode == 0, done.stderr
    assert "res5.3 <- res5.1 of the source" in done.stderr.splitlines()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output.pth")]
    check_weights(read_config(str(ROOT / file), [*weights, *code]), resume=False)


def test_a_source_says_what_it_is(resnet18: str) -> None:
    source = read_source(resnet18)
    assert list(source.blocks) == [f"res{stage}.{block}" for stage in range(2, 6) for block in range(2)]
    assert source.others == ["fc.weight", "fc.bias"] and not source.is_fused
