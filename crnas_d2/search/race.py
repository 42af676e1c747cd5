"""Racing: candidates see archval in growing portions, and those that fall behind see no more of it.

After each portion archval is completed again and again by a bootstrap of the images seen so far, the
same for all candidates. A candidate that hardly ever comes among the leading quarter of those in the
race is dropped; compared with the best one alone, it would be for that one's luck on a few images. An
option: the paper scores every candidate on all of archval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Protocol

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs
from crnas_d2.search.candidates import Candidate, Progress, grouped, in_turn, journalled, ranked
from crnas_d2.search.journal import Journal

# Chosen, with SEARCH.RACE.CONFIDENCE 0.96, on replays of the BCCD search (docs/BENCHMARKS.md).
PORTIONS = (0.17, 0.24, 0.35, 0.5, 0.6, 0.7, 0.83, 1.0)  # of archval, seen so far
LEADING = 0.25  # of those in the race


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

    def scores(self, architectures: Sequence[Architecture], portion: int) -> list[list[float]]:
        """Of each the score on the images seen up to the portion, 0..100, nan if they have no object.

        Unless they are all, the scores on bootstraps of archval follow, the same for everybody.
        """


class Race:
    """Compares candidates by a race; in place of ScoreAll.

    Args:
        phase: the space's, which stands in every line of the journal.
        name: of this search among those of the phase, such as its budget.
        looks: at archval.
        costs: of an architecture.
        journal: of those that saw all of archval, with their scores.
        verdicts: of those that were dropped: the images seen, the score on them, the leader and its
            score, how many were in the race, and the fraction of bootstraps in which this one was not
            among the leading ones.
        confidence: that fraction, from which on a candidate is dropped; above 0.5, below 1.
        progress: wraps what looks at a portion.
        group_size: candidates that look together, at most.
    """

    def __init__(
        self,
        phase: str,
        name: str,
        looks: Looks,
        costs: Costs,
        journal: Journal,
        verdicts: Journal,
        confidence: float,
        progress: Progress = iter,
        group_size: int = 1,
    ) -> None:
        self._phase = phase
        self._name = name
        self._looks = looks
        self._costs = costs
        self._journal = journal
        self._verdicts = verdicts
        self._confidence = confidence
        self._progress = progress
        self._group_size = group_size

    def __call__(self, architectures: Sequence[Architecture], keep: int) -> list[Candidate]:
        """Those that saw all of archval, best first; at least ``keep``, if there are as many."""
        running = list(architectures)
        for portion in range(len(self._looks.images)):
            self._let_look(running, portion)
            running = self._drop(running, portion, keep)
        return self._finish(running)

    def _let_look(self, running: Sequence[Architecture], portion: int) -> None:
        missing = self._looks.missing(running, portion)
        if not missing:
            return
        groups = grouped(missing, self._group_size)
        with closing(in_turn(groups, self._progress(missing))) as handed_out:
            for group in handed_out:
                self._looks.look(group, portion)

    def _drop(self, running: Sequence[Architecture], portion: int, keep: int) -> list[Architecture]:
        """Those that go on, in the order given: after the last portion all."""
        if portion == len(self._looks.images) - 1 or len(running) <= keep:
            return list(running)
        found = dict(zip(running, self._looks.scores(running, portion)))
        if math.isnan(found[running[0]][0]):
            return list(running)  # no object on the images so far

        leading = max(keep, math.ceil(LEADING * len(running)))
        behind = dict(zip(running, fractions_behind(list(found.values()), leading)))
        # Candidates that are alike may all be behind in most bootstraps.
        safe = sorted(running, key=lambda a: (behind[a], -found[a][0], str(a)))[:keep]
        kept = []
        for architecture in running:
            if behind[architecture] < self._confidence or architecture in safe:
                kept.append(architecture)
            else:
                self._say(architecture, portion, found, behind[architecture])
        return kept

    def _say(
        self,
        architecture: Architecture,
        portion: int,
        found: dict[Architecture, list[float]],
        behind: float,
    ) -> None:
        leader = max(found, key=lambda a: (found[a][0], str(a)))
        phase = f"{self._phase} race {self._name}"
        if self._verdicts.score(phase, str(architecture)) is None:
            self._verdicts.add(
                {
                    "phase": phase,
                    "architecture": str(architecture),
                    "score": found[architecture][0],
                    "images": self._looks.images[portion],
                    "leader": str(leader),
                    "leader_score": found[leader][0],
                    "racing": len(found),
                    "behind": behind,
                }
            )

    def _finish(self, running: Sequence[Architecture]) -> list[Candidate]:
        """Best first; those that are not journalled yet are, in the order given."""
        new = [a for a in running if self._journal.score(self._phase, str(a)) is None]
        for architecture, scores in zip(new, self._looks.scores(new, len(self._looks.images) - 1)):
            record = {"phase": self._phase, "architecture": str(architecture), "score": scores[0]}
            self._journal.add({**record, **self._costs(architecture)})
        return ranked(journalled(self._journal, self._phase, a, self._costs) for a in running)


def fractions_behind(scores: Sequence[Sequence[float]], leading: int) -> list[float]:
    """In what fraction of the bootstraps each candidate is not among the ``leading`` best.

    Args:
        scores: of each candidate, the one over the images seen, then over the bootstraps.
    """
    bootstraps = list(zip(*(found[1:] for found in scores)))
    least = [sorted(drawn)[-leading] for drawn in bootstraps]
    return [sum(score < low for score, low in zip(found[1:], least)) / len(least) for found in scores]


def portions(count: int) -> list[int]:
    """Where the portions of ``count`` batches end, ascending; few batches have fewer portions."""
    return sorted({max(1, round(count * fraction)) for fraction in PORTIONS})
