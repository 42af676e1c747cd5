"""Stage search: every eligible stage code is scored, the best one wins (paper, Sec. 3.3.1, Eq. 1)."""

from __future__ import annotations

from crnas_d2.budget import Costs, Entry
from crnas_d2.search.candidates import Candidate, Progress, Score, ranked, score_all
from crnas_d2.search.journal import Journal
from crnas_d2.space import StageSpace


def stage_search(
    space: StageSpace,
    budget: Entry,
    score: Score,
    costs: Costs,
    journal: Journal,
    progress: Progress = iter,
    group_size: int = 1,
) -> list[Candidate]:
    """All codes of the space whose cost is the budget, best first.

    Args:
        group_size: candidates scored, and journalled, together.

    Raises:
        InputError: no code meets the budget.
    """
    return ranked(
        score_all(
            space.eligible(budget, costs),
            step=space.step,
            score=score,
            costs=costs,
            journal=journal,
            group_size=group_size,
            progress=progress,
        )
    )
