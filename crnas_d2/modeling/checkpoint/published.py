"""Published ImageNet weights: their files, their names, and the input they were made for.

Torchvision's state dicts, bare or as training scripts wrap them, detectron2's copies of them, Caffe2's
ResNets from MSRA and FAIR, and our own checkpoints become a Source, whose layers have our names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from crnas_d2.errors import InputError
from crnas_d2.modeling.checkpoint.weights import CONVENTION_KEYS, read_file
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names

Weights = dict[str, torch.Tensor]

# Of ImageNet, values 0..255 (torchvision's ResNet). With UNIT_STD the first convolution scales them.
MEAN_RGB, STD_RGB = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
MEAN_BGR, STD_BGR, UNIT_STD = MEAN_RGB[::-1], STD_RGB[::-1], [1.0, 1.0, 1.0]
# Input conventions by the name that --input-convention takes. Sources in detectron2:
# tools/convert-torchvision-to-d2.py, the default config (msra), checkpoint/catalog.py (detectron) and
# configs/COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml (fair).
CONVENTIONS = {
    name: dict(zip(CONVENTION_KEYS, values))
    for name, *values in (
        ("torchvision", "RGB", MEAN_RGB, STD_RGB, False),
        ("msra", "BGR", MEAN_BGR, UNIT_STD, True),  # R-50.pkl, R-101.pkl
        ("fair", "BGR", MEAN_BGR, STD_BGR, False),  # X-101-32x8d.pkl
        ("detectron", "BGR", MEAN_BGR, UNIT_STD, False),  # X-152-32x8d-IN5k.pkl
    )
}
# A stem's first weight, after the prefixes of data parallelism, Lightning, MoCo, mmcls and detectors.
STEM = re.compile(
    r"((?:(?:module|model|encoder_q|backbone|bottom_up)\.)*)"
    r"(?:(?:stem\.)?conv1\.weight|features\.0\.0\.weight|conv1_w)"
)
# Torchvision's names to ours, one rule after the other. Its blocks of MobileNetV2 have pairs of
# convolution (0) and norm (1), and at the end a bare convolution and norm; the first has no ``expand``.
OUR_NAMES = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    *((rf"^layer{i}\.", f"res{i + 1}.") for i in (1, 2, 3, 4)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^features\.0\.", "stem.conv1."),
    (r"^(features\.1)\.conv\.0\.", r"\1.depthwise."),
    (r"^(features\.1)\.conv\.1\.", r"\1.project.0."),
    (r"^(features\.1)\.conv\.2\.", r"\1.project.1."),
    (r"^(features\.\d+)\.conv\.0\.", r"\1.expand."),
    (r"^(features\.\d+)\.conv\.1\.", r"\1.depthwise."),
    (r"^(features\.\d+)\.conv\.2\.", r"\1.project.0."),
    (r"^(features\.\d+)\.conv\.3\.", r"\1.project.1."),
    (r"^(features\.\d+)\.([01])\.", r"\1.conv.\2."),  # the tail
    (r"^((?:stem|features)\..+)\.0\.", r"\1."),
    (r"^((?:stem|features)\..+)\.1\.", r"\1.norm."),
)
TORCHVISIONS = {"layer1.0.conv1.weight", "features.0.0.weight"}  # of ResNets, and of MobileNetV2


@dataclass(frozen=True)
class Source:
    """The network in a file."""

    key: str  # the option or config key that names the file
    path: str  # as the user gave it
    blocks: dict[str, Weights]  # by our names, ``conv1.norm.bias``: stem, then the blocks in order
    others: list[str]  # names of all other weights, such as a classifier's
    convention: dict[str, Any]  # the input that the weights were made for
    is_fused: bool  # BatchNorm is merged into scale and bias; there are no statistics

    @property
    def where(self) -> str:
        return f"{self.key}: {self.path}"


def read_source(path: str, key: str, convention: str | None = None) -> Source:
    """The network in a file, or an InputError, which begins with ``key``.

    ``convention``: a key of ``CONVENTIONS``, in place of the file's own.
    """
    content, where = read_file(path, key), f"{key}: {path}"
    state, known, is_fused = _unwrapped(content), content.get("input_convention"), False
    if "conv1_w" in state:
        state, known, is_fused = _from_caffe2(state, where)
    elif TORCHVISIONS & state.keys() or content.get("__author__") == "torchvision":  # by detectron2
        known = CONVENTIONS["torchvision"]
    blocks: dict[str, Weights] = {}
    others = []
    for name, value in state.items():
        for pattern, replacement in OUR_NAMES:
            name = re.sub(pattern, replacement, name)
        # detectron2's converter puts torchvision's classifier below the stem.
        match = re.fullmatch(r"(stem(?!\.fc)|res\d\.\d+|features\.\d+)\.([a-z].*)", name)
        if match:
            blocks.setdefault(match[1], {})[match[2]] = value
        else:
            others.append(name)
    if "stem" not in blocks or len(blocks) == 1:
        raise InputError(
            f"{where}: holds no ResNet, ResNeXt or MobileNetV2 under the names of "
            f"torchvision, Caffe2 or detectron2, but {', '.join([*state, *content][:3]) or 'nothing'}"
        )
    if convention:
        known = CONVENTIONS[convention]
    if not known:
        allowed = ", ".join(CONVENTIONS)
        raise InputError(
            f"{where}: does not say what input it was made for; allowed is tools/convert_weights.py "
            f"with --input-convention ({allowed})"
        )
    order = sorted(blocks, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    return Source(key, path, {name: blocks[name] for name in order}, others, known, is_fused)


def _unwrapped(content: dict[str, Any]) -> Weights:
    """The tensors of the state dict, their names without the prefix that the stem has."""
    state = content
    for key in ("model", "state_dict", "blobs"):
        state = state[key] if isinstance(state.get(key), dict) else state
    state = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    prefix = min((match[1] for match in map(STEM.fullmatch, state) if match), key=len, default="")
    return {name[len(prefix) :] if name.startswith(prefix) else name: v for name, v in state.items()}


def _from_caffe2(state: Weights, where: str) -> tuple[Weights, dict[str, Any], bool]:
    """The weights by our names, their convention, and whether BatchNorm is fused."""
    if any("_gn_" in name for name in state):
        raise InputError(f"{where}: has GroupNorm; allowed are weights with BatchNorm")
    state = {name: value for name, value in state.items() if not name.endswith("_momentum")}
    state = dict(zip(convert_basic_c2_names(list(state)), state.values()))
    # A fused norm gets statistics that change nothing: 1e-5 is the epsilon of every norm here.
    norms = [name[: -len("weight")] for name in state if name.endswith(".norm.weight")]
    fused = [norm for norm in norms if f"{norm}running_mean" not in state]
    for norm in fused:
        state[f"{norm}running_mean"] = torch.zeros_like(state[f"{norm}weight"])
        state[f"{norm}running_var"] = torch.full_like(state[f"{norm}weight"], 1 - 1e-5)
    # The first convolution of MSRA's ResNet50 adds a bias, which the norm after it subtracts.
    mean, bias = "stem.conv1.norm.running_mean", state.pop("stem.conv1.bias", None)
    if bias is not None and mean in state:
        state[mean] = state[mean] - bias
    conv = state.get("res2.0.conv2.weight", torch.empty(0, 0))
    has_groups = conv.shape[0] != conv.shape[1]
    name = "msra" if not has_groups else "detectron" if fused else "fair"
    return state, CONVENTIONS[name], bool(fused)
