"""Greedy dilation search: partial codes grow block by block (paper, Sec. 3.3.2, Algorithm 1)."""

from __future__ import annotations

from crnas_d2.budget import Costs
from crnas_d2.search.candidates import Candidate, Progress, Score, ranked, score_all
from crnas_d2.search.journal import Journal
from crnas_d2.space import DilationSpace

TOP_K = 3  # partial codes kept after each block (paper, Sec. 3.3.2)


def greedy_search(
    space: DilationSpace,
    score: Score,
    costs: Costs,
    journal: Journal,
    top_k: int = TOP_K,
    progress: Progress = iter,
    group_size: int = 1,
) -> list[Candidate]:
    """The candidates of the last block, whole codes, best first.

    Every step extends each kept partial code by each rate: 3 evaluations in the first choice block
    and at most ``3 * top_k`` in each later one. ``score`` draws what a partial code leaves open.

    Args:
        top_k: partial codes kept after each block, at least 1.
        group_size: candidates scored, and journalled, together.
    """
    kept = [space.root]
    best: list[Candidate] = []
    for _ in range(space.choices):
        extended = [longer for partial in kept for longer in space.extensions(partial)]
        best = ranked(
            score_all(
                extended,
                step=space.step,
                score=score,
                costs=costs,
                journal=journal,
                group_size=group_size,
                progress=progress,
            )
        )
        kept = [candidate.architecture for candidate in best[:top_k]]
    return best
