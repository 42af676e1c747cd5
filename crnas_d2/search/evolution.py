"""Evolutionary search: the best candidates so far are mutated and crossed, within the budget.

The alternative to stage.py and greedy.py that learns from its scores, for spaces too large for them.
Its course is a function of the seed and the scores: with the journal as memo, a search that was cut
short goes on as if it had not been.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, BudgetSpec, Costs
from crnas_d2.search.candidates import Candidate, Compare, ranked
from crnas_d2.search.random_search import eligible_draws
from crnas_d2.seeding import derive_seed
from crnas_d2.space import Space

GENERATION = 10  # candidates scored before the next parents are chosen; the first ones are drawn
PARENTS = 5  # the best so far
TRIES = 200  # for one child that is new and meets the budget; then a random candidate takes its place


def evolution(
    space: Space, budget: BudgetSpec, compare: Compare, costs: Costs, evaluations: int, seed: int
) -> list[Candidate]:
    """The candidates, best first.

    Args:
        evaluations: candidates to score, at least 1; fewer if no more meet the budget.
        seed: of all draws; the first generation is that of a random search with this seed.

    Raises:
        InputError: no code meets the budget.
    """
    budget = Budget.parse(budget)
    rng = random.Random(derive_seed(seed, "evolution"))
    newcomers = eligible_draws(space, budget, costs, seed)
    generation = list(itertools.islice(newcomers, min(GENERATION, evaluations)))
    found: list[Candidate] = []
    seen: set[Architecture] = set()
    while generation:
        found += compare(sorted(generation, key=space.code_of), PARENTS)  # neighbours share most
        best = [space.code_of(candidate.architecture) for candidate in ranked(found)[:PARENTS]]
        seen.update(generation)
        generation = []
        for number in range(min(GENERATION, evaluations - len(seen))):
            bred = _mutants(space, best, rng) if number % 2 else _crossings(space, best, rng)
            within = (a for a in bred if a not in seen and budget.meets(costs(a)))
            new = (a for a in newcomers if a not in seen)
            child = next(itertools.chain(within, new), None)
            if child is not None:
                seen.add(child)
                generation.append(child)
    return ranked(found)


def _mutants(
    space: Space, parents: list[tuple[int, ...]], rng: random.Random
) -> Iterator[Architecture]:
    """A parent with one entry changed; with more and more of them, the longer that gives nothing.

    One changed depth never keeps a number of blocks.
    """
    alternatives = space.alternatives
    free = [i for i, values in enumerate(alternatives) if len(values) > 1]
    for number in range(TRIES if free else 0):
        code = list(rng.choice(parents))
        for i in rng.sample(free, 1 + number * len(free) // TRIES):
            code[i] = rng.choice([value for value in alternatives[i] if value != code[i]])
        yield space.with_code(code)


def _crossings(
    space: Space, parents: list[tuple[int, ...]], rng: random.Random
) -> Iterator[Architecture]:
    """Each entry from one of two parents."""
    for _ in range(TRIES):
        pair = rng.choice(parents), rng.choice(parents)
        yield space.with_code([rng.choice(values) for values in zip(*pair)])
