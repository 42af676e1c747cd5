"""Greedy dilation search: partial codes grow block by block (paper, Sec. 3.3.2, Algorithm 1)."""

from __future__ import annotations

from crnas_d2.search.journal import Candidate
from crnas_d2.search.race import Compare
from crnas_d2.space import DilationSpace

TOP_K = 3  # partial codes kept after each block (paper, Sec. 3.3.2)


def greedy_search(space: DilationSpace, compare: Compare, top_k: int = TOP_K) -> list[Candidate]:
    """The candidates of the last block, whole codes, best first.

    Every step extends each kept partial code by each rate: 3 evaluations in the first choice block
    and at most ``3 * top_k`` in each later one. Scoring draws what a partial code leaves open.

    Args:
        top_k: partial codes kept after each block, at least 1.
    """
    kept = [space.root]
    best: list[Candidate] = []
    for _ in range(space.choices):
        extended = [longer for partial in kept for longer in space.extensions(partial)]
        best = compare(extended, top_k)
        kept = [candidate.architecture for candidate in best[:top_k]]
    return best
