"""Costs of an architecture: multiply-accumulates and parameters of its backbone.

Counted by fvcore on a built network with two blocks in a chain, then put together: every block of a
chain after the first costs the same. Multiply-accumulates are those of convolutions; a network whose
strides divide the input has counts that grow exactly with the number of input pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from crnas_d2.architecture import FAMILY_STAGES, FIXED_ENTRIES, Architecture
from crnas_d2.budget import Costs
from crnas_d2.modeling.build import build_crnas_bottom_up, family_of
from crnas_d2.space import block_cost
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

    It gives ``blocks`` (weighted, as budgets are), ``macs`` (multiply-accumulates at ``input_size``)
    and ``params``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.CRNAS
    fixed = FIXED_ENTRIES.get(node.FAMILY, ())
    node.SUPERNET = ""
    node.STAGE_CODE = [1 if i in fixed else 2 for i in range(FAMILY_STAGES[node.FAMILY])]
    node.DILATION_CODE = []
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # detectron2 turns weights of frozen norms into buffers
    channels = len(cfg.MODEL.PIXEL_MEAN)
    family = family_of(cfg)
    backbone = build_crnas_bottom_up(cfg, ShapeSpec(channels=channels), tuple(family.stages))
    side = 2 * STRIDE
    counts = count_convolutions(_AsTuple(backbone), torch.zeros(1, channels, side, side))
    height, width = input_size(cfg)
    pixels = (height // STRIDE) * (width // STRIDE) / 4  # over those of the counted input

    def counted(name: str) -> dict[str, int]:
        params = sum(p.numel() for p in backbone.get_submodule(name).parameters())
        return {"macs": int(counts[f"backbone.{name}"] * pixels), "params": params}

    stem = counted("stem")
    chains = []  # (position in the stage code, what its first block costs, and each later one)
    for stage, entries in family.stages.items():
        number = 0
        for entry in entries:
            last = number + node.STAGE_CODE[entry.position] - 1
            chains.append((entry.position, counted(f"{stage}.{number}"), counted(f"{stage}.{last}")))
            number = last + 1

    def costs(architecture: Architecture) -> Mapping[str, float]:
        found = {"blocks": block_cost(architecture)}
        for cost in ("macs", "params"):
            found[cost] = stem[cost] + sum(
                first[cost] + (architecture.stage_code[position] - 1) * later[cost]
                for position, first, later in chains
            )
        return found

    return costs
