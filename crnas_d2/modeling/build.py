"""The builders in detectron2's BACKBONE_REGISTRY, and the only readers of cfg in this package.

    build_crnas_backbone                the bare backbone
    build_crnas_fpn_backbone            with FPN and P6 by pooling (Faster, Mask, Cascade R-CNN)
    build_crnas_retinanet_fpn_backbone  with FPN and P6, P7 by convolution (RetinaNet)
    build_crnas_nas_fpn_backbone        with NAS-FPN, P3 to P7 (paper, Table 9)

Each gives the fixed network of MODEL.CRNAS.STAGE_CODE and DILATION_CODE, or with MODEL.CRNAS.SUPERNET
the stage or dilation supernet. All keys are explained in crnas_d2/config.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
        InputError: a code that is none; the message names the key.
    """
    family = family_of(cfg).name
    node = cfg.MODEL.CRNAS
    try:
        plain = Architecture.undilated(family, node.STAGE_CODE)
    except ValueError as error:
        raise InputError(f"MODEL.CRNAS.STAGE_CODE: {error}") from error
    if not node.DILATION_CODE:
        return plain
    try:
        found = Architecture(family, plain.stage_code, tuple(node.DILATION_CODE))
    except ValueError as error:
        raise InputError(f"MODEL.CRNAS.DILATION_CODE: {error}") from error
    if not found.is_complete:
        raise InputError(
            f"MODEL.CRNAS.DILATION_CODE: {list(node.DILATION_CODE)} has "
            f"{len(node.DILATION_CODE)} digits; stage code {list(plain.stage_code)} "
            f"takes {plain.blocks}, or none at all"
        )
    return found


def input_convention(cfg: CfgNode) -> dict[str, Any]:
    """What weights of this config's network expect of their input (crnas_d2/modeling/checkpoint/weights.py)."""
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
    """Channels after the stem, then the width of each entry."""
    widths = node.WIDTHS or family.widths
    if len(widths) != len(family.widths) or min(widths) < 1:
        raise InputError(
            f"MODEL.CRNAS.WIDTHS: {list(widths)}: a positive one for each of {len(family.widths)} "
            f"stages of {family.name}, or none at all"
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
            f"MODEL.CRNAS.WIDTH_MULTIPLIER: {node.WIDTH_MULTIPLIER:g}: makes {scaled} of the widths "
            f"{full}; whole numbers of at least 1 are needed"
        )
    return [int(width) for width in scaled]


def build_crnas_bottom_up(
    cfg: CfgNode, input_shape: ShapeSpec, out_features: tuple[str, ...]
) -> Backbone:
    """Fixed network or supernet, by MODEL.CRNAS.SUPERNET.

    Raises:
        InputError: a value of MODEL.CRNAS that cannot be built.
    """
    node = cfg.MODEL.CRNAS
    family = family_of(cfg)
    if node.SUPERNET not in SUPERNETS:
        raise InputError(f"MODEL.CRNAS.SUPERNET: {node.SUPERNET!r}: allowed are {SUPERNETS}")
    stem_channels, *widths = _scaled_widths(node, family)
    shared = {
        "in_channels": input_shape.channels,
        "stem_channels": stem_channels,
        "widths": widths,
        "norm": resolve_norm(node.NORM, cfg.MODEL.DEVICE),
        "out_features": out_features,
    }
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if not node.SUPERNET:
        return build_network(family, architecture_of(cfg), freeze_at=freeze_at, **shared)
    if freeze_at != 0:
        raise InputError(f"MODEL.BACKBONE.FREEZE_AT: {freeze_at}: a supernet takes 0 only")
    if node.SUPERNET == "stage":
        return StageSupernet(family, stage_space_of(cfg), nested=node.NESTED_DEPTHS, **shared)
    space = DilationSpace(family.name, architecture_of(cfg).stage_code)
    return DilationSupernet(family, space, **shared)


@BACKBONE_REGISTRY.register()
def build_crnas_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The bare backbone, with the stages of MODEL.CRNAS.OUT_FEATURES."""
    return build_crnas_bottom_up(cfg, input_shape, tuple(cfg.MODEL.CRNAS.OUT_FEATURES))


def _neck_norm(cfg: CfgNode) -> Norm:
    """MODEL.FPN.NORM; "auto" as in the backbone."""
    norm = cfg.MODEL.FPN.NORM
    return resolve_norm(norm, cfg.MODEL.DEVICE) if norm == "auto" else norm


def _with_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: object) -> FPN:
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
    return _with_fpn(cfg, bottom_up, LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_crnas_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """P3 .. P7 from res3 .. res5; P6 and P7 by convolutions over res5."""
    bottom_up = build_crnas_bottom_up(cfg, input_shape, tuple(cfg.MODEL.FPN.IN_FEATURES))
    channels = bottom_up.output_shape()["res5"].channels
    top_block = LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return _with_fpn(cfg, bottom_up, top_block)


@BACKBONE_REGISTRY.register()
def build_crnas_nas_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NASFPN:
    """P3 .. P7 from res3 .. res5 through MODEL.NAS_FPN.NUM_CELLS cells."""
    bottom_up = build_crnas_bottom_up(cfg, input_shape, tuple(cfg.MODEL.FPN.IN_FEATURES))
    nas_fpn = NASFPN(
        bottom_up=bottom_up,
        in_features=list(cfg.MODEL.FPN.IN_FEATURES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        num_cells=cfg.MODEL.NAS_FPN.NUM_CELLS,
        norm=_neck_norm(cfg),
    )
    load_below_neck(nas_fpn)
    return nas_fpn
