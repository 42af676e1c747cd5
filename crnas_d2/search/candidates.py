"""Candidates: architectures with their costs and score, and the one order they are ranked in."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs
from crnas_d2.search.journal import Journal

Group = Sequence[Architecture]
Done = Callable[[Group, list[float]], None]
# Scores one group after another: AP in 0..100, the same on every process. It calls Done with each group
# and its scores, in order and perhaps in another thread, while it goes on with the next group.
Score = Callable[[Iterable[Group], Done], None]
# Finds the best of the candidates, of which a search goes on with so many: those that are told apart on
# all of archval, best first. A search calls it once, or for one generation or block after another.
Compare = Callable[[Sequence[Architecture], int], list["Candidate"]]
# Wraps what is iterated to show a progress bar, as tqdm does.
Progress = Callable[[Sequence[Architecture]], Iterable[Architecture]]


@dataclass(frozen=True)
class Candidate:
    """An architecture with its score (AP, 0..100, unrounded) and costs."""

    architecture: Architecture
    score: float
    costs: Mapping[str, float]


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best first. Ties go to fewer multiply-accumulates, then to the text form: one answer."""
    return sorted(candidates, key=lambda c: (-c.score, c.costs["macs"], str(c.architecture)))


def journalled(journal: Journal, phase: str, architecture: Architecture, costs: Costs) -> Candidate:
    """The candidate as it stands in the journal."""
    score = journal.score(phase, str(architecture))
    assert score is not None
    return Candidate(architecture, score, costs(architecture))


def grouped(architectures: Sequence[Architecture], size: int) -> list[list[Architecture]]:
    """Neighbours in groups of at most ``size``, to be scored together.

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


def in_turn(groups: Iterable[Group], shown: Iterable[Architecture]) -> Generator[Group, None, None]:
    """Each group when its first member's turn has come in what is shown by a progress bar.

    To be closed after use: an error would leave the bar open, to be printed below the error.
    """
    first = {group[0]: group for group in groups}
    for architecture in shown:
        if architecture in first:
            yield first[architecture]


class ScoreAll:
    """Scores every candidate on all of archval, as the paper does.

    A line of the journal has the costs, too, and the seconds from the start of its group to the scores,
    divided by the group's size; they overlap with the next group's.

    Args:
        phase: the space's, which stands in every line of the journal.
        score: of groups.
        costs: of an architecture.
        journal: what stands in it is not scored again; each group is written as soon as it is scored.
        progress: wraps each call's architectures.
        group_size: candidates scored, and journalled, together, at most.
    """

    def __init__(
        self,
        phase: str,
        score: Score,
        costs: Costs,
        journal: Journal,
        progress: Progress = iter,
        group_size: int = 1,
    ) -> None:
        self._phase = phase
        self._score = score
        self._costs = costs
        self._journal = journal
        self._progress = progress
        self._group_size = group_size
        self._started: list[float] = []  # when each group that is under way was handed out

    def __call__(self, architectures: Sequence[Architecture], keep: int) -> list[Candidate]:
        """All of them, best first, however few the search goes on with."""

        def is_new(architecture: Architecture) -> bool:
            return self._journal.score(self._phase, str(architecture)) is None

        groups = grouped(list(filter(is_new, architectures)), self._group_size)
        with closing(in_turn(groups, self._progress(architectures))) as handed_out:
            self._score(map(self._note_start, handed_out), self._add)
        return ranked(journalled(self._journal, self._phase, a, self._costs) for a in architectures)

    def _note_start(self, group: Group) -> Group:
        self._started.append(time.perf_counter())
        return group

    def _add(self, group: Group, scores: list[float]) -> None:
        seconds = (time.perf_counter() - self._started.pop(0)) / len(group)
        for member, found in zip(group, scores):
            self._journal.add(
                {
                    "phase": self._phase,
                    "architecture": str(member),
                    "score": found,
                    **self._costs(member),
                    "seconds": round(seconds, 3),
                }
            )
