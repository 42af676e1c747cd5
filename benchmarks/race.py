#!/usr/bin/env python
"""Races replayed over bootstrap archvals of a finished stage search, against scoring every candidate.

    python benchmarks/race.py --matches output/bccd/stage/matches/0

The matches are those of an exhaustive search with this config. Each replay draws an archval of as many
images with replacement, races over it as SEARCH.RACE.CONFIDENCE would have it, in portions of images in
random order, and compares the winner with that of the whole search on the same archval. ratio: image
evaluations of the race over those of the whole search. shortfall: how much lower the race's winner
scores there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import config_of, parser_of, show

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.matches import Matches, bootstrap
from crnas_d2.evaluation.scorer import BOOTSTRAPS
from crnas_d2.modeling.build import stage_space_of
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import PORTIONS, Race
from detectron2.config import CfgNode


class Replay:
    """The scorer of a drawn archval: what each candidate would have detected is known.

    Args:
        found: matches of each candidate over the real archval.
        drawn: its images in the order in which they are seen.
    """

    def __init__(
        self, found: dict[Architecture, Matches], drawn: np.ndarray, batch_size: int, seed: int
    ) -> None:
        self._found, self._drawn, self._seed = found, drawn, seed
        count = -(-len(drawn) // batch_size)
        ends = sorted({max(1, round(count * fraction)) for fraction in PORTIONS})
        self.images = [min(end * batch_size, len(drawn)) for end in ends]
        self._seen: set[tuple[Architecture, int]] = set()

    def missing(self, architectures: Sequence[Architecture], portion: int) -> list[Architecture]:
        return [a for a in architectures if (a, portion) not in self._seen]

    def detect(self, group: Sequence[Architecture], portion: int) -> None:
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
        """Images that candidates detected on."""
        sizes = np.diff([0, *self.images])
        return int(sum(sizes[portion] for _, portion in self._seen))


def matches_of(cfg: CfgNode, folder: Path) -> dict[Architecture, Matches]:
    """Of every eligible candidate."""
    codes = stage_space_of(cfg).eligible(cfg.SEARCH.BUDGETS[0], backbone_costs(cfg))
    paths = {code: folder / (str(code).replace("/", "_") + ".npz") for code in codes}
    return {code: Matches.from_bytes(path.read_bytes()) for code, path in paths.items()}


def replay(found: dict[Architecture, Matches], cfg: CfgNode, number: int) -> tuple[float, float]:
    """(part of the image evaluations, how much the race's winner is below the best one)."""
    images = len(next(iter(found.values())).image_ids)
    drawn = np.random.default_rng(number).integers(0, images, images)
    scorer, codes = Replay(found, drawn, cfg.SEARCH.EVAL.BATCH_SIZE, 1000 * number), list(found)
    journal, dropped = (Journal(os.devnull, writes=False) for _ in range(2))
    confidence = cfg.SEARCH.RACE.CONFIDENCE
    compare = Race("stage", "replay", scorer, backbone_costs(cfg), journal, dropped, confidence)
    winner = compare(codes, 1)[0]
    last = len(scorer.images) - 1
    best = max(scores[0] for scores in scorer.scores(codes, last))
    return scorer.evaluations / (images * len(codes)), best - winner.score


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--matches", required=True, help="folder of an exhaustive search's matches")
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first replay")
    args = parser.parse_args()
    cfg = config_of(args, ["SEARCH.RACE.CONFIDENCE", "0.96"])
    found = matches_of(cfg, Path(args.matches))
    numbers = range(args.first, args.first + args.replays)
    evaluations, shortfall = np.array([replay(found, cfg, number) for number in numbers]).T
    winners = {
        "within_0.3_ap": float((shortfall <= 0.3).mean()),
        "same_winner": float((shortfall == 0).mean()),
        "mean_shortfall": float(shortfall.mean()),
    }
    images = len(next(iter(found.values())).image_ids)
    setting = f"{len(found)} candidates, {args.replays} archvals drawn from {images} images, "
    setting += f"SEARCH.RACE.CONFIDENCE {cfg.SEARCH.RACE.CONFIDENCE}"
    show(args.json, 1.0, float(evaluations.mean()), setting, **winners)


if __name__ == "__main__":
    main()
