"""The builders in detectron2's BACKBONE_REGISTRY, and the only readers of cfg in this package.

    build_crnas_backbone                the bare backbone
    build_crnas_fpn_backbone            with FPN and P6 by pooling (Faster, Mask, Cascade R-CNN)
    build_crnas_retinanet_fpn_backbone  with FPN and P6, P7 by convolution (RetinaNet)

Each gives the fixed network of MODEL.CRNAS.STAGE_CODE and DILATION_CODE, or with MODEL.CRNAS.SUPERNET
the stage or dilation supernet. All keys are explained in crnas_d2/config.py.
"""

from __future__ import annotations

from crnas_d2.architecture import FAMILY_STAGES, Architecture
from crnas_d2.errors import InputError
from crnas_d2.modeling.family import Family, build_network
from crnas_d2.modeling.norm import resolve_norm
from crnas_d2.modeling.resnet import RESNET, RESNET_BASIC
from crnas_d2.modeling.supernet import DilationSupernet, StageSupernet
from crnas_d2.space import DilationSpace, StageSpace
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7

FAMILIES: dict[str, Family] = {family.name: family for family in (RESNET_BASIC, RESNET)}
SUPERNETS = ("", "stage", "dilation")


def family_of(cfg: CfgNode) -> Family:
    """The family that MODEL.CRNAS.FAMILY names.

    Raises:
        InputError: no such family.
    """
    name = cfg.MODEL.CRNAS.FAMILY
    if name not in FAMILIES:
        raise InputError(f"MODEL.CRNAS.FAMILY: {name!r}: allowed are {', '.join(FAMILIES)}")
    return FAMILIES[name]


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


def _are_depths(depths: object) -> bool:
    return (
        isinstance(depths, (list, tuple))
        and len(depths) > 0
        and all(type(n) is int and n > 0 for n in depths)
        and len(set(depths)) == len(depths)
    )


def stage_space_of(cfg: CfgNode) -> StageSpace:
    """The stage space, without branches that no eligible code uses if SEARCH.ONLY_ELIGIBLE says so.

    Raises:
        InputError: MODEL.CRNAS.STAGE_SPACE is not a list of positive depths for each stage, or no
            code meets a budget.
    """
    family = family_of(cfg).name
    lists = cfg.MODEL.CRNAS.STAGE_SPACE
    if len(lists) != FAMILY_STAGES[family] or not all(map(_are_depths, lists)):
        raise InputError(
            f"MODEL.CRNAS.STAGE_SPACE: {list(lists)}: {family} takes {FAMILY_STAGES[family]} "
            "lists of different positive depths"
        )
    space = StageSpace(family, tuple(tuple(sorted(depths)) for depths in lists))
    return space.only_eligible(cfg.SEARCH.BUDGETS) if cfg.SEARCH.ONLY_ELIGIBLE else space


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
    if len(node.WIDTHS) != FAMILY_STAGES[family.name] or min(node.WIDTHS) < 1:
        raise InputError(
            f"MODEL.CRNAS.WIDTHS: {list(node.WIDTHS)}: a positive one for each of "
            f"{FAMILY_STAGES[family.name]} stages"
        )
    if any(a == b for a, b in zip(node.WIDTHS, node.WIDTHS[1:])):
        raise InputError(
            f"MODEL.CRNAS.WIDTHS: {list(node.WIDTHS)}: neighbouring stages need different widths, "
            "since a ResNet block projects its shortcut only where the width changes"
        )
    shared = {
        "in_channels": input_shape.channels,
        "stem_channels": node.STEM_CHANNELS,
        "widths": node.WIDTHS,
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


def _with_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: object) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=list(cfg.MODEL.FPN.IN_FEATURES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


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
