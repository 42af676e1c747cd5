"""The way in from Python: a backbone by its codes, and a found network, without a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.engine.detector import detector_config, load_detector
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import build_bottom_up
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

STAGES = {"stem", "res2", "res3", "res4", "res5"}


def build_backbone(
    architecture: str,
    out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    norm: str = "BN",
    in_channels: int = 3,
) -> Backbone:
    """The backbone of an architecture in its text form, of full width, with random weights.

    Args:
        architecture: such as ``resnet/1-3-5-7/0-010-00120-0102112`` (CR-ResNet50; paper, Tables 5 and
            6) or ``mobilenetv2/1-1-2-3-4-3-3-1-1-1/0-0-00-000-0000-000-000-0-0-0``.
        out_features: the stages that it returns, of stem and res2 to res5; those have strides 4 to 32.
        norm: for detectron2's get_norm, such as BN, SyncBN, FrozenBN or GN.

    Returns: a module from images (N, in_channels, H, W) to a dict of features by stage, each
        (N, channels, H / stride, W / stride); ``output_shape()`` has channels and strides.
    Raises InputError: the text is no architecture, ``norm`` is none that MODEL.CRNAS.NORM allows, or
        ``out_features`` has none or others.
    """
    try:
        codes = Architecture.parse(architecture)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not out_features or not STAGES.issuperset(out_features):
        raise InputError(f"out_features: {out_features}: allowed are {', '.join(sorted(STAGES))}")
    node = "MODEL.CRNAS."
    pairs: list[Any] = [
        *(f"{node}FAMILY", codes.family, f"{node}NORM", norm),
        *(f"{node}STAGE_CODE", list(codes.stage_code)),
        *(f"{node}DILATION_CODE", list(codes.dilation_code), "MODEL.BACKBONE.FREEZE_AT", 0),
    ]
    return build_bottom_up(read_config("", pairs), ShapeSpec(channels=in_channels), out_features)


def load_found(config_file: str, weights: str = "") -> nn.Module:
    """The detector of a found.yaml with its weights, in eval mode, on MODEL.DEVICE.

    ``weights``: a checkpoint; by default the file of the config's name beside it, such as found.pth.
    The module takes and returns what detectron2's detectors do: a list of dicts, each with an ``image``
    (C, H, W), resized as INPUT says, in the order of INPUT.FORMAT's channels, 0 to 255.

    Raises InputError: no such files, or weights that are not all of this detector's.
    """
    return load_detector(detector_config(config_file, ["MODEL.WEIGHTS", weights] if weights else []))
