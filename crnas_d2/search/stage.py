"""Stage search: every eligible stage code is scored, the best one wins (paper, Sec. 3.3.1, Eq. 1)."""

from __future__ import annotations

from crnas_d2.budget import Budget, Costs
from crnas_d2.search.journal import Candidate
from crnas_d2.search.race import Compare
from crnas_d2.space import StageSpace


def stage_search(
    space: StageSpace, budget: Budget, compare: Compare, costs: Costs, keep: int = 1
) -> list[Candidate]:
    """The codes of the space whose cost is the budget, best first; InputError if there is none.

    ``keep``: how many have to see all of archval.
    """
    return compare(space.eligible(budget, costs), keep)
