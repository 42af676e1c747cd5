"""The builders in detectron2's BACKBONE_REGISTRY; they and the classifier alone read cfg here.

Each builds the fixed network of MODEL.CRNAS.STAGE_CODE and DILATION_CODE, or the supernet that
MODEL.CRNAS.SUPERNET names. crnas_d2/keys.py explains them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from crnas_d2.architecture import FAMILY_STAGES, FIXED_ENTRIES, Architecture
from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.family import Family, build_network
from crnas_d2.modeling.backbone.mobilenetv2 import MOBILENETV2
from crnas_d2.modeling.backbone.norm import resolve_norm
from crnas_d2.modeling.backbone.recompute import recompute_blocks
from crnas_d2.modeling.backbone.resnet import RESNET_BASIC, resnet, resnext
from crnas_d2.modeling.backbone.supernet import DilationSupernet, JointSupernet, StageSupernet
from crnas_d2.modeling.checkpoint.weights import load_below_neck
from crnas_d2.modeling.neck.nas_fpn import NASFPN
from crnas_d2.space import FAMILY_DEPTHS, DilationSpace, JointSpace, Space, StageSpace
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


def family_of(cfg: CfgNode) -> Family:
    """The family that MODEL.CRNAS.FAMILY names."""
    return FAMILIES[cfg.MODEL.CRNAS.FAMILY](cfg.MODEL.CRNAS)


def architecture_of(cfg: CfgNode) -> Architecture:
    """The fixed network's architecture, without a dilation code of rate 1; an InputError if invalid."""
    node, key = cfg.MODEL.CRNAS, "STAGE_CODE"
    try:
        undilated = Architecture.undilated(node.FAMILY, node.STAGE_CODE)
        key = "DILATION_CODE"
        digits = tuple(node.DILATION_CODE) or undilated.dilation_code
        if len(digits) < undilated.blocks:
            needed = f"stage code {list(node.STAGE_CODE)} takes {undilated.blocks} digits, or none"
            raise ValueError(f"{list(digits)}: {needed}")
        return Architecture(node.FAMILY, undilated.stage_code, digits)
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
    family = cfg.MODEL.CRNAS.FAMILY
    lists, entries = cfg.MODEL.CRNAS.STAGE_SPACE or FAMILY_DEPTHS[family], FAMILY_STAGES[family]
    are_depths = len(lists) == entries and all(
        isinstance(depths, (list, tuple)) and depths and all(type(n) is int and n > 0 for n in depths)
        for depths in lists
    )
    if not are_depths or any(max(lists[entry]) > 1 for entry in FIXED_ENTRIES.get(family, ())):
        raise InputError(
            f"MODEL.CRNAS.STAGE_SPACE: {list(lists)}: {family} takes {entries} lists of positive "
            "depths, [1] where an entry has no chain of blocks"
        )
    return StageSpace(family, tuple(tuple(sorted(set(depths))) for depths in lists))


def _scaled_widths(node: CfgNode, family: Family) -> list[int]:
    """The widths of the stem and of each chain."""
    widths, factor = node.WIDTHS or family.widths, node.WIDTH_MULTIPLIER
    equal = family.projects_by_width and any(a == b for a, b in zip(widths, widths[1:]))
    scaled = [width * factor for width in (node.STEM_CHANNELS or family.stem_channels, *widths)]
    if len(widths) != len(family.widths) or equal or any(w < 1 or w != int(w) for w in scaled):
        raise InputError(
            f"MODEL.CRNAS.WIDTHS: {list(widths)}: {family.name} takes {len(family.widths)} positive "
            f"widths; times WIDTH_MULTIPLIER {factor:g} they and STEM_CHANNELS have to be whole "
            "numbers, and neighbouring stages of a ResNet need different ones"
        )
    return [int(width) for width in scaled]


def space_of(cfg: CfgNode) -> Space:
    """The space of the supernet that MODEL.CRNAS.SUPERNET names; an InputError if it is none."""
    space, kind = stage_space_of(cfg), cfg.MODEL.CRNAS.SUPERNET
    if kind == "dilation":
        return DilationSpace(space.family, architecture_of(cfg).stage_code)
    return JointSpace(space.family, space.depths) if kind == "joint" else space


def build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec, out_features: Sequence[str]) -> Backbone:
    """The fixed network or supernet of MODEL.CRNAS, without a neck; an InputError if it has none."""
    backbone = _build_bottom_up(cfg, input_shape, out_features)
    if cfg.MODEL.CRNAS.RECOMPUTE:
        recompute_blocks(backbone)
    return backbone


def _build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec, out_features: Sequence[str]) -> Backbone:
    node, family = cfg.MODEL.CRNAS, family_of(cfg)
    shape: dict[str, Any] = {
        "in_channels": input_shape.channels,
        "widths": _scaled_widths(node, family),
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
    shape["shared"] = node.SHARED
    space = space_of(cfg)
    if isinstance(space, DilationSpace):
        return DilationSupernet(family, space, **shape)
    if not isinstance(space, JointSpace):
        return StageSupernet(family, space, **shape)
    if not node.SHARED:
        raise InputError("MODEL.CRNAS.SHARED: False: the joint supernet takes True only")
    return JointSupernet(family, space, **shape)


@BACKBONE_REGISTRY.register()
def build_crnas_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The bare backbone, with the stages of MODEL.CRNAS.OUT_FEATURES."""
    return build_bottom_up(cfg, input_shape, cfg.MODEL.CRNAS.OUT_FEATURES)


def _neck_options(cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
    """What FPN and NASFPN have in common."""
    node = cfg.MODEL.FPN
    return {
        "bottom_up": build_bottom_up(cfg, input_shape, node.IN_FEATURES),
        "in_features": list(node.IN_FEATURES),
        "out_channels": node.OUT_CHANNELS,
        "norm": resolve_norm(node.NORM, cfg.MODEL.DEVICE),
    }


@BACKBONE_REGISTRY.register()
def build_crnas_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """With FPN for Faster, Mask and Cascade R-CNN: P2 .. P6 from res2 .. res5; P6 by pooling."""
    options = _neck_options(cfg, input_shape)
    top_block = LastLevelMaxPool()
    return load_below_neck(FPN(**options, top_block=top_block, fuse_type=cfg.MODEL.FPN.FUSE_TYPE))


@BACKBONE_REGISTRY.register()
def build_crnas_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """With FPN for RetinaNet: P3 .. P7 from res3 .. res5; P6 and P7 by convolutions over res5."""
    options = _neck_options(cfg, input_shape)
    channels = options["bottom_up"].output_shape()["res5"].channels
    top_block = LastLevelP6P7(channels, options["out_channels"])
    return load_below_neck(FPN(**options, top_block=top_block, fuse_type=cfg.MODEL.FPN.FUSE_TYPE))


@BACKBONE_REGISTRY.register()
def build_crnas_nas_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NASFPN:
    """With NAS-FPN (paper, Table 9): P3 .. P7 from res3 .. res5."""
    options = _neck_options(cfg, input_shape)
    return load_below_neck(NASFPN(**options, num_cells=cfg.MODEL.NAS_FPN.NUM_CELLS))
