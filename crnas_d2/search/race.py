"""Comparing candidates: they see archval in growing portions, and those that fall behind see no more.

After each portion archval is completed again and again by a bootstrap of the images seen so far, the
same for all candidates. A candidate that hardly ever comes among the leading quarter of those in the
race is dropped; compared with the best one alone, it would be for that one's luck on a few images. The
paper scores every candidate on all of archval: a race with one portion, in which none is dropped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Protocol

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs
from crnas_d2.search.journal import Candidate, Journal, ranked

# Chosen, with SEARCH.RACE.CONFIDENCE 0.96, on replays of the BCCD search (docs/BENCHMARKS.md).
PORTIONS = (0.17, 0.24, 0.35, 0.5, 0.6, 0.7, 0.83, 1.0)  # of archval, seen so far
LEADING = 0.25  # of those in the race
GROUP_SIZE = 32  # candidates that detect together, and are journalled together; no score depends on it

Group = Sequence[Architecture]
# Finds the best of the candidates, of which a search keeps so many: those that saw all of archval, best
# first. A search calls it once, or for one generation or block after another.
Compare = Callable[[Sequence[Architecture], int], list[Candidate]]
# Wraps what is iterated to show a progress bar, as tqdm does.
Progress = Callable[[Sequence[Architecture]], Iterable[Architecture]]


class Scorer(Protocol):
    """Scores on portions of archval, the same on every rank (crnas_d2/evaluation/scorer.py).

    Attributes:
        images: how many a candidate has seen after each portion; the last one is all of archval.
    """

    images: list[int]

    def missing(self, architectures: Sequence[Architecture], portion: int) -> list[Architecture]:
        """Those that have not detected on the portion yet."""

    def detect(self, group: Group, portion: int) -> None:
        """Let candidates that share most of their paths detect on a portion; cached on disk."""

    def scores(self, architectures: Sequence[Architecture], portion: int) -> list[list[float]]:
        """Of each the score on the images seen so far, 0..100, nan if they have no object.

        Unless they are all, the scores on bootstraps of archval follow, the same for all candidates.
        """


class Race:
    """Compares candidates by a race.

    Args:
        phase: the space's, in every line of the journals.
        name: of this search among those of the phase, such as its budget.
        scorer: of candidates.
        costs: of an architecture.
        journal: of those that saw all of archval: score, costs, and the seconds of the group's last
            portion, divided by its size. A group is written before the next one detects.
        verdicts: of those that were dropped: images seen, the score on them, the leader and its score,
            how many were in the race, and in what fraction of bootstraps this one was not leading.
        confidence: that fraction, from which on a candidate is dropped; above 0.5, below 1.
        progress: wraps those that see a portion.
        group_size: candidates that detect together, at most.
    """

    def __init__(
        self,
        phase: str,
        name: str,
        scorer: Scorer,
        costs: Costs,
        journal: Journal,
        verdicts: Journal,
        confidence: float,
        progress: Progress = iter,
        group_size: int = GROUP_SIZE,
    ) -> None:
        self._phase, self._name = phase, name
        self._scorer, self._costs = scorer, costs
        self._journal, self._verdicts = journal, verdicts
        self._confidence = confidence
        self._progress, self._group_size = progress, group_size

    def __call__(self, architectures: Sequence[Architecture], keep: int) -> list[Candidate]:
        """Those that saw all of archval, best first; at least ``keep``, if there are as many."""
        running = list(architectures)
        *portions, last = range(len(self._scorer.images))
        for portion in portions:
            self._see(running, portion)
            running = self._without_dropped(running, portion, keep)
        self._see([a for a in running if self._journal.score(self._phase, a) is None], last)
        return ranked(map(self._candidate, running))

    def _see(self, architectures: Sequence[Architecture], portion: int) -> None:
        """They detect on a portion, group by group; after the last one each group is journalled."""
        # An error closes the progress bar, or it would be printed below the error.
        with closing(self._groups(architectures)) as groups:
            for group in groups:
                start = time.perf_counter()
                missing = self._scorer.missing(group, portion)
                if missing:
                    self._scorer.detect(missing, portion)
                if portion == len(self._scorer.images) - 1:
                    self._add(group, portion, start)

    def _groups(self, architectures: Sequence[Architecture]) -> Generator[Group, None, None]:
        """Each group, when the progress bar has come to its first member."""
        first = {group[0]: group for group in grouped(architectures, self._group_size)}
        for architecture in self._progress(architectures) if first else ():
            if architecture in first:
                yield first[architecture]

    def _add(self, group: Group, portion: int, start: float) -> None:
        scores = self._scorer.scores(group, portion)
        seconds = round((time.perf_counter() - start) / len(group), 3)
        for member, (score, *_) in zip(group, scores):
            record = {"phase": self._phase, "architecture": str(member), "score": score}
            self._journal.add({**record, **self._costs(member), "seconds": seconds})

    def _candidate(self, architecture: Architecture) -> Candidate:
        score = self._journal.score(self._phase, architecture)
        assert score is not None
        return Candidate(architecture, score, self._costs(architecture))

    def _without_dropped(
        self, running: Sequence[Architecture], portion: int, keep: int
    ) -> list[Architecture]:
        """Those that stay in the race, in the order given."""
        if len(running) <= keep:
            return list(running)
        found = dict(zip(running, self._scorer.scores(running, portion)))
        if math.isnan(found[running[0]][0]):  # no object on the images so far
            return list(running)
        leading = max(keep, math.ceil(LEADING * len(running)))
        behind = dict(zip(running, fractions_behind(list(found.values()), leading)))
        # Candidates that are alike may all be behind in most bootstraps.
        safe = sorted(running, key=lambda a: (behind[a], -found[a][0], str(a)))[:keep]
        leader = max(found, key=lambda a: (found[a][0], str(a)))
        kept = []
        for architecture in running:
            if behind[architecture] < self._confidence or architecture in safe:
                kept.append(architecture)
                continue
            phase = f"{self._phase} race {self._name}"
            verdict = {
                "phase": phase,
                "architecture": str(architecture),
                "score": found[architecture][0],
                "images": self._scorer.images[portion],
                "leader": str(leader),
                "leader_score": found[leader][0],
                "racing": len(found),
                "behind": behind[architecture],
            }
            if self._verdicts.score(phase, architecture) is None:
                self._verdicts.add(verdict)
        return kept


def grouped(architectures: Sequence[Architecture], size: int) -> list[list[Architecture]]:
    """Neighbours in groups of at most ``size``, to detect together.

    A group ends, too, where the first entry of the stage code in which the architectures differ
    changes: beyond it they would share little.
    """
    codes = [architecture.stage_code for architecture in architectures]
    differing = [i for i, depths in enumerate(zip(*codes)) if len(set(depths)) > 1]
    groups: list[list[Architecture]] = []
    for architecture in architectures:
        last = groups[-1] if groups else []
        same = all(architecture.stage_code[i] == a.stage_code[i] for a in last for i in differing[:1])
        if last and same and len(last) < size:
            last.append(architecture)
        else:
            groups.append([architecture])
    return groups


def fractions_behind(scores: Sequence[Sequence[float]], leading: int) -> list[float]:
    """In what fraction of the bootstraps each candidate is not among the ``leading`` best.

    Args:
        scores: of each candidate, the one over the images seen, then over the bootstraps.
    """
    bootstraps = list(zip(*(found[1:] for found in scores)))
    least = [sorted(drawn)[-leading] for drawn in bootstraps]
    return [sum(score < low for score, low in zip(found[1:], least)) / len(least) for found in scores]
