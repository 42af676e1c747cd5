#!/usr/bin/env python
"""Races replayed over bootstrap archvals of a finished stage search, against scoring every candidate.

    python benchmarks/race.py --weights output/bccd/stage/model_final.pth --matches output/bccd/replay

Every eligible candidate is scored once on archval, and its matches are kept in the folder --matches,
which is good for these weights and this config alone; a second call takes them from there. Each replay
draws an archval of as many images with replacement, races over it as SEARCH.RACE.CONFIDENCE would have
it, in portions of images in random order, and compares the winner with that of the whole search on the
same archval. ratio: image evaluations of the race over those of the whole search. shortfall: how much
lower the race's winner scores there.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import show

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.data.datasets import check_dataset, register_coco, use_own_data
from crnas_d2.data.splits import split, write_split
from crnas_d2.engine.checkpoint import write_bytes
from crnas_d2.engine.trainer import seed_of
from crnas_d2.evaluation.matches import Matches, bootstrap
from crnas_d2.modeling.build import stage_space_of
from crnas_d2.pipeline.looks import BOOTSTRAPS
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.search.candidates import grouped
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import Race, portions
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model


class Replay:
    """Looks at a drawn archval: what each candidate would have detected is known.

    Args:
        found: matches of each candidate over the real archval.
        drawn: the images of the drawn one in the order in which they are seen, by their places in it.
        batch_size: images of a batch, of which portions are made.
        seed: of the bootstraps.
    """

    def __init__(
        self, found: dict[Architecture, Matches], drawn: np.ndarray, batch_size: int, seed: int
    ) -> None:
        self._found = found
        self._drawn = drawn
        ends = portions(-(-len(drawn) // batch_size))
        self.images = [min(end * batch_size, len(drawn)) for end in ends]
        self._seed = seed
        self._seen: set[tuple[Architecture, int]] = set()

    def missing(self, architectures: Sequence[Architecture], portion: int) -> list[Architecture]:
        return [a for a in architectures if (a, portion) not in self._seen]

    def look(self, group: Sequence[Architecture], portion: int) -> None:
        self._seen.update((architecture, portion) for architecture in group)

    def scores(self, architectures: Sequence[Architecture], portion: int) -> list[list[float]]:
        images = self.images[portion]
        weights = np.ones((1, images))
        if images < self.images[-1]:
            draws = bootstrap(images, len(self._drawn), BOOTSTRAPS, self._seed + portion)
            weights = np.concatenate([weights, draws])
        of_images = np.zeros((len(weights), len(self._drawn)))
        np.add.at(of_images.T, self._drawn[:images], weights.T)
        return [self._found[architecture].scores(of_images).tolist() for architecture in architectures]

    @property
    def evaluations(self) -> int:
        """Images that candidates looked at."""
        sizes = np.diff([0, *self.images])
        return int(sum(sizes[portion] for _, portion in self._seen))


def matches_of(cfg: CfgNode, weights: str | None, folder: Path) -> dict[Architecture, Matches]:
    """Of every eligible candidate, made where the folder does not hold them."""
    space = stage_space_of(cfg)
    codes = space.eligible(cfg.SEARCH.BUDGETS[0], backbone_costs(cfg))
    paths = {code: folder / (str(code).replace("/", "_") + ".npz") for code in codes}
    new = [code for code in codes if not paths[code].is_file()]
    if new and not weights:
        raise SystemExit(f"--weights: needed, since {folder} does not hold {new[0]}")
    if new:
        content = check_dataset(cfg, "TRAIN", cfg.DATASETS.TRAIN[0])
        parts = split(content, cfg.SEARCH.ARCHVAL.SIZE, cfg.SEARCH.ARCHVAL.SPLIT_FIELD, seed_of(cfg))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as splits:
            write_split(parts, Path(splits))
            scorer = scorer_of(cfg, weights, parts, Path(splits))
        every = range(len(scorer.archval.image_ids))
        for group in grouped(new, cfg.SEARCH.GROUP_SIZE):
            for code, found in zip(group, scorer.matches(group, every)):
                write_bytes(str(paths[code]), found.to_bytes())
            print(f"scored {group[0]} and {len(group) - 1} more")
    return {code: Matches.from_bytes(path.read_bytes()) for code, path in paths.items()}


def scorer_of(cfg: CfgNode, weights: str, parts: tuple[Any, Any], splits: Path) -> Any:
    images = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).image_root
    for part in ("archtrain", "archval"):
        register_coco(part, str(splits / f"{part}.json"), images)
    detector = build_model(cfg)
    DetectionCheckpointer(detector).load(weights)
    return build_scorer(cfg, Split("archtrain", "archval", parts[1]), detector)


def replay(found: dict[Architecture, Matches], cfg: CfgNode, number: int) -> tuple[float, float]:
    """(part of the image evaluations, how much the race's winner is below the best one)."""
    images = len(next(iter(found.values())).image_ids)
    drawn = np.random.default_rng(number).integers(0, images, images)
    looks, codes = Replay(found, drawn, cfg.SEARCH.EVAL.BATCH_SIZE, 1000 * number), list(found)
    journal, verdicts = (Journal(os.devnull, writes=False) for _ in range(2))
    confidence = cfg.SEARCH.RACE.CONFIDENCE
    compare = Race("stage", "replay", looks, backbone_costs(cfg), journal, verdicts, confidence)
    winner = compare(codes, 1)[0]
    last = len(looks.images) - 1
    best = max(scores[0] for scores in looks.scores(codes, last))
    return looks.evaluations / (images * len(codes)), best - winner.score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default="configs/BCCD/search.yaml")
    parser.add_argument(
        "--weights", help="of the stage supernet; only for what --matches does not hold"
    )
    parser.add_argument("--matches", required=True, help="folder where they are kept")
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first replay")
    parser.add_argument("--json", help="write the result there")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ...")
    args = parser.parse_args()
    cfg = read_config(args.config_file, ["SEARCH.RACE.CONFIDENCE", "0.96", *args.opts])
    use_own_data(cfg)
    cfg.MODEL.CRNAS.SUPERNET = "stage"
    found = matches_of(cfg, args.weights, Path(args.matches))
    numbers = itertools.count(args.first)
    rows = np.array([replay(found, cfg, next(numbers)) for _ in range(args.replays)])
    evaluations, shortfall = rows.T
    result = {
        "ratio": float(evaluations.mean()),
        "baseline": 1.0,
        "ours": float(evaluations.mean()),
        "within_0.3_ap": float((shortfall <= 0.3).mean()),
        "same_winner": float((shortfall == 0).mean()),
        "mean_shortfall": float(shortfall.mean()),
        "setting": f"{len(found)} candidates, {args.replays} archvals drawn from "
        f"{len(next(iter(found.values())).image_ids)} images, "
        f"SEARCH.RACE.CONFIDENCE {cfg.SEARCH.RACE.CONFIDENCE}",
    }
    show(result, args.json)


if __name__ == "__main__":
    main()
