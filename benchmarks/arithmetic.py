#!/usr/bin/env python
"""Scoring with SEARCH.EVAL.AMP and CHANNELS_LAST against scoring without, on the device at hand.

    python benchmarks/arithmetic.py [--weights supernet.pth] [--json PATH] [KEY VALUE ...]

A group of stage candidates is scored with each combination in turn, after a first time that warms up.
seconds: the fastest of --rounds; first: that first time. ratio: the fastest combination over plain
float32 (on a GPU torch takes TF32 for its convolutions, unless it is told otherwise). off: how much a
score differs from float32's, at most, in AP; without --weights of a trained supernet it says nothing.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from typing import Any

import torch
from common import config_of, parser_of, scores_of, show, split_of, timed
from torch import nn

from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.scorer import Split, build_scorer
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model

KEYS = ("SEARCH.EVAL.AMP", "SEARCH.EVAL.CHANNELS_LAST")


def name_of(values: tuple[Any, ...]) -> str:
    named = zip(values, (values[0], "channels_last"))
    return " ".join(name for value, name in named if value) or "float32"


def measure(
    cfg: CfgNode, detector: nn.Module, split: Split, candidates: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Of each combination, float32 first: seconds, seconds of the first time, and off."""
    precisions = ("", "bf16") if cfg.MODEL.DEVICE == "cpu" else ("", "bf16", "fp16")
    space = find_supernet(detector).space
    group = [space.sample(0, i) for i in range(candidates)]
    scorers, found, exact = {}, {}, []
    for values in itertools.product(precisions, (False, True)):
        run = cfg.clone()
        run.merge_from_list([item for pair in zip(KEYS, values) for item in pair])
        # A copy, since the memory format stays with the layers.
        run.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/{name_of(values)}"
        scorers[name_of(values)] = build_scorer(run, split, copy.deepcopy(detector))
    for name, scorer in scorers.items():
        first, scores = timed(scores_of, scorer, group)
        exact = exact or scores
        off = max(abs(score - expected) for score, expected in zip(scores, exact))
        found[name] = {"seconds": first, "first": first, "off": off}
        print(f"{name}: {first:.1f} s the first time")
    for _ in range(rounds):
        for name, scorer in scorers.items():
            seconds, _ = timed(scores_of, scorer, group)
            found[name]["seconds"] = min(found[name]["seconds"], seconds)
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=16, help="of archval, and for recalibration")
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", help="of the stage supernet; else random")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = ["SEARCH.EVAL.RECALIBRATION_IMAGES", str(args.images)]
        cfg = config_of(args, images, ["OUTPUT_DIR", folder])
        torch.manual_seed(0)
        detector = build_model(cfg)
        if args.weights:
            DetectionCheckpointer(detector).load(args.weights)
        found = measure(cfg, detector, split_of(cfg, args.images), args.candidates, args.rounds)
    best = min(found, key=lambda name: found[name]["seconds"])
    baseline = found["float32"]["seconds"]
    for name, values in found.items():
        print(name, {key: round(value, 3) for key, value in values.items()})
    setting = f"{args.config_file}, {args.candidates} candidates, {args.images} images, "
    setting += f"{torch.get_num_threads()} threads, {cfg.MODEL.DEVICE}"
    show(args.json, baseline, found[best]["seconds"], setting, best=best, all=found)


if __name__ == "__main__":
    main()
