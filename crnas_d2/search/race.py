"""Racing: candidates see archval in growing portions, and those that fall behind see no more of it.

After each portion the leader is compared with every other candidate by a paired bootstrap: the images
seen so far are drawn with replacement, again and again, and a candidate that scores below the leader in
most of the draws is dropped. An option: the paper scores every candidate on all of archval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs
from crnas_d2.search.candidates import Candidate, Progress, grouped, ranked
from crnas_d2.search.journal import Journal

PORTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of archval, seen so far


class Looks(Protocol):
    """What candidates detect on portions of archval; the same on every process.

    Attributes:
        images: how many a candidate has seen after each portion; the last one is all of archval.
    """

    images: list[int]

    def missing(self, architectures: Sequence[Architecture], portion: int) -> list[Architecture]:
        """Those that have not looked at the portion yet."""

    def look(self, group: Sequence[Architecture], portion: int) -> None:
        """Let candidates that share most of their paths look at a portion; kept on disk."""

    def scores(self, architecture: Architecture, portion: int) -> list[float]:
        """The score on the images seen up to the portion, 0..100, nan if they have no object.

        Unless they are all, it is followed by the scores on bootstraps of them, the same for everybody.
        """


class Race:
    """Compares candidates by a race; in place of ScoreAll.

    Args:
        step: the space's, which stands in every line of the journal.
        name: of this search among those of the step, such as its budget.
        looks: at archval.
        costs: of an architecture.
        journal: of those that saw all of archval, with their scores.
        verdicts: of those that were dropped: the images seen, the score on them, the leader and its
            score, and the fraction of bootstraps in which the leader was ahead.
        confidence: that fraction, from which on a candidate is dropped; above 0.5, at most 1.
        progress: wraps what looks at a portion.
        group_size: candidates that look together, at most.
    """

    def __init__(
        self,
        step: str,
        name: str,
        looks: Looks,
        costs: Costs,
        journal: Journal,
        verdicts: Journal,
        confidence: float,
        progress: Progress = iter,
        group_size: int = 1,
    ) -> None:
        self._step = step
        self._name = name
        self._looks = looks
        self._costs = costs
        self._journal = journal
        self._verdicts = verdicts
        self._confidence = confidence
        self._progress = progress
        self._group_size = group_size

    def __call__(self, architectures: Sequence[Architecture], keep: int) -> list[Candidate]:
        """Those that saw all of archval, best first; at least ``keep`` if there are as many.

        A candidate is compared with the one that is ``keep``-th best so far, the leader if that is 1.
        """
        running = list(architectures)
        for portion in range(len(self._looks.images)):
            self._let_look(running, portion)
            running = self._drop(running, portion, keep)
        return ranked(map(self._finish, running))

    def _let_look(self, running: Sequence[Architecture], portion: int) -> None:
        missing = self._looks.missing(running, portion)
        groups = grouped(missing, self._group_size)
        first = {group[0]: group for group in groups}
        for architecture in self._progress(missing):
            if architecture in first:
                self._looks.look(first[architecture], portion)

    def _drop(self, running: Sequence[Architecture], portion: int, keep: int) -> list[Architecture]:
        """Those that go on, in the order given: after the last portion all."""
        if portion == len(self._looks.images) - 1 or len(running) <= keep:
            return list(running)
        found = {a: self._looks.scores(a, portion) for a in running}
        if math.isnan(found[running[0]][0]):
            return list(running)  # no object on the images so far

        def place(architecture: Architecture) -> tuple[float, float, str]:
            score = found[architecture][0]
            return -score, self._costs(architecture)["macs"], str(architecture)

        leader = sorted(running, key=place)[keep - 1]
        kept = []
        for architecture in running:
            ahead = fraction_below(found[architecture][1:], found[leader][1:])
            if ahead < self._confidence:
                kept.append(architecture)
            else:
                self._say(architecture, portion, leader, found, ahead)
        return kept

    def _say(
        self,
        architecture: Architecture,
        portion: int,
        leader: Architecture,
        found: dict[Architecture, list[float]],
        ahead: float,
    ) -> None:
        step = f"{self._step} race {self._name}"
        if self._verdicts.score(step, str(architecture)) is None:
            self._verdicts.add(
                {
                    "step": step,
                    "architecture": str(architecture),
                    "score": found[architecture][0],
                    "images": self._looks.images[portion],
                    "leader": str(leader),
                    "leader_score": found[leader][0],
                    "leader_ahead": ahead,
                }
            )

    def _finish(self, architecture: Architecture) -> Candidate:
        score, costs = self._journal.score(self._step, str(architecture)), self._costs(architecture)
        if score is None:
            last = len(self._looks.images) - 1
            score = self._looks.scores(architecture, last)[0]
            record = {"step": self._step, "architecture": str(architecture), "score": score}
            self._journal.add({**record, **costs})
        return Candidate(architecture, score, costs)


def fraction_below(scores: Sequence[float], leader: Sequence[float]) -> float:
    """In what fraction of the bootstraps a candidate scores below the leader.

    Those without any object, whose score is nan for both, do not count; none left: 0.
    """
    below = [ours < theirs for ours, theirs in zip(scores, leader) if not math.isnan(theirs)]
    return sum(below) / len(below) if below else 0.0


def portions(count: int) -> list[int]:
    """Where the portions of ``count`` batches end, ascending; few batches have fewer portions."""
    return sorted({math.ceil(count * fraction) for fraction in PORTIONS})
