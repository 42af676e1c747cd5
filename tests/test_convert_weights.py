"""tools/convert_weights.py: converted weights compute what their source does."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converting import (
    DETECTRON,
    FAIR,
    MOBILENETV2,
    MSRA,
    RESNET18,
    RESNET50,
    Convention,
    as_detectron2,
    config,
    converted,
    outline,
    pickled,
    reference_of,
    saved,
    tool,
)
from detectors import ROOT, command_line
from networks import CR_RESNET50, FAMILIES, PAPERS, random_architecture
from torch import nn
from torchvision_networks import assert_same_features

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.engine.setup import check_weights
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import input_convention
from detectron2.config import CfgNode

SHORT = {  # few blocks, full width: the chains of the supernets' sources
    "resnet_basic": RESNET18,
    "resnet": Architecture.undilated("resnet", (2, 2, 3, 2)),
    "resnext": Architecture.undilated("resnext", (2, 2, 3, 2)),
    "mobilenetv2": MOBILENETV2,
}


def network_from(source: str, cfg: CfgNode, folder: Path) -> nn.Module:
    network = outline(cfg)
    network.load_state_dict(converted(cfg, source, folder), assign=True)
    return network.eval()


# ---- weights of the same network -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "width_per_group"),
    [
        pytest.param(RESNET18, 4, id="ResNet18"),
        pytest.param(RESNET50, 4, id="ResNet50"),
        pytest.param(Architecture.undilated("resnet", (3, 4, 23, 3)), 4, id="ResNet101"),
        pytest.param(Architecture.undilated("resnext", (3, 4, 6, 3)), 4, id="ResNeXt50-32x4d"),
        pytest.param(Architecture.undilated("resnext", (3, 4, 23, 3)), 8, id="ResNeXt101-32x8d"),
        pytest.param(MOBILENETV2, 4, id="MobileNetV2"),
        *(pytest.param(architecture, 4, id=f"CR-{architecture}") for architecture in PAPERS),
    ],
)
def test_features_are_torchvisions(
    tmp_path: Path, architecture: Architecture, width_per_group: int
) -> None:
    reference = reference_of(architecture, width_per_group)
    cfg = config(architecture, "MODEL.CRNAS.WIDTH_PER_GROUP", width_per_group)
    network = network_from(saved(reference, tmp_path), cfg, tmp_path)
    for size in ((224, 224), (320, 256)):
        assert_same_features(network, reference, architecture, size)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_any_code_are_torchvisions(tmp_path: Path, family: str, seed: int) -> None:
    architecture = random_architecture(family, seed)
    reference, cfg = reference_of(architecture), config(architecture)
    if family == "mobilenetv2":  # in order of appearance: the converter knows one first block alone
        network = outline(cfg).eval()
        state = dict(zip(network.state_dict(), reference.state_dict().values()))
        network.load_state_dict(state, assign=True)
    else:
        network = network_from(saved(reference, tmp_path), cfg, tmp_path)
    assert_same_features(network, reference, architecture, (96, 128))


def test_a_wrong_dilation_is_seen(tmp_path: Path) -> None:
    """The comparison can fail: the codes' rates make a difference."""
    reference = reference_of(CR_RESNET50)
    cfg = config(Architecture.undilated("resnet", CR_RESNET50.stage_code))
    network = network_from(saved(reference, tmp_path), cfg, tmp_path)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_features(network, reference, CR_RESNET50, (64, 64))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_detectron2s_converter(tmp_path: Path, protocol: int) -> None:
    state = reference_of(RESNET18).state_dict()
    content = {"model": as_detectron2(state), "__author__": "torchvision", "matching_heuristics": True}
    source = pickled(content, tmp_path, protocol)
    found = converted(config(RESNET18), source, tmp_path)
    assert torch.equal(found["stem.conv1.norm.running_var"], state["bn1.running_var"])
    assert torch.equal(found["res3.0.shortcut.norm.bias"], state["layer2.0.downsample.1.bias"])
    assert found["res5.1.conv2.norm.num_batches_tracked"] == 7
    assert sum(v.numel() for v in found.values()) == sum(
        v.numel() for name, v in state.items() if not name.startswith("fc.")
    )


def as_caffe2(network: nn.Module, suffixes: dict[str, str], fuse: bool) -> dict[str, np.ndarray]:
    """The weights under Caffe2's names, with momenta and other entries as its files have them.

    ``suffixes`` are its names of a norm's parts; fused, a norm becomes a factor and an addend.
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


PARTS = ("weight", "bias", "running_mean", "running_var")
SPELLED = dict(zip(PARTS, ("gamma", "beta", "running_mean", "running_var")))
BRIEF = dict(zip(PARTS, ("s", "b", "rm", "riv")))


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
    tmp_path: Path,
    family: str,
    suffixes: dict[str, str],
    fuse: bool,
    convention: Convention,
) -> None:
    architecture = Architecture.undilated(family, (1, 11, 1, 1))
    reference = reference_of(architecture, width_per_group=8)
    if convention is MSRA:
        for i in range(1, 5):
            block = getattr(reference, f"layer{i}")[0]
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
        bias = torch.randn(64, generator=torch.Generator().manual_seed(3))
        reference.conv1.bias = nn.Parameter(bias)  # as its conv1_b
    blobs = as_caffe2(reference, suffixes, fuse)
    source = pickled({"blobs": blobs} if fuse else blobs, tmp_path, protocol=2)
    norm = "FrozenBN" if fuse else "BN"
    options = ["MODEL.CRNAS.WIDTH_PER_GROUP", 8, "MODEL.CRNAS.NORM"]
    cfg = config(architecture, *options, norm, convention=convention)
    network = network_from(source, cfg, tmp_path)
    assert_same_features(network, reference, architecture, (64, 96))
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
    tmp_path: Path,
    source: Architecture,
    wanted: Architecture,
    options: list[Any],
    pairs: dict[str, str],
) -> None:
    held = reference_of(source)
    state = converted(config(wanted, *options), saved(held, tmp_path), tmp_path)
    for ours, theirs in pairs.items():
        assert torch.equal(state[ours], held.state_dict()[theirs]), ours


def test_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(Architecture.undilated("resnet_basic", (1, 1, 2, 4)))
    path = saved(reference_of(RESNET18), tmp_path)
    with caplog.at_level(logging.INFO):
        tool.convert_file(cfg, path, tmp_path / "output.pth")
    written = [record.getMessage() for record in caplog.records if record.name == tool.__name__]
    assert [line.removesuffix(" of the source") for line in written] == [
        *("stem <- stem", "res2.0 <- res2.0", "res3.0 <- res3.0"),
        *("res4.0 <- res4.0", "res4.1 <- res4.1"),
        *("res5.0 <- res5.0", "res5.1 <- res5.1", "res5.2 <- res5.1", "res5.3 <- res5.1"),
        "9 blocks from 7",
        "not used: res2.1, res3.1, fc.weight, fc.bias",
    ]


@pytest.mark.parametrize(
    ("kind", "shared"), [("stage", False), ("stage", True), ("dilation", False), ("joint", True)]
)
@pytest.mark.parametrize("family", SHORT)
def test_a_supernets_paths_are_the_fixed_networks(
    tmp_path: Path, family: str, kind: str, shared: bool
) -> None:
    """Every family's supernet of the paper, at full width: its paths are what a fixed network gets."""
    code = {"mobilenetv2": (1, 1, 5, 4, 7, 2, 6, 1, 1, 1)}.get(family, (3, 10, 9, 4))
    path = Architecture.undilated(family, code)
    source = saved(reference_of(SHORT[family]), tmp_path)
    fixed = converted(config(path), source, tmp_path)
    cfg = config(path, "MODEL.CRNAS.SUPERNET", kind, "MODEL.CRNAS.SHARED", shared)
    state = converted(cfg, source, tmp_path)
    supernet = outline(cfg)
    paths = [path]
    if kind != "stage":
        digits = [[d * path.has_choice(b) for b in range(path.blocks)] for d in (1, 2)]
        paths += [Architecture(family, code, tuple(chosen)) for chosen in digits]
    for chosen in paths:
        named = {there: state[here] for here, there in supernet.subnet_keys(chosen).items()}
        assert named.keys() == fixed.keys()
        assert all(torch.equal(named[name], value) for name, value in fixed.items())


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.bottom_up."])
@pytest.mark.parametrize("family", SHORT)
def test_our_own_checkpoint(tmp_path: Path, family: str, prefix: str) -> None:
    """A network of another code takes from our checkpoint what it takes from the weights' origin."""
    origin = saved(reference_of(SHORT[family]), tmp_path)
    own = converted(config(SHORT[family]), origin, tmp_path)
    code = {"mobilenetv2": (1, 1, 1, 4, 2, 5, 1, 1, 1, 1)}.get(family, (1, 3, 4, 5))
    wanted = Architecture.undilated(family, code)
    expected = converted(config(wanted), origin, tmp_path)
    Path(origin).unlink()
    checkpoint = {
        "model": {prefix + name: value for name, value in own.items()} | {"fc.bias": torch.ones(9)},
        "input_convention": input_convention(config(wanted)),
        "iteration": 7,
    }
    torch.save(checkpoint, tmp_path / "source.pth")
    found = converted(config(wanted), str(tmp_path / "source.pth"), tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# ---- the script ----------------------------------------------------------------------------------


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
