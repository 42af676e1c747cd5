"""The paper's two searches over a score of your own, such as a proxy that costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, BudgetSpec
from crnas_d2.errors import InputError
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Candidate, ranked
from crnas_d2.search.stage import stage_search
from crnas_d2.space import FAMILY_DEPTHS, DilationSpace, StageSpace, block_costs


def find(
    score: Callable[[Architecture], float],
    family: str = "resnet",
    budget: BudgetSpec = 16,
    top_k: int = 3,
) -> Candidate:
    """The best network: of all stage codes with rate 1 (paper, Sec. 3.3.1), then its rates (3.3.2).

    Args:
        score: of a whole architecture, higher is better; blocks without a rate yet have rate 1.
        family: resnet_basic, resnet, resnext or mobilenetv2, with the paper's space.
        budget: in (weighted) blocks, such as 8, 16 or 33.
        top_k: codes that the greedy search keeps after each block, at least 1.

    Raises InputError: no such family, ``top_k`` below 1, or no code meets the budget.
    """
    if family not in FAMILY_DEPTHS:
        raise InputError(f"family: {family!r}: allowed are {', '.join(FAMILY_DEPTHS)}")
    if top_k < 1:
        raise InputError(f"top_k: {top_k}: at least 1 is needed")

    def costs(architecture: Architecture) -> Mapping[str, float]:
        return {**block_costs(architecture), "macs": 0.0}  # by which ties are broken

    def compare(architectures: Sequence[Architecture], keep: int) -> list[Candidate]:
        return ranked(Candidate(a, score(_whole(a)), costs(a)) for a in architectures)

    stages = StageSpace(family, FAMILY_DEPTHS[family])
    best = stage_search(stages, Budget.parse(budget), compare, costs)[0].architecture
    return greedy_search(DilationSpace(family, best.stage_code), compare, top_k)[0]


def _whole(architecture: Architecture) -> Architecture:
    return architecture.extended([0] * (architecture.blocks - len(architecture.dilation_code)))
