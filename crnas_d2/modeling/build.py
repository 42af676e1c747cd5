"""The builders in detectron2's BACKBONE_REGISTRY; they and the classifier alone read cfg here.

Each builds the fixed network of MODEL.CRNAS.STAGE_CODE and DILATION_CODE, or the supernet that
MODEL.CRNAS.SUPERNET names. crnas_d2/config.py explains the keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from crnas_d2.architecture import FAMILY_STAGES, FIXED_ENTRIES, Architecture
from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.family import Family, build_network
from crnas_d2.modeling.backbone.mobilenetv2 import MOBILENETV2
from crnas_d2.modeling.backbone.norm import resolve_norm
from crnas_d2.modeling.backbone.resnet import RESNET_BASIC, resnet, resnext
from crnas_d2.modeling.backbone.supernet import DilationSupernet, StageSupernet
from crnas_d2.modeling.checkpoint.weights import load_below_neck
from crnas_d2.modeling.neck.nas_fpn import NASFPN
from crnas_d2.space import FAMILY_DEPTHS, DilationSpace, StageSpace
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7

# By MODEL.CRNAS.FAMILY; each takes the node MODEL.CRNAS.
FAMILIES: dict[str, Callable[[CfgNode], Family]] = {
    "resnet_basic": lambda node: RESNET_BASIC,
    "resnet": lambda node: resnet(node.STRIDE_IN_1X1),
    "resnext": lambda node: resnext(node.NUM_GROUPS, node.WIDTH_PER_GROUP, node.STRIDE_IN_1X1),
    "mobilenetv2": lambda node: MOBILENETV2,
}
SUPERNETS = ("", "stage", "dilation")


def family_of(cfg: CfgNode) -> Family:
    """The family that MODEL.CRNAS.FAMILY names; an InputError if there is none."""
    name = cfg.MODEL.CRNAS.FAMILY
    if name not in FAMILIES:
        raise InputError(f"MODEL.CRNAS.FAMILY: {name!r}: allowed are {', '.join(FAMILIES)}")
    return FAMILIES[name](cfg.MODEL.CRNAS)


def architecture_of(cfg: CfgNode) -> Architecture:
    """The fixed network's architecture, without a dilation code of rate 1; an InputError if invalid."""
    family, node = family_of(cfg).name, cfg.MODEL.CRNAS
    key = "STAGE_CODE"
    try:
        undilated = Architecture.undilated(family, node.STAGE_CODE)
        key = "DILATION_CODE"
        if len(node.DILATION_CODE) not in (0, undilated.blocks):
            raise ValueError(
                f"{list(node.DILATION_CODE)} has {len(node.DILATION_CODE)} digits; stage code "
                f"{list(undilated.stage_code)} takes {undilated.blocks}, or none at all"
            )
        digits = tuple(node.DILATION_CODE) or undilated.dilation_code
        return Architecture(family, undilated.stage_code, digits)
    except ValueError as error:
        raise InputError(f"MODEL.CRNAS.{key}: {error}") from error


def input_convention(cfg: CfgNode) -> dict[str, Any]:
    """The input that weights of this config are made for (modeling/checkpoint/weights.py)."""
    return {
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": [float(value) for value in cfg.MODEL.PIXEL_MEAN],
        "pixel_std": [float(value) for value in cfg.MODEL.PIXEL_STD],
        "stride_in_1x1": bool(cfg.MODEL.CRNAS.STRIDE_IN_1X1),
    }


def stage_space_of(cfg: CfgNode) -> StageSpace:
    """The space of MODEL.CRNAS.STAGE_SPACE, by default the paper's; an InputError if it is none."""
    family = family_of(cfg).name
    lists = cfg.MODEL.CRNAS.STAGE_SPACE or FAMILY_DEPTHS[family]
    fixed = FIXED_ENTRIES.get(family, ())

    def is_sound(entry: int, depths: object) -> bool:
        if not isinstance(depths, (list, tuple)) or not all(type(n) is int and n > 0 for n in depths):
            return False
        return 0 < len(set(depths)) == len(depths) and (entry not in fixed or max(depths) == 1)

    if len(lists) != FAMILY_STAGES[family] or not all(map(is_sound, itertools.count(), lists)):
        fixed_too = "".join(f", [1] in entry {entry + 1}" for entry in fixed)
        raise InputError(
            f"MODEL.CRNAS.STAGE_SPACE: {list(lists)}: {family} takes {FAMILY_STAGES[family]} lists of "
            f"different positive depths{fixed_too}"
        )
    return StageSpace(family, tuple(tuple(sorted(depths)) for depths in lists))


def _scaled_widths(node: CfgNode, family: Family) -> list[int]:
    """Channels after the stem, then the width of each chain."""
    widths = node.WIDTHS or family.widths
    equal = family.projects_by_width and any(a == b for a, b in zip(widths, widths[1:]))
    if len(widths) != len(family.widths) or min(widths) < 1 or equal:
        raise InputError(
            f"MODEL.CRNAS.WIDTHS: {list(widths)}: {family.name} takes {len(family.widths)} positive "
            "widths, or none at all; neighbouring stages of a ResNet need different ones"
        )
    full = [node.STEM_CHANNELS or family.stem_channels, *widths]
    scaled = [width * node.WIDTH_MULTIPLIER for width in full]
    if min(scaled) < 1 or any(width != int(width) for width in scaled):
        raise InputError(
            f"MODEL.CRNAS.WIDTH_MULTIPLIER: {node.WIDTH_MULTIPLIER:g}: turns the widths {full} into "
            f"{scaled}; whole numbers of at least 1 are needed"
        )
    return [int(width) for width in scaled]


def build_crnas_bottom_up(
    cfg: CfgNode, input_shape: ShapeSpec, out_features: tuple[str, ...]
) -> Backbone:
    """The fixed network or supernet of MODEL.CRNAS, without a neck; an InputError if it has none."""
    node, family = cfg.MODEL.CRNAS, family_of(cfg)
    if node.SUPERNET not in SUPERNETS:
        raise InputError(f"MODEL.CRNAS.SUPERNET: {node.SUPERNET!r}: allowed are {SUPERNETS}")
    stem_channels, *widths = _scaled_widths(node, family)
    shape: dict[str, Any] = {
        "in_channels": input_shape.channels,
        "stem_channels": stem_channels,
        "widths": widths,
        "norm": resolve_norm(node.NORM, cfg.MODEL.DEVICE),
        "out_features": out_features,
    }
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if not node.SUPERNET:
        return build_network(family, architecture_of(cfg), freeze_at=freeze_at, **shape)
    if freeze_at != 0:
        raise InputError(f"MODEL.BACKBONE.FREEZE_AT: {freeze_at}: a supernet takes 0 only")
    if cfg.TEST.PRECISE_BN.ENABLED:  # it would zero the statistics of layers off the path
        raise InputError("TEST.PRECISE_BN.ENABLED: True: allowed is False with a supernet")
    if node.SUPERNET == "stage":
        return StageSupernet(family, stage_space_of(cfg), nested=node.NESTED_DEPTHS, **shape)
    space = DilationSpace(family.name, architecture_of(cfg).stage_code)
    return DilationSupernet(family, space, **shape)


@BACKBONE_REGISTRY.register()
def build_crnas_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The bare backbone, with the stages of MODEL.CRNAS.OUT_FEATURES."""
    return build_crnas_bottom_up(cfg, input_shape, tuple(cfg.MODEL.CRNAS.OUT_FEATURES))


def _neck_options(cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
    """What FPN and NASFPN have in common."""
    norm, in_features = cfg.MODEL.FPN.NORM, cfg.MODEL.FPN.IN_FEATURES
    return {
        "bottom_up": build_crnas_bottom_up(cfg, input_shape, tuple(in_features)),
        "in_features": list(in_features),
        "out_channels": cfg.MODEL.FPN.OUT_CHANNELS,
        "norm": resolve_norm(norm, cfg.MODEL.DEVICE) if norm == "auto" else norm,
    }


@BACKBONE_REGISTRY.register()
def build_crnas_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """With FPN for Faster, Mask and Cascade R-CNN: P2 .. P6 from res2 .. res5; P6 by pooling."""
    options = _neck_options(cfg, input_shape)
    top_block, fuse_type = LastLevelMaxPool(), cfg.MODEL.FPN.FUSE_TYPE
    return load_below_neck(FPN(**options, top_block=top_block, fuse_type=fuse_type))


@BACKBONE_REGISTRY.register()
def build_crnas_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """With FPN for RetinaNet: P3 .. P7 from res3 .. res5; P6 and P7 by convolutions over res5."""
    options = _neck_options(cfg, input_shape)
    channels = options["bottom_up"].output_shape()["res5"].channels
    top_block, fuse_type = LastLevelP6P7(channels, options["out_channels"]), cfg.MODEL.FPN.FUSE_TYPE
    return load_below_neck(FPN(**options, top_block=top_block, fuse_type=fuse_type))


@BACKBONE_REGISTRY.register()
def build_crnas_nas_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NASFPN:
    """With NAS-FPN (paper, Table 9): P3 .. P7 from res3 .. res5."""
    options = _neck_options(cfg, input_shape)
    return load_below_neck(NASFPN(**options, num_cells=cfg.MODEL.NAS_FPN.NUM_CELLS))
