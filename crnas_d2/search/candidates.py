"""Candidates: architectures with their costs and score, and the one order they are ranked in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from crnas_d2.architecture import Architecture
from crnas_d2.search.journal import Journal

# Scores of a group of candidates, in their order: AP in 0..100, the same on every process.
Score = Callable[[Sequence[Architecture]], Sequence[float]]
# Costs of a candidate by name; "macs" (multiply-accumulates) breaks ties.
Costs = Callable[[Architecture], Mapping[str, float]]
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


def score_all(
    architectures: Sequence[Architecture],
    *,
    step: str,
    score: Score,
    costs: Costs,
    journal: Journal,
    progress: Progress = iter,
) -> list[Candidate]:
    """Score what the journal does not hold yet, journalling each result before the next begins."""
    candidates = []
    for architecture in progress(architectures):
        known = journal.score(step, str(architecture))
        if known is None:
            start = time.perf_counter()
            (known,) = score([architecture])
            journal.add(
                {
                    "step": step,
                    "architecture": str(architecture),
                    "score": known,
                    **costs(architecture),
                    "seconds": round(time.perf_counter() - start, 3),
                }
            )
        candidates.append(Candidate(architecture, known, costs(architecture)))
    return candidates
