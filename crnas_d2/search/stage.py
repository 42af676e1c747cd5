"""Stage search: every eligible stage code is scored, the best one wins (paper, Sec. 3.3.1, Eq. 1)."""

from __future__ import annotations

from crnas_d2.search.candidates import Candidate, Costs, Progress, Score, ranked, score_all
from crnas_d2.search.journal import Journal
from crnas_d2.space import StageSpace


def stage_search(
    space: StageSpace,
    budget: float,
    score: Score,
    costs: Costs,
    journal: Journal,
    progress: Progress = iter,
) -> list[Candidate]:
    """All codes of the space whose cost is the budget, best first.

    Raises:
        InputError: no code meets the budget.
    """
    return ranked(
        score_all(
            space.eligible(budget),
            step="stage",
            score=score,
            costs=costs,
            journal=journal,
            progress=progress,
        )
    )
