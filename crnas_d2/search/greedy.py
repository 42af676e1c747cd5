"""Greedy dilation search: partial codes grow block by block (paper, Sec. 3.3.2, Algorithm 1)."""

from __future__ import annotations

from crnas_d2.search.journal import Candidate
from crnas_d2.search.race import Compare
from crnas_d2.space import DilationSpace


def greedy_search(space: DilationSpace, compare: Compare, top_k: int, keep: int = 1) -> list[Candidate]:
    """The candidates of the last block, whole codes, best first; ``top_k`` is at least 1.

    ``keep``: as in stage_search.
    """
    kept, best = [space.root], []
    while not kept[0].is_complete:
        best = compare([longer for code in kept for longer in space.extensions(code)], max(top_k, keep))
        kept = [candidate.architecture for candidate in best[:top_k]]
    return best
