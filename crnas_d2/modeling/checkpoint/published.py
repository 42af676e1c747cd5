"""ImageNet weights as others publish them: their files, their names, the input they were made for.

Read are state dicts of torchvision (.pth), detectron2's copies of them (.pkl), Caffe2's ResNets from
MSRA and FAIR (.pkl), and our own checkpoints (.pth). Each becomes a Source: a stem and blocks, whose
layers have the names of our networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from crnas_d2.errors import InputError
from crnas_d2.modeling.checkpoint.array_pickle import load_arrays
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from detectron2.utils.file_io import PathManager

Weights = dict[str, torch.Tensor]

MEAN_RGB = [123.675, 116.28, 103.53]  # of ImageNet, values 0..255 (torchvision's ResNet)
STD_RGB = [58.395, 57.12, 57.375]
MEAN_BGR, STD_BGR = MEAN_RGB[::-1], STD_RGB[::-1]


def _convention(order: str, mean: list[float], std: list[float], stride_in_1x1: bool) -> dict[str, Any]:
    return {
        "format": order,
        "pixel_mean": mean,
        "pixel_std": std,
        "stride_in_1x1": stride_in_1x1,
    }


# By the name of --input-convention; the parts are those of crnas_d2/modeling/checkpoint/weights.py. Where the
# deviation is 1, the first convolution holds it. Sources, in detectron2: the default config (msra),
# tools/convert-torchvision-to-d2.py, configs/COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml (fair)
# and checkpoint/catalog.py (detectron).
CONVENTIONS = {
    "torchvision": _convention("RGB", MEAN_RGB, STD_RGB, False),
    "msra": _convention("BGR", MEAN_BGR, [1.0, 1.0, 1.0], True),  # R-50.pkl, R-101.pkl
    "fair": _convention("BGR", MEAN_BGR, STD_BGR, False),  # X-101-32x8d.pkl
    "detectron": _convention("BGR", MEAN_BGR, [1.0, 1.0, 1.0], False),  # X-152-32x8d-IN5k.pkl
}


@dataclass(frozen=True)
class Source:
    """The network in a file.

    Attributes:
        path: of the file, as it was named.
        stem: the stem's weights by our names, ``conv1.weight``, ``conv1.norm.bias`` ...
        blocks: weights of each block likewise, in the order of the network, by the block's own name.
        others: names in the file that are neither stem nor block; a classifier's, for example.
        convention: the input that the weights were made for.
        is_fused: BatchNorm is merged into scale and bias; there are no statistics.
    """

    path: str
    stem: Weights
    blocks: dict[str, Weights]
    others: list[str]
    convention: dict[str, Any]
    is_fused: bool


def read_source(path: str, convention: str | None = None) -> Source:
    """The network in a file.

    Args:
        path: .pkl or .pth, or an address that detectron2 can fetch it from.
        convention: a key of ``CONVENTIONS``, in place of what the file says; None: the file's.

    Raises:
        InputError: not such a file, a pickle with anything but arrays, a network of unknown names, or
            one that nobody says the convention of.
    """
    content = _read(path)
    state: Any = content
    for key in ("model", "blobs"):
        state = state.get(key, state) if isinstance(state, Mapping) else {}
    state = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    said, is_fused = content.get("input_convention"), False
    if "conv1_w" in state:
        state, name, is_fused = _from_caffe2(state, path)
        said = CONVENTIONS[name]
    elif "features.0.0.weight" in state:
        state, said = _from_mobilenetv2(state), CONVENTIONS["torchvision"]
    elif "layer1.0.conv1.weight" in state:
        state, said = _renamed(state, _RESNET), CONVENTIONS["torchvision"]
    else:
        state = _renamed(state, _OURS)
        if content.get("__author__") == "torchvision":
            said = CONVENTIONS["torchvision"]
    if convention:
        said = CONVENTIONS[convention]
    stem, blocks, others = _split(state)
    if not stem or not blocks:
        raise InputError(
            f"--weights: {path}: holds no ResNet, ResNeXt or MobileNetV2 under the names of "
            "torchvision, Caffe2 or detectron2"
        )
    if not said:
        raise InputError(
            f"--input-convention: {convention}: {path} does not say its own; allowed are "
            f"{', '.join(CONVENTIONS)}"
        )
    return Source(path, stem, blocks, others, dict(said), is_fused)


# ---- names ---------------------------------------------------------------------------------------

_RESNET = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    *((rf"^layer{i}\.", f"res{i + 1}.") for i in (1, 2, 3, 4)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
# detectron2's converter puts the classifier of torchvision below the stem.
_OURS = ((r"^backbone\.(bottom_up\.)?", ""), (r"^stem\.fc\.", "fc."))
# torchvision numbers the layers of MobileNetV2; a block of expansion 1 has one pair less.
_ENDS = {"0": "conv", "1": "conv.norm"}
_STEM = {number: layer.replace("conv", "conv1") for number, layer in _ENDS.items()}
_PLAIN = {
    "conv.0.0": "depthwise",
    "conv.0.1": "depthwise.norm",
    "conv.1": "project",
    "conv.2": "project.norm",
}
_EXPANDING = {
    "conv.0.0": "expand",
    "conv.0.1": "expand.norm",
    "conv.1.0": "depthwise",
    "conv.1.1": "depthwise.norm",
    "conv.2": "project",
    "conv.3": "project.norm",
}
EPSILON = 1e-5  # of every BatchNorm here


def _renamed(state: Weights, rules: Sequence[tuple[str, str]]) -> Weights:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _from_mobilenetv2(state: Weights) -> Weights:
    def ours(name: str) -> str:
        match = re.fullmatch(r"(features\.\d+)\.(.+)\.(\w+)", name)
        if match is None:
            return name
        block, layer, parameter = match.groups()
        if block == "features.0":
            return f"stem.{_STEM.get(layer, layer)}.{parameter}"
        is_end = f"{block}.0.weight" in state
        expands = f"{block}.conv.3.weight" in state
        layers = _ENDS if is_end else _EXPANDING if expands else _PLAIN
        return f"{block}.{layers.get(layer, layer)}.{parameter}"

    return {ours(name): value for name, value in state.items()}


def _from_caffe2(state: Weights, path: str) -> tuple[Weights, str, bool]:
    """The weights, the name of their convention, and whether BatchNorm is fused."""
    if any("_gn_" in name for name in state):
        raise InputError(f"--weights: {path}: has GroupNorm; allowed are weights with BatchNorm")
    state = {name: value for name, value in state.items() if not name.endswith("_momentum")}
    state = dict(zip(convert_basic_c2_names(list(state)), state.values()))
    # A fused norm is the identity but for scale and bias, as in detectron2's FrozenBatchNorm2d.
    norms = [name[: -len("weight")] for name in state if name.endswith(".norm.weight")]
    fused = [norm for norm in norms if f"{norm}running_mean" not in state]
    for norm in fused:
        state[f"{norm}running_mean"] = torch.zeros_like(state[f"{norm}weight"])
        state[f"{norm}running_var"] = torch.full_like(state[f"{norm}weight"], 1 - EPSILON)
    # MSRA's ResNet50 adds a bias in its first convolution; the norm that follows takes it away.
    mean, bias = "stem.conv1.norm.running_mean", state.pop("stem.conv1.bias", None)
    if bias is not None and mean in state:
        state[mean] = state[mean] - bias
    conv = state.get("res2.0.conv2.weight")
    has_groups = conv is not None and conv.shape[0] != conv.shape[1]
    name = "msra" if not has_groups else "detectron" if fused else "fair"
    return state, name, bool(fused)


def _split(state: Weights) -> tuple[Weights, dict[str, Weights], list[str]]:
    stem: Weights = {}
    blocks: dict[str, Weights] = {}
    others = []
    for name, value in state.items():
        match = re.fullmatch(r"(stem|res\d\.\d+|features\.\d+)\.([a-z].*)", name)
        if match is None:
            others.append(name)
        elif match[1] == "stem":
            stem[match[2]] = value
        else:
            blocks.setdefault(match[1], {})[match[2]] = value
    order = sorted(blocks, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    return stem, {name: blocks[name] for name in order}, others


def _read(path: str) -> dict[str, Any]:
    try:
        file = PathManager.get_local_path(path)
        if path.endswith(".pkl"):
            content = load_arrays(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle may raise any
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"--weights: {path}: not a file of weights ({why})") from error
    if not isinstance(content, dict):
        raise InputError(f"--weights: {path}: holds a {type(content).__name__}; a dict is needed")
    return content
