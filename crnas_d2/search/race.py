"""Comparing candidates: they see archval in growing portions, and those that fall behind see no more.

After each portion archval is completed again and again by a bootstrap of the images seen so far, the
same for all candidates. A candidate that hardly ever comes among the leading quarter of those in the
race is dropped; compared with the best one alone, it would be for that one's luck on a few images. The
paper scores every candidate on all of archval: a race with one portion, in which none is dropped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

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
# Wraps what is iterated to show a progress bar, as tqdm does; left by an error, it closes.
Progress = Callable[[Sequence[Architecture]], AbstractContextManager[Iterable[Architecture]]]


class Scorer(Protocol):
    """Scores on portions of archval, the same on every rank (crnas_d2/evaluation/scorer.py)."""

    images: list[int]  # that a candidate has seen after each portion; the last one is all of archval

    def missing(self, architectures: Group, portion: int) -> list[Architecture]:
        """Those that have not detected on the portion yet."""

    def detect(self, group: Group, portion: int) -> None:
        """Let candidates that share most of their paths detect on a portion; cached on disk."""

    def scores(self, architectures: Group, portion: int) -> list[list[float]]:
        """Of each the score on the images seen, nan if no object, then on bootstraps of archval."""


@dataclass(eq=False)
class Race:
    """Compares candidates by a race."""

    phase: str  # the space's, in every line of the journals
    name: str  # of this search among those of the phase, such as its budget
    scorer: Scorer
    costs: Costs
    journal: Journal  # those that saw all of archval, with the seconds of the last portion
    verdicts: Journal  # those that were dropped: when, and how far behind
    confidence: float  # 0.5..1: dropped is who is not leading in this fraction of the bootstraps
    progress: Progress = nullcontext
    group_size: int = GROUP_SIZE

    def __call__(self, architectures: Sequence[Architecture], keep: int) -> list[Candidate]:
        """Those that saw all of archval, best first; at least ``keep``, if there are as many."""
        running = list(architectures)
        *portions, last = range(len(self.scorer.images))
        for portion in portions:
            self._see(running, portion)
            running = self._without_dropped(running, portion, keep)
        self._see([a for a in running if self.journal.score(self.phase, a) is None], last)
        return ranked(map(self._candidate, running))

    def _see(self, architectures: Sequence[Architecture], portion: int) -> None:
        """They detect on a portion, group by group, when the bar has come to a group's first member."""
        if not architectures:
            return
        first = {group[0]: group for group in grouped(architectures, self.group_size)}
        with self.progress(architectures) as shown:
            for architecture in shown:
                if architecture in first:
                    self._see_together(first[architecture], portion)

    def _see_together(self, group: Group, portion: int) -> None:
        """A group detects; after the last portion it is journalled."""
        start = time.perf_counter()
        missing = self.scorer.missing(group, portion)
        if missing:
            self.scorer.detect(missing, portion)
        if portion < len(self.scorer.images) - 1:
            return
        scores = self.scorer.scores(group, portion)
        seconds = round((time.perf_counter() - start) / len(group), 3)
        for member, (score, *_) in zip(group, scores):
            record = {"phase": self.phase, "architecture": str(member), "score": score}
            self.journal.add({**record, **self.costs(member), "seconds": seconds})

    def _candidate(self, architecture: Architecture) -> Candidate:
        score = self.journal.score(self.phase, architecture)
        assert score is not None
        return Candidate(architecture, score, self.costs(architecture))

    def _without_dropped(
        self, running: list[Architecture], portion: int, keep: int
    ) -> list[Architecture]:
        """Those that stay in the race, in the order given."""
        if len(running) <= keep:
            return running
        found = self.scorer.scores(running, portion)
        score = {architecture: scores[0] for architecture, scores in zip(running, found)}
        if math.isnan(found[0][0]):  # no object on the images so far
            return running
        leading = max(keep, math.ceil(LEADING * len(running)))
        behind = dict(zip(running, fractions_behind(found, leading)))
        staying = [a for a in running if behind[a] < self.confidence]
        # Candidates that are alike may all be behind in most bootstraps.
        staying += sorted(running, key=lambda a: (behind[a], -score[a], str(a)))[:keep]
        leader = max(running, key=lambda a: (score[a], str(a)))
        phase = f"{self.phase} race {self.name}"
        for architecture in running:
            if architecture in staying or self.verdicts.score(phase, architecture) is not None:
                continue
            verdict = {
                "phase": phase,
                "architecture": str(architecture),
                "score": score[architecture],
                "images": self.scorer.images[portion],
                "leader": str(leader),
                "leader_score": score[leader],
                "racing": len(running),
                "behind": behind[architecture],
            }
            self.verdicts.add(verdict)
        return [architecture for architecture in running if architecture in staying]


def grouped(architectures: Sequence[Architecture], size: int) -> list[list[Architecture]]:
    """Neighbours in groups of at most ``size``, to detect together.

    They agree in the first entry of the stage code that differs at all, or they would share little.
    """
    codes = [architecture.stage_code for architecture in architectures]
    differing = [i for i, depths in enumerate(zip(*codes)) if len(set(depths)) > 1]
    groups: list[list[Architecture]] = []
    for _, neighbours in groupby(architectures, lambda a: [a.stage_code[i] for i in differing[:1]]):
        alike = list(neighbours)
        groups += [alike[start : start + size] for start in range(0, len(alike), size)]
    return groups


def fractions_behind(scores: Sequence[Sequence[float]], leading: int) -> list[float]:
    """In what fraction of the bootstraps each candidate is not among the ``leading`` best.

    Args:
        scores: of each candidate, the one over the images seen, then over the bootstraps.
    """
    bootstraps = list(zip(*(found[1:] for found in scores)))
    least = [sorted(drawn)[-leading] for drawn in bootstraps]
    return [sum(score < low for score, low in zip(found[1:], least)) / len(least) for found in scores]
