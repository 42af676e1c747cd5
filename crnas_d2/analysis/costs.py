"""Costs of an architecture: multiply-accumulates and parameters of its backbone.

Counted by fvcore on a built network with two blocks a stage, then put together: every block of a
stage after the first costs the same. Multiply-accumulates are those of convolutions; a network whose
strides divide the input has counts that grow exactly with the number of input pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from crnas_d2.architecture import FAMILY_STAGES, Architecture
from crnas_d2.modeling.build import build_crnas_bottom_up
from crnas_d2.search.candidates import Costs
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

# The paper counts at 800 x 1088, the median size of a COCO input (Table 1): long over short side.
ASPECT = 1088 / 800
STRIDE = 32


def input_size(cfg: CfgNode) -> tuple[int, int]:
    """(height, width) in pixels, multiples of 32, at which costs are counted.

    A picture of the paper's proportions, resized as INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST say:
    800 x 1088 for 800 and 1333, as in the paper.
    """
    short = cfg.INPUT.MIN_SIZE_TEST or 800  # 0: images are not resized
    shrink = min(1.0, cfg.INPUT.MAX_SIZE_TEST / (short * ASPECT))
    sides = (short * shrink, short * ASPECT * shrink)
    height, width = (STRIDE * math.ceil(round(side) / STRIDE) for side in sides)
    return height, width


class _AsTuple(nn.Module):
    """fvcore traces the network; a dict of outputs cannot be traced."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.backbone(x).values())


def count_convolutions(module: nn.Module, x: torch.Tensor) -> Mapping[str, int]:
    """Multiply-accumulates of the convolutions inside each submodule, by its name."""
    counter = FlopCountAnalysis(module.eval(), x)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counter.tracer_warnings("none")
    return {name: ops["conv"] for name, ops in counter.by_module_and_operator().items()}


def backbone_costs(cfg: CfgNode) -> Costs:
    """A function from an architecture of the config's family and widths to its costs.

    It gives ``blocks``, ``macs`` (multiply-accumulates at ``input_size``) and ``params``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.CRNAS
    node.SUPERNET = ""
    node.STAGE_CODE = [2] * FAMILY_STAGES[node.FAMILY]
    node.DILATION_CODE = []
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # detectron2 turns weights of frozen norms into buffers
    channels = len(cfg.MODEL.PIXEL_MEAN)
    backbone = build_crnas_bottom_up(
        cfg, ShapeSpec(channels=channels), ("res2", "res3", "res4", "res5")
    )
    side = 2 * STRIDE
    counts = count_convolutions(_AsTuple(backbone), torch.zeros(1, channels, side, side))
    height, width = input_size(cfg)
    pixels = (height // STRIDE) * (width // STRIDE) / 4  # over those of the counted input

    def macs(name: str) -> int:
        return int(counts[f"backbone.{name}"] * pixels)

    def params(name: str) -> int:
        return sum(p.numel() for p in backbone.get_submodule(name).parameters())

    def costs(architecture: Architecture) -> Mapping[str, float]:
        found = {"blocks": architecture.blocks}
        for cost, of in (("macs", macs), ("params", params)):
            found[cost] = of("stem") + sum(
                of(f"res{i + 2}.0") + (depth - 1) * of(f"res{i + 2}.1")
                for i, depth in enumerate(architecture.stage_code)
            )
        return found

    return costs
