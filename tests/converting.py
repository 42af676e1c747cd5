"""What tests of tools/convert_weights.py share: sources, configs, and the tool's own function."""

from __future__ import annotations

import importlib.util
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import ROOT
from networks import randomise
from torch import nn
from torchvision_networks import torchvisions

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import input_convention
from crnas_d2.modeling.checkpoint.weights import check_backbone_weights
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

RESNET18 = Architecture.undilated("resnet_basic", (2, 2, 2, 2))
RESNET50 = Architecture.undilated("resnet", (3, 4, 6, 3))
MOBILENETV2 = Architecture.undilated("mobilenetv2", (1, 1, 2, 3, 4, 3, 3, 1, 1, 1))

# Written down by hand, from the documents that crnas_d2/modeling/checkpoint/published.py names.
TORCHVISION = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], False)
MSRA = ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], True)
FAIR = ("BGR", [103.53, 116.28, 123.675], [57.375, 57.12, 58.395], False)
DETECTRON = ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], False)
Convention = tuple[str, list[float], list[float], bool]

_spec = importlib.util.spec_from_file_location("convert_tool", ROOT / "tools" / "convert_weights.py")
assert _spec is not None and _spec.loader is not None
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def config(architecture: Architecture, *options: Any, convention: Convention = TORCHVISION) -> CfgNode:
    order, mean, std, stride_in_1x1 = convention
    own = [
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
    return read_config("", [*own, *options])


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


def saved(content: nn.Module | dict[str, Any], folder: Path, name: str = "source.pth") -> str:
    torch.save(content.state_dict() if isinstance(content, nn.Module) else content, folder / name)
    return str(folder / name)


def pickled(content: Any, folder: Path, protocol: int = 4) -> str:
    path = folder / "source.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


def outline(cfg: CfgNode) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(cfg)


def converted(
    cfg: CfgNode, source: str, folder: Path, convention: str | None = None
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


def refused(cfg: CfgNode, source: str, folder: Path, convention: str | None = None) -> str:
    """The one line of a refusal that leaves nothing behind."""
    before = sorted(folder.iterdir())
    with pytest.raises(InputError) as caught:
        tool.convert_file(cfg, source, folder / "output.pth", convention)
    assert sorted(folder.iterdir()) == before
    assert re.fullmatch(r"[^\n\x1b]+", str(caught.value))
    return str(caught.value)


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
