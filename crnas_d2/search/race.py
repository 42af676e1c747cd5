"""Comparing candidates: they see archval in growing portions, and those that fall behind see no more.

After each portion a candidate is dropped that hardly ever comes among the leading quarter on bootstraps
of archval. The paper scores every candidate on all of archval: a race with one portion.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from statistics import fmean
from typing import Any, Protocol

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs
from crnas_d2.search.journal import Candidate, Journal, ranked

# Chosen, with SEARCH.RACE.CONFIDENCE 0.96, on replays of the BCCD search (docs/BENCHMARKS.md).
PORTIONS = (0.17, 0.24, 0.35, 0.5, 0.6, 0.7, 0.83, 1.0)  # of archval, seen so far
LEADING = 0.25  # of those in the race
GROUP_SIZE = 32  # candidates that detect together, and are journalled together; no score depends on it
Group = Sequence[Architecture]
# (candidates, how many of them the search keeps): those that saw all of archval, best first.
Compare = Callable[[Sequence[Architecture], int], list[Candidate]]


class Scorer(Protocol):
    """What a race needs of crnas_d2.evaluation.scorer.ArchvalScorer, the same on every rank."""

    images: list[int]  # that a candidate has seen after each portion; the last one is all of archval

    def missing(self, architectures: Group, portion: int) -> list[Architecture]: ...
    def detect(self, group: Group, portion: int) -> None: ...
    def scores(self, architectures: Group, portion: int) -> list[list[float]]: ...


@dataclass(eq=False)
class Race:
    """Compares candidates by a race."""

    phase: str  # the space's, in every line of the journals
    name: str  # of this search among those of the phase, such as its budget
    scorer: Scorer
    costs: Costs
    journal: Journal  # those that saw all of archval, with the seconds of the last portion
    dropped: Journal  # those that fell behind: when, and how far
    confidence: float  # 0.5..1: dropped are those outside the lead in this fraction of bootstraps
    progress: Callable[[Sequence[Architecture]], Any] = nullcontext  # shows a bar, as tqdm
    group_size: int = GROUP_SIZE

    def __call__(self, architectures: Sequence[Architecture], keep: int) -> list[Candidate]:
        """Those that saw all of archval, best first; at least ``keep``, if there are as many."""
        running = list(architectures)
        *portions, last = range(len(self.scorer.images))
        for portion in portions:
            self._detect(running, portion)
            running = self._staying(running, portion, keep)
        self._detect([a for a in running if self.journal.score(self.phase, a) is None], last)
        scored = ((a, self.journal.score(self.phase, a)) for a in running)
        return ranked(Candidate(a, score, self.costs(a)) for a, score in scored if score is not None)

    def _detect(self, architectures: Sequence[Architecture], portion: int) -> None:
        """Detect on a portion, group by group; a group runs when the bar reaches its first member."""
        if not architectures:
            return
        first = {group[0]: group for group in grouped(architectures, self.group_size)}
        with self.progress(architectures) as shown:
            for architecture in shown:
                if architecture in first:
                    self._detect_group(first[architecture], portion)

    def _detect_group(self, group: Group, portion: int) -> None:
        """A group detects; after the last portion it is journalled."""
        start = time.perf_counter()
        missing = self.scorer.missing(group, portion)
        if missing:
            self.scorer.detect(missing, portion)
        if portion < len(self.scorer.images) - 1:
            return
        scores = self.scorer.scores(group, portion)
        seconds = round((time.perf_counter() - start) / len(group), 3)
        for member, (score, *without) in zip(group, scores):
            more = {"error": standard_error(without), **self.costs(member), "seconds": seconds}
            self.journal.add(self.phase, member, score, **more)

    def _staying(self, running: list[Architecture], portion: int, keep: int) -> list[Architecture]:
        """Those that stay in the race, in the order given."""
        if len(running) <= keep:
            return running
        found = self.scorer.scores(running, portion)
        score = {a: scores[0] for a, scores in zip(running, found)}
        if math.isnan(found[0][0]):  # no object on the images so far
            return running
        leading = max(keep, math.ceil(LEADING * len(running)))
        behind = dict(zip(running, fractions_behind(found, leading)))
        # Candidates that are alike may all be behind in most bootstraps.
        best = sorted(running, key=lambda a: (behind[a], -score[a], str(a)))[:keep]
        staying = [a for a in running if behind[a] < self.confidence or a in best]
        leader = max(running, key=lambda a: (score[a], str(a)))
        phase, images = f"{self.phase} race {self.name}", self.scorer.images[portion]
        shared = {"images": images, "leader": str(leader), "leader_score": score[leader]}
        for a in running:
            if a not in staying and self.dropped.score(phase, a) is None:
                self.dropped.add(phase, a, score[a], **shared, racing=len(running), behind=behind[a])
        return staying


def grouped(architectures: Sequence[Architecture], size: int) -> Iterator[list[Architecture]]:
    """Neighbours in groups of at most ``size`` that agree in the first stage in which any differ."""
    by_stage = enumerate(zip(*(a.stage_code for a in architectures)))
    first = next((i for i, depths in by_stage if len(set(depths)) > 1), 0)
    for _, alike in groupby(architectures, lambda a: a.stage_code[first]):
        while group := list(islice(alike, size)):
            yield group


def standard_error(without: Sequence[float]) -> float:
    """Of a score over the images, by the jackknife; ``without``: scores without each group of images.

    How far the score would move with other images. That the supernet has other weights after another
    training is not in it.
    """
    known = [score for score in without if not math.isnan(score)]
    if len(known) < 2:
        return 0.0
    mean = fmean(known)
    return math.sqrt((len(known) - 1) / len(known) * sum((score - mean) ** 2 for score in known))


def fractions_behind(scores: Sequence[Sequence[float]], leading: int) -> list[float]:
    """In what fraction of the bootstraps, all scores but the first, each is outside the ``leading``."""
    least = [sorted(drawn)[-leading] for drawn in zip(*(found[1:] for found in scores))]
    return [sum(score < low for score, low in zip(found[1:], least)) / len(least) for found in scores]
