#!/usr/bin/env python
"""Our search against the plain loop: one candidate after another through detectron2's test loop.

    python benchmarks/search.py --step stage [--images 16] [--weights supernet.pth] [--json PATH]

The plain loop recomputes a candidate's BatchNorm statistics, sets the path, builds
build_detection_test_loader and runs inference_on_dataset with COCOEvaluator. Both score the same
candidates with the same weights on the same images. ratio_pinned: threads, batch size (1, which is
the stock loader's), proposals and recalibration are equal, and so have the scores to be, to 1e-9.
ratio: both with the number of threads that suits them better, ours with its own batch size.
Times are wall seconds, so nothing else should run.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import first_images, show, timed
from torch import nn

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.analysis.flops import count_modules
from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.data.datasets import use_own_data
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.evaluation.recalibration import recalibrated
from crnas_d2.modeling.backbone.supernet import Supernet, find_supernet
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.search.candidates import Done, Group, ScoreAll
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Journal
from crnas_d2.search.stage import stage_search
from crnas_d2.space import StageSpace
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset


class AlongPaths(nn.Module):
    """A detector that takes the path of the batch that an image belongs to, as a candidate does."""

    def __init__(self, scorer: ArchvalScorer, path_of: Any) -> None:
        super().__init__()
        self._detector, self._supernet = scorer._detector, scorer._supernet
        self._path_of = path_of
        self._number = {
            record["image_id"]: number for number, batch in scorer.archval.mine() for record in batch
        }

    def forward(self, inputs: list[dict[str, Any]]) -> Any:
        with self._supernet.using_path(self._path_of(self._number[inputs[0]["image_id"]])):
            return self._detector(inputs)


def plain_loop(
    cfg: CfgNode, scorer: ArchvalScorer, name: str, candidates: Sequence[Architecture]
) -> list[float]:
    scores = []
    for architecture in candidates:
        of_recalibration, of_archval = scorer._completions(architecture)
        with (
            recalibrated(scorer._detector, scorer._supernet, scorer._recalibration, of_recalibration),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            found = inference_on_dataset(
                AlongPaths(scorer, of_archval).eval(),
                build_detection_test_loader(cfg, name),
                COCOEvaluator(name, output_dir=cfg.OUTPUT_DIR),
            )
        scores.append(found["bbox"]["AP"])
    return scores


def shared_macs(
    supernet: Supernet, groups: Iterable[Sequence[Architecture]], shape: tuple[int, int, int]
) -> float:
    """The backbone's multiply-accumulates for an image, (C, H, W), over those of each path alone.

    The paths of a group share the segments that they have in common from the first one on.
    """
    supernet = copy.deepcopy(supernet).cpu().eval()
    together, alone, known = 0, 0, {}
    for group in groups:
        distinct = {}
        for code in group:
            path = code if code.is_complete else supernet.space.complete(code, 0, 0)
            names = [segment.name for segment in supernet.segments(path)]
            if not known.keys() >= set(names):
                with supernet.using_path(path):
                    costs = count_modules(supernet, lambda net, images: net(images).values(), shape)
                known |= {s.name: costs[s.prefix]["macs"] for s in supernet.segments(path)}
            alone += sum(known[name] for name in names)
            distinct |= {tuple(names[:i]): known[names[i - 1]] for i in range(1, len(names) + 1)}
        together += sum(distinct.values())
    return together / alone


def our_search(cfg: CfgNode, scorer: ArchvalScorer, folder: Path) -> list[tuple[Architecture, float]]:
    """Every candidate in the order in which it was scored."""
    seen = []

    def score(groups: Iterable[Group], done: Done) -> None:
        def noted(group: Group, scores: list[float]) -> None:
            seen.extend(zip(group, scores))
            done(group, scores)

        scorer(groups, noted)

    space, costs, size = scorer._supernet.space, backbone_costs(cfg), cfg.SEARCH.GROUP_SIZE
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        journal = Journal(Path(fresh) / "journal.jsonl")
        compare = ScoreAll(space.phase, score, costs, journal, group_size=size)
        if isinstance(space, StageSpace):
            stage_search(space, cfg.SEARCH.BUDGETS[0], compare, costs)
        else:
            greedy_search(space, compare, cfg.SEARCH.DILATION.TOP_K)
    return seen


def measure(cfg: CfgNode, detector: nn.Module, folder: Path, images: int) -> dict[str, Any]:
    """The two ratios; the plain loop's candidates are those that our search came upon."""
    name, content = first_images(cfg.DATASETS.TRAIN[0], images, folder)
    split = Split(cfg.DATASETS.TRAIN[0], name, content)
    stock, ours = {}, {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch_size in (1, cfg.SEARCH.EVAL.BATCH_SIZE):
            run = cfg.clone()
            run.SEARCH.EVAL.BATCH_SIZE = batch_size
            scorer = build_scorer(run, split, detector)
            ours[threads, batch_size], seen = timed(our_search, run, scorer, folder)
            shared = scorer.macs.shared / scorer.macs.alone
            print(f"ours, {threads} threads, batch {batch_size}: {ours[threads, batch_size]:.1f} s")
            if batch_size > 1:
                continue
            candidates = [architecture for architecture, _ in seen]
            stock[threads], scores = timed(plain_loop, run, scorer, name, candidates)
            print(f"plain, {threads} threads, batch 1: {stock[threads]:.1f} s")
            worst = max(abs(score - plain) for (_, score), plain in zip(seen, scores))
            if worst > 1e-9 or not any(scores):
                raise SystemExit(f"scores differ by {worst}, the highest is {max(scores)}")
    best, plain = min(ours, key=ours.get), min(stock, key=stock.get)
    pinned = {threads: stock[threads] / ours[threads, 1] for threads in stock}
    return {
        "ratio": stock[plain] / ours[best],
        "baseline": stock[plain],
        "ours": ours[best],
        "ratio_pinned": min(pinned.values()),
        "ratio_pinned_by_threads": {str(threads): ratio for threads, ratio in pinned.items()},
        "macs": shared,
        "candidates": len(candidates),
        "highest_score": max(scores),
        "setting": f"{plain} threads, batch 1 against {best[0]} threads, batch {best[1]}, "
        f"groups of {cfg.SEARCH.GROUP_SIZE}, {images} images, "
        f"{cfg.SEARCH.EVAL.RECALIBRATION_IMAGES} for recalibration, {cfg.MODEL.DEVICE}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default="configs/BCCD/search.yaml")
    parser.add_argument("--step", choices=("stage", "greedy"), default="stage")
    parser.add_argument("--images", type=int, default=16, help="of archval")
    parser.add_argument("--weights", help="of the supernet; else it is trained for --train-steps")
    parser.add_argument("--train-steps", type=int, default=60)
    parser.add_argument("--json", help="write the result there")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ...")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = ["SEARCH.EVAL.RECALIBRATION_IMAGES", "16", "SOLVER.STEPS", "()"]
        options += ["SOLVER.MAX_ITER", str(args.train_steps), "SOLVER.CHECKPOINT_PERIOD", "1000000"]
        cfg = read_config(args.config_file, [*options, *args.opts, "OUTPUT_DIR", folder])
        use_own_data(cfg)
        cfg.MODEL.CRNAS.SUPERNET = "stage" if args.step == "stage" else "dilation"
        trainer = SupernetTrainer(cfg)
        if args.weights:
            DetectionCheckpointer(trainer.model).load(args.weights)
        else:
            trainer.train()
        for logger in ("detectron2", "fvcore"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        assert find_supernet(trainer.model) is not None
        result = {"phase": args.step, **measure(cfg, trainer.model, Path(folder), args.images)}
    show(result, args.json)


if __name__ == "__main__":
    main()
