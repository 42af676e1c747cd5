#!/usr/bin/env python
"""Our search against the plain loop: one candidate after another through detectron2's test loop.

    python benchmarks/search.py --step stage [--images 16] [--weights supernet.pth] [--json PATH]

The plain loop recomputes a candidate's BatchNorm statistics, sets the path, builds
build_detection_test_loader and runs inference_on_dataset with COCOEvaluator. Both score the same
candidates with the same weights on the same images. ratio_pinned: threads, batch size (1, which is
the stock loader's), proposals and recalibration are equal, and so have the scores to be, to 1e-9 (on
a GPU to 0.1 AP).
ratio: both with the number of threads that suits them better, ours with its own batch size.
macs: multiply-accumulates of the backbone's convolutions, ours over the plain loop's.
Times are wall seconds, so nothing else should run.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import config_of, parser_of, show, split_of, timed
from torch import nn

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.scorer import build_scorer
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import GROUP_SIZE, Race
from crnas_d2.search.stage import stage_search
from crnas_d2.space import StageSpace
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset

GPU_TOLERANCE = 0.1  # AP; as tests/test_gpu.py allows


class AlongPaths(nn.Module):
    """A detector that takes the path of the batch that an image belongs to, as a candidate does."""

    def __init__(self, scorer: ArchvalScorer, architecture: Architecture) -> None:
        super().__init__()
        self._paths, self._architecture = scorer._detector, architecture
        self._number = {
            record["image_id"]: number for number, batch in scorer._archval.mine() for record in batch
        }

    def forward(self, inputs: list[dict[str, Any]]) -> Any:
        path = self._paths.path(self._architecture, self._number[inputs[0]["image_id"]])
        with self._paths.supernet.using_path(path):
            return self._paths.detector(inputs)


class ConvolutionMacs:
    """Counts the multiply-accumulates of a module's convolutions from now on."""

    def __init__(self, module: nn.Module) -> None:
        self.total = 0
        for conv in module.modules():
            if isinstance(conv, nn.Conv2d):
                conv.register_forward_hook(self._count)

    def _count(self, conv: nn.Module, _: object, output: torch.Tensor) -> None:
        self.total += output.numel() * conv.in_channels // conv.groups * math.prod(conv.kernel_size)


def plain_loop(
    cfg: CfgNode, scorer: ArchvalScorer, name: str, candidates: Sequence[Architecture]
) -> list[float]:
    scores, paths = [], scorer._detector
    for architecture in candidates:
        paths.norms.use(paths.statistics([architecture])[0])
        with contextlib.redirect_stdout(io.StringIO()):
            results = inference_on_dataset(
                AlongPaths(scorer, architecture).eval(),
                build_detection_test_loader(cfg, name),
                COCOEvaluator(name, output_dir=cfg.OUTPUT_DIR),
            )
        paths.norms.use({})
        scores.append(results["bbox"]["AP"])
    return scores


def our_search(cfg: CfgNode, scorer: ArchvalScorer, folder: Path) -> list[tuple[Architecture, float]]:
    """Every candidate in the order in which it was scored."""
    space, costs = scorer._detector.supernet.space, backbone_costs(cfg)
    journal, dropped = (Journal(folder / f"{name}.jsonl") for name in ("journal", "race"))
    compare = Race(space.phase, "benchmark", scorer, costs, journal, dropped, confidence=0)
    if isinstance(space, StageSpace):
        stage_search(space, cfg.SEARCH.BUDGETS[0], compare, costs)
    else:
        greedy_search(space, compare, cfg.SEARCH.DILATION.TOP_K)
    return [(Architecture.parse(r["architecture"]), r["score"]) for r in journal.records]


def measure(cfg: CfgNode, detector: nn.Module, folder: Path, images: int) -> dict[str, Any]:
    """The two ratios; the plain loop's candidates are those that our search scored."""
    split = split_of(cfg, images)
    stock, ours, counter = {}, {}, ConvolutionMacs(find_supernet(detector))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch_size in (1, cfg.SEARCH.EVAL.BATCH_SIZE):
            run = cfg.clone()
            run.SEARCH.EVAL.BATCH_SIZE = batch_size
            run.OUTPUT_DIR = str(folder / f"{threads} {batch_size}")
            scorer = build_scorer(run, split, detector)
            counter.total = 0
            ours[threads, batch_size], seen = timed(our_search, run, scorer, Path(run.OUTPUT_DIR))
            shared, counter.total = counter.total, 0
            print(f"ours, {threads} threads, batch {batch_size}: {ours[threads, batch_size]:.1f} s")
            if batch_size > 1:
                continue
            candidates = [architecture for architecture, _ in seen]
            stock[threads], scores = timed(plain_loop, run, scorer, split.archval, candidates)
            print(f"plain, {threads} threads, batch 1: {stock[threads]:.1f} s")
            macs = shared / counter.total
            worst = max(abs(score - plain) for (_, score), plain in zip(seen, scores))
            # On a GPU convolutions of groups and of single images may be other algorithms.
            limit = 1e-9 if cfg.MODEL.DEVICE == "cpu" else GPU_TOLERANCE
            if not any(scores):
                raise SystemExit("nothing is detected: more --train-steps")
            if worst > limit:
                raise SystemExit(f"scores differ by {worst}, the highest is {max(scores)}")
    best, plain = min(ours, key=ours.get), min(stock, key=stock.get)
    pinned = {threads: stock[threads] / ours[threads, 1] for threads in stock}
    return {
        "ratio": stock[plain] / ours[best],  # how many times as fast
        "baseline": stock[plain],
        "ours": ours[best],
        "ratio_pinned": min(pinned.values()),
        "ratio_pinned_by_threads": {str(threads): ratio for threads, ratio in pinned.items()},
        "macs": macs,
        "images_per_second": len(candidates) * images / ours[best],
        "candidates": len(candidates),
        "highest_score": max(scores),
        "setting": f"{plain} threads, batch 1 against {best[0]} threads, batch {best[1]}, "
        f"groups of {GROUP_SIZE}, {images} images, "
        f"{cfg.SEARCH.EVAL.RECALIBRATION_IMAGES} for recalibration, {cfg.MODEL.DEVICE}",
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--step", choices=("stage", "greedy"), default="stage")
    parser.add_argument("--images", type=int, default=16, help="of archval")
    parser.add_argument("--weights", help="of the supernet; else it is trained for --train-steps")
    parser.add_argument("--train-steps", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = ["SEARCH.EVAL.RECALIBRATION_IMAGES", "16", "SOLVER.STEPS", "()"]
        options += ["SOLVER.MAX_ITER", str(args.train_steps), "SOLVER.CHECKPOINT_PERIOD", "1000000"]
        cfg = config_of(args, options, ["OUTPUT_DIR", folder])
        cfg.MODEL.CRNAS.SUPERNET = {"stage": "stage", "greedy": "dilation"}[args.step]
        trainer = SupernetTrainer(cfg)
        if args.weights:
            DetectionCheckpointer(trainer.model).load(args.weights)
        else:
            trainer.train()
        for logger in ("detectron2", "fvcore"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        result = measure(cfg, trainer.model, Path(folder), args.images)
    show(args.json, **result, phase=args.step)


if __name__ == "__main__":
    main()
