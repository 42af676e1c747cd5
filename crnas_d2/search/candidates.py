"""Candidates: architectures with their costs and score, and the one order they are ranked in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs
from crnas_d2.search.journal import Journal

# Scores of a group of candidates, in their order: AP in 0..100, the same on every process.
Score = Callable[[Sequence[Architecture]], Sequence[float]]
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


def score_all(
    architectures: Sequence[Architecture],
    *,
    step: str,
    score: Score,
    costs: Costs,
    journal: Journal,
    progress: Progress = iter,
    group_size: int = 1,
) -> list[Candidate]:
    """Score what the journal does not hold yet, journalling each group before the next begins."""

    def is_new(architecture: Architecture) -> bool:
        return journal.score(step, str(architecture)) is None

    groups = grouped(list(filter(is_new, architectures)), group_size)
    group_of = {architecture: group for group in groups for architecture in group}
    candidates = []
    for architecture in progress(architectures):
        if is_new(architecture):
            group = group_of[architecture]
            start = time.perf_counter()
            scores = score(group)
            seconds = (time.perf_counter() - start) / len(group)
            for member, found in zip(group, scores):
                journal.add(
                    {
                        "step": step,
                        "architecture": str(member),
                        "score": found,
                        **costs(member),
                        "seconds": round(seconds, 3),
                    }
                )
        known = journal.score(step, str(architecture))
        assert known is not None  # the group has just been journalled
        candidates.append(Candidate(architecture, known, costs(architecture)))
    return candidates
