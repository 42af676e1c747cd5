"""The builders in detectron2's BACKBONE_REGISTRY; they and the classifier alone read cfg here.

    build_crnas_backbone                the bare backbone
    build_crnas_fpn_backbone            with FPN and P6 by pooling (Faster, Mask, Cascade R-CNN)
    build_crnas_retinanet_fpn_backbone  with FPN and P6, P7 by convolution (RetinaNet)
    build_crnas_nas_fpn_backbone        with NAS-FPN, P3 to P7 (paper, Table 9)

Each builds the fixed network of MODEL.CRNAS.STAGE_CODE and DILATION_CODE, or the supernet that
MODEL.CRNAS.SUPERNET names. crnas_d2/config.py explains the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from crnas_d2.architecture import FAMILY_STAGES, FIXED_ENTRIES, Architecture
from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.family import Family, Norm, build_network
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
    """The family that MODEL.CRNAS.FAMILY names.

    Raises:
        InputError: no such family.
    """
    name = cfg.MODEL.CRNAS.FAMILY
    if name not in FAMILIES:
        raise InputError(f"MODEL.CRNAS.FAMILY: {name!r}: allowed are {', '.join(FAMILIES)}")
    return FAMILIES[name](cfg.MODEL.CRNAS)


def architecture_of(cfg: CfgNode) -> Architecture:
    """The architecture of the fixed network; no dilation code means rate 1 in every block.

    Raises:
        InputError: not a code of the family; the message names the key.
    """
    family = family_of(cfg).name
    node = cfg.MODEL.CRNAS
    key = "STAGE_CODE"
    try:
        found = Architecture.undilated(family, node.STAGE_CODE)
        if node.DILATION_CODE:
            key = "DILATION_CODE"
            found = Architecture(family, found.stage_code, tuple(node.DILATION_CODE))
    except ValueError as error:
        raise InputError(f"MODEL.CRNAS.{key}: {error}") from error
    if not found.is_complete:
        raise InputError(
            f"MODEL.CRNAS.DILATION_CODE: {list(node.DILATION_CODE)} has "
            f"{len(found.dilation_code)} digits; stage code {list(found.stage_code)} "
            f"takes {found.blocks}, or none at all"
        )
    return found


def input_convention(cfg: CfgNode) -> dict[str, Any]:
    """The input that weights of this config are made for; see modeling/checkpoint/weights.py."""
    return {
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": [float(value) for value in cfg.MODEL.PIXEL_MEAN],
        "pixel_std": [float(value) for value in cfg.MODEL.PIXEL_STD],
        "stride_in_1x1": bool(cfg.MODEL.CRNAS.STRIDE_IN_1X1),
    }


def _are_depths(depths: object) -> bool:
    return (
        isinstance(depths, (list, tuple))
        and len(depths) > 0
        and all(type(n) is int and n > 0 for n in depths)
        and len(set(depths)) == len(depths)
    )


def stage_space_of(cfg: CfgNode) -> StageSpace:
    """The stage space of MODEL.CRNAS.STAGE_SPACE, by default the paper's.

    Raises:
        InputError: it is not a list of positive depths for each stage.
    """
    family = family_of(cfg).name
    lists = cfg.MODEL.CRNAS.STAGE_SPACE or FAMILY_DEPTHS[family]
    if len(lists) != FAMILY_STAGES[family] or not all(map(_are_depths, lists)):
        raise InputError(
            f"MODEL.CRNAS.STAGE_SPACE: {list(lists)}: {family} takes {FAMILY_STAGES[family]} "
            "lists of different positive depths"
        )
    for entry in FIXED_ENTRIES.get(family, ()):
        if list(lists[entry]) != [1]:
            raise InputError(
                f"MODEL.CRNAS.STAGE_SPACE: {list(lists)}: entry {entry + 1} of {family} is fixed; "
                "allowed there is [1]"
            )
    return StageSpace(family, tuple(tuple(sorted(depths)) for depths in lists))


def _scaled_widths(node: CfgNode, family: Family) -> list[int]:
    """Channels after the stem, then the width of each chain."""
    widths = node.WIDTHS or family.widths
    if len(widths) != len(family.widths) or min(widths) < 1:
        raise InputError(
            f"MODEL.CRNAS.WIDTHS: {list(widths)}: {family.name} takes {len(family.widths)} positive "
            "widths, or none at all"
        )
    if family.projects_by_width and any(a == b for a, b in zip(widths, widths[1:])):
        raise InputError(
            f"MODEL.CRNAS.WIDTHS: {list(widths)}: neighbouring stages need different widths, "
            "since a ResNet block projects its shortcut only where the width changes"
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
    """The fixed network or supernet of MODEL.CRNAS, without a neck.

    Raises:
        InputError: a value that cannot be built.
    """
    node = cfg.MODEL.CRNAS
    family = family_of(cfg)
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
    if node.SUPERNET == "stage":
        return StageSupernet(family, stage_space_of(cfg), nested=node.NESTED_DEPTHS, **shape)
    return DilationSupernet(
        family, DilationSpace(family.name, architecture_of(cfg).stage_code), **shape
    )


@BACKBONE_REGISTRY.register()
def build_crnas_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The bare backbone, with the stages of MODEL.CRNAS.OUT_FEATURES."""
    return build_crnas_bottom_up(cfg, input_shape, tuple(cfg.MODEL.CRNAS.OUT_FEATURES))


def _neck_norm(cfg: CfgNode) -> Norm:
    norm = cfg.MODEL.FPN.NORM
    return resolve_norm(norm, cfg.MODEL.DEVICE) if norm == "auto" else norm


def _fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    fpn = FPN(
        bottom_up=bottom_up,
        in_features=list(cfg.MODEL.FPN.IN_FEATURES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=_neck_norm(cfg),
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    load_below_neck(fpn)
    return fpn


@BACKBONE_REGISTRY.register()
def build_crnas_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """P2 .. P6 from res2 .. res5; P6 by pooling."""
    bottom_up = build_crnas_bottom_up(cfg, input_shape, tuple(cfg.MODEL.FPN.IN_FEATURES))
    return _fpn(cfg, bottom_up, LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_crnas_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """P3 .. P7 from res3 .. res5; P6 and P7 by convolutions over res5."""
    bottom_up = build_crnas_bottom_up(cfg, input_shape, tuple(cfg.MODEL.FPN.IN_FEATURES))
    channels = bottom_up.output_shape()["res5"].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_crnas_nas_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NASFPN:
    """P3 .. P7 from res3 .. res5 through MODEL.NAS_FPN.NUM_CELLS cells."""
    nas_fpn = NASFPN(
        bottom_up=build_crnas_bottom_up(cfg, input_shape, tuple(cfg.MODEL.FPN.IN_FEATURES)),
        in_features=list(cfg.MODEL.FPN.IN_FEATURES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        num_cells=cfg.MODEL.NAS_FPN.NUM_CELLS,
        norm=_neck_norm(cfg),
    )
    load_below_neck(nas_fpn)
    return nas_fpn
