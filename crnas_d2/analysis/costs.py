"""Costs of an architecture: multiply-accumulates and parameters of its backbone.

Every block of a chain from the second on costs the same, whatever its rate: one network is counted.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping

import torch

from crnas_d2.analysis.flops import Cost, count_modules
from crnas_d2.architecture import FAMILY_STAGES, FIXED_ENTRIES, Architecture
from crnas_d2.budget import Costs
from crnas_d2.modeling.build import build_bottom_up, family_of
from crnas_d2.space import block_costs
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

# The paper counts at 800 x 1088, the median size of a COCO input (Table 1): long over short side.
ASPECT = 1088 / 800
STRIDE = 32  # of the backbone's last stage


def input_size(cfg: CfgNode) -> tuple[int, int]:
    """(height, width) at which costs are counted, in pixels, multiples of 32.

    It is an image of the paper's proportions, resized as INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST say.
    """
    short = cfg.INPUT.MIN_SIZE_TEST or 800  # 0: images are not resized
    shrink = min(1.0, cfg.INPUT.MAX_SIZE_TEST / (short * ASPECT))
    height, width = (STRIDE * math.ceil(round(short * n * shrink) / STRIDE) for n in (1, ASPECT))
    return height, width


def module_costs(cfg: CfgNode) -> dict[str, Cost]:
    """``macs``, ``flops`` and ``params`` of the fixed backbone's modules, by name, at input_size."""
    channels, family = len(cfg.MODEL.PIXEL_MEAN), family_of(cfg)
    with torch.device("meta"):
        backbone = build_bottom_up(cfg, ShapeSpec(channels=channels), tuple(family.stages))
    return count_modules(backbone.to_empty(device="cpu").eval(), (channels, *input_size(cfg)))


def backbone_costs(cfg: CfgNode) -> Costs:
    """A function from architectures to ``blocks`` (weighted), ``macs`` (at input_size), ``params``."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.CRNAS
    fixed = FIXED_ENTRIES.get(node.FAMILY, ())
    node.SUPERNET, node.DILATION_CODE = "", []
    node.STAGE_CODE = [1 if i in fixed else 2 for i in range(FAMILY_STAGES[node.FAMILY])]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # detectron2 turns weights of frozen norms into buffers
    family, counts = family_of(cfg), module_costs(cfg)
    last = {}  # the last block of each chain, by the chain's position in the stage code
    for stage, entries in family.stages.items():
        ends = itertools.accumulate(node.STAGE_CODE[entry.position] for entry in entries)
        last.update({entry.position: f"{stage}.{end - 1}" for entry, end in zip(entries, ends)})

    def costs(architecture: Architecture) -> Mapping[str, float]:
        found = Counter(counts[""])
        for i, block in last.items():
            more = architecture.stage_code[i] - node.STAGE_CODE[i]
            found.update({cost: more * n for cost, n in counts[block].items()})
        return {**block_costs(architecture), "macs": found["macs"], "params": found["params"]}

    return costs
