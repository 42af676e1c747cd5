"""Random search: different eligible architectures, drawn uniformly, are scored.

The plain alternative to stage.py and greedy.py for spaces too large for them, and what evolution.py
starts from. Which ones are drawn is a function of the seed alone.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, BudgetSpec, Costs
from crnas_d2.search.candidates import Candidate, Compare
from crnas_d2.seeding import derive_seed
from crnas_d2.space import Space

DRAWS = 100_000  # codes that are looked at, at most; a space that is no larger is gone through


def _codes(alternatives: tuple[tuple[int, ...], ...], rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Different codes in random order: all there are if ``DRAWS`` suffice, else as many as it finds."""
    if math.prod(map(len, alternatives)) <= DRAWS:
        codes = list(itertools.product(*alternatives))
        rng.shuffle(codes)
        yield from codes
        return
    seen = set()
    for _ in range(DRAWS):
        code = tuple(map(rng.choice, alternatives))
        if code not in seen:
            seen.add(code)
            yield code


def eligible_draws(space: Space, budget: BudgetSpec, costs: Costs, seed: int) -> Iterator[Architecture]:
    """Different architectures of the space that meet the budget, uniformly, one after another.

    All of them if the space has at most ``DRAWS`` codes. Costs are asked for as they are drawn.

    Raises:
        InputError: there was none.
    """
    budget, found = Budget.parse(budget), False

    def drawn() -> Iterator[Architecture]:
        rng = random.Random(derive_seed(seed, "random search"))
        return map(space.with_code, _codes(space.alternatives, rng))

    for architecture in drawn():
        if budget.meets(costs(architecture)):
            found = True
            yield architecture
    if not found:
        budget.within(drawn(), costs)  # raises


def random_search(
    space: Space, budget: BudgetSpec, compare: Compare, costs: Costs, evaluations: int, seed: int
) -> list[Candidate]:
    """The drawn candidates, best first.

    Args:
        evaluations: candidates to score, at least 1; fewer if no more meet the budget.
        seed: of the draws; more evaluations with the same seed score the same candidates and others.

    Raises:
        InputError: no code meets the budget.
    """
    drawn = itertools.islice(eligible_draws(space, budget, costs, seed), evaluations)
    return compare(sorted(drawn, key=space.code_of), 1)  # neighbours share most
