#!/usr/bin/env python
"""Print what networks compute, beside the paper's figures: backbone, neck and heads.

    python tools/flops.py --config-file configs/COCO-Detection/faster_rcnn_{R_50,CR_R_50}_FPN_1x.yaml

Multiply-accumulates (MACs), FLOPs as the paper counts them, and parameters, for one image: 800 x 1088
where INPUT.MIN_SIZE_TEST is 800, a crop in a classifier, and padded as the network pads it (NAS-FPN:
to 896 x 1152). No data and no weights are read. --blocks adds the stages and blocks of the backbone,
--json prints all of it for programs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import torch
from tabulate import tabulate

from crnas_d2.analysis import flops
from crnas_d2.analysis.costs import input_size
from crnas_d2.analysis.flops import Cost
from crnas_d2.config import read_config
from crnas_d2.engine.setup import check_network
from crnas_d2.errors import InputError, run_tool
from crnas_d2.modeling.build import architecture_of
from detectron2.config import CfgNode
from detectron2.modeling import build_model

META_ARCHITECTURES = ("GeneralizedRCNN", "RetinaNet", "ImageClassifier")
ROI_HEADS = ("StandardROIHeads", "CascadeROIHeads")
# What the paper's figures depend on besides the codes and MODEL.MASK_ON (Tables 1, 3 and 7).
IN_THE_PAPER = {
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "BACKBONE": {"NAME": "build_crnas_fpn_backbone"},
        "CRNAS": dict(STEM_CHANNELS=0, WIDTHS=[], WIDTH_MULTIPLIER=1.0, STRIDE_IN_1X1=False),
        "FPN": dict(IN_FEATURES=["res2", "res3", "res4", "res5"], OUT_CHANNELS=256, NORM=""),
        "RPN": dict(IN_FEATURES=["p2", "p3", "p4", "p5", "p6"]),
        "ROI_HEADS": dict(NAME="StandardROIHeads", NUM_CLASSES=80),
        "ROI_BOX_HEAD": dict(
            NUM_CONV=0, NUM_FC=2, FC_DIM=1024, POOLER_RESOLUTION=7, CLS_AGNOSTIC_BBOX_REG=False
        ),
        "ROI_MASK_HEAD": dict(NUM_CONV=4, POOLER_RESOLUTION=14),
    },
    "INPUT": dict(MIN_SIZE_TEST=800, MAX_SIZE_TEST=1333),
}
# GFLOPs as published, in Faster and in Mask R-CNN (with FPN, on COCO, at 800 x 1088): Tables 1 and 7,
# and Table 3. A dilation code of zeros alone is left out.
PAPER_GFLOPS = {
    "mobilenetv2/1-1-2-3-4-3-3-1-1-1": (121.1, 189.5),
    "mobilenetv2/1-1-2-2-3-4-4-1-1-1/0-1-01-02-011-0011-0110-2-0-0": (121.4, 189.8),
    "resnet_basic/2-2-2-2": (147.7, None),
    "resnet_basic/1-1-2-4/0-0-10-1021": (147.6, None),
    "resnet/3-4-6-3": (192.5, 261.2),
    "resnet/1-3-5-7/0-010-00120-0102112": (192.7, 261.0),
    "resnet/3-4-23-3": (257.3, 325.9),
    "resnet/2-3-17-11/00-000-01010002000101010-11001012011": (257.5, 325.8),
}


def outline(cfg: CfgNode) -> torch.nn.Module:
    """The whole network, with shapes and no values; InputError if it cannot be counted."""
    supernet = cfg.MODEL.CRNAS.SUPERNET
    if supernet:
        raise InputError(f"MODEL.CRNAS.SUPERNET: {supernet!r}: allowed is a fixed network, ''")
    kind, heads = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME
    if kind not in META_ARCHITECTURES:
        raise InputError(f"MODEL.META_ARCHITECTURE: {kind!r}: allowed are {META_ARCHITECTURES}")
    if kind == "GeneralizedRCNN" and heads not in ROI_HEADS:
        raise InputError(f"MODEL.ROI_HEADS.NAME: {heads!r}: allowed are {ROI_HEADS}")
    check_network(cfg)
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg).eval().to_empty(device="cpu")


def paper_gflops(cfg: CfgNode) -> float | None:
    """What the paper prints for this network in this detector, None where it prints nothing."""
    same = cfg.clone()
    same.merge_from_other_cfg(CfgNode(IN_THE_PAPER))
    architecture = architecture_of(cfg)
    key = str(architecture) if any(architecture.dilation_code) else str(architecture).rsplit("/", 1)[0]
    return PAPER_GFLOPS.get(key, (None, None))[cfg.MODEL.MASK_ON] if same == cfg else None


def numbers(costs: Mapping[str, Cost]) -> dict[str, dict[str, float]]:
    """In units of 1e9, parameters in 1e6."""
    units = {"macs_g": ("macs", 1e9), "flops_g": ("flops", 1e9), "params_m": ("params", 1e6)}
    return {
        name: {key: cost[counted] / unit for key, (counted, unit) in units.items()}
        for name, cost in costs.items()
    }


def report(config_file: str) -> dict[str, Any]:
    """What --json prints of one config; InputError if its network cannot be counted."""
    cfg = read_config(config_file, [])
    model = outline(cfg)
    classifies = cfg.MODEL.META_ARCHITECTURE == "ImageClassifier"
    size = (cfg.INPUT.CLASSIFIER_CROP,) * 2 if classifies else input_size(cfg)
    costs = flops.count(model, size)
    parts, blocks = flops.parts(costs), flops.blocks(costs)
    stages = {name: cost for name, cost in blocks.items() if "." not in name}
    return {
        "config": config_file,
        "size": list(size),
        **numbers({"all": sum(parts.values(), Cost())})["all"],
        "paper_flops_g": paper_gflops(cfg),
        "parts": numbers(parts),
        "stages": numbers(stages),
        "blocks": numbers({n: cost for n, cost in blocks.items() if f"{n}.0" not in blocks}),
    }


def table(reports: list[dict[str, Any]]) -> str:
    """A line a network; the parts in FLOPs."""
    rows = []
    for found in reports:
        paper = found["paper_flops_g"]
        rows.append(
            {
                "config": found["config"],
                "size": "x".join(map(str, found["size"])),
                "GMACs": found["macs_g"],
                "GFLOPs": found["flops_g"],
                "paper": paper,
                "difference": f"{100 * (found['flops_g'] / paper - 1):+.2f} %" if paper else "",
                "params (M)": found["params_m"],
                **{f"{name}, GFLOPs": part["flops_g"] for name, part in found["parts"].items()},
            }
        )
    return tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f")


def block_table(found: dict[str, Any]) -> str:
    """A line a stage, with the blocks of each stage below it."""
    rows = []
    for stage, cost in found["stages"].items():
        blocks = {name: c for name, c in found["blocks"].items() if name.startswith(f"{stage}.")}
        rows += [{"backbone": name, **c} for name, c in {stage: cost, **blocks}.items()]
    return tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4f")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--blocks", action="store_true", help="stages and blocks of the backbones, too")
    parser.add_argument("--json", action="store_true", help="print a list of objects, with all of it")
    args = parser.parse_args()
    reports = [report(config_file) for config_file in args.config_file]
    if args.json:
        print(json.dumps(reports, indent=1))
        return
    print(table(reports))
    for found in reports if args.blocks else ():
        print(f"\n{found['config']}\n{block_table(found)}")


if __name__ == "__main__":
    run_tool(main)
