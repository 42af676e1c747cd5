"""Random search and evolution, for large spaces: functions of the seed and the scores."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.search.journal import Candidate, ranked
from crnas_d2.search.race import Compare
from crnas_d2.seeding import derive_seed
from crnas_d2.space import Space

DRAWS = 100_000  # codes that are tried, at most; a space that is no larger is enumerated
GENERATION = 10  # candidates scored before the next parents are chosen
PARENTS = 5  # the best so far
TRIES = 200  # for a child that is new and meets the budget; then a random candidate takes its place
Codes = Sequence[Sequence[int]]


def random_search(
    space: Space,
    budget: Budget,
    compare: Compare,
    costs: Costs,
    evaluations: int,
    seed: int,
    keep: int = 1,
) -> list[Candidate]:
    """The first ``eligible_draws``, ``evaluations`` of them (at least 1) if there are, best first.

    ``keep``: as in stage_search.
    """
    drawn = itertools.islice(eligible_draws(space, budget, costs, seed), evaluations)
    return compare(sorted(drawn, key=space.code_of), keep)  # neighbours share most


def evolution(
    space: Space,
    budget: Budget,
    compare: Compare,
    costs: Costs,
    evaluations: int,
    seed: int,
    keep: int = 1,
) -> list[Candidate]:
    """As ``random_search``, with which it starts; then it mutates and crosses the best so far."""
    rng = random.Random(derive_seed(seed, "evolution"))
    newcomers = eligible_draws(space, budget, costs, seed)
    generation = list(itertools.islice(newcomers, min(GENERATION, evaluations)))
    found: list[Candidate] = []
    keep = max(keep, PARENTS)
    seen = set(generation)
    while generation:
        found = ranked(found + compare(sorted(generation, key=space.code_of), keep))
        best = [space.code_of(candidate.architecture) for candidate in found[:PARENTS]]
        generation = []
        for number in range(min(GENERATION, evaluations - len(seen))):
            bred = _mutants(space, best, rng) if number % 2 else _crossings(space, best, rng)
            eligible = (a for a in bred if budget.meets(costs(a)))
            children = itertools.chain(eligible, newcomers)
            child = next((a for a in children if a not in seen), None)
            if child is not None:
                seen.add(child)
                generation.append(child)
    return found


def eligible_draws(space: Space, budget: Budget, costs: Costs, seed: int) -> Iterator[Architecture]:
    """Different architectures that meet the budget, uniformly; an InputError if there is none."""
    found = False
    for architecture in _drawn(space, seed):
        if budget.meets(costs(architecture)):
            found = True
            yield architecture
    if not found:
        budget.within(_drawn(space, seed), costs)  # raises


def _drawn(space: Space, seed: int) -> Iterator[Architecture]:
    """Different architectures in random order: all there are, or those of ``DRAWS`` draws."""
    rng, alternatives = random.Random(derive_seed(seed, "random search")), space.alternatives
    codes: Iterable[tuple[int, ...]] = (tuple(map(rng.choice, alternatives)) for _ in range(DRAWS))
    if math.prod(map(len, alternatives)) <= DRAWS:
        codes = list(itertools.product(*alternatives))
        rng.shuffle(codes)
    seen = set()
    for code in codes:
        if code not in seen:
            seen.add(code)
            yield space.with_code(code)


def _mutants(space: Space, parents: Codes, rng: random.Random) -> Iterator[Architecture]:
    """A parent with one entry changed, then with more: one depth alone changes the number of blocks."""
    alternatives = space.alternatives
    free = [i for i, values in enumerate(alternatives) if len(values) > 1]
    for number in range(TRIES if free else 0):
        code = list(rng.choice(parents))
        for i in rng.sample(free, 1 + number * len(free) // TRIES):
            code[i] = rng.choice([value for value in alternatives[i] if value != code[i]])
        yield space.with_code(code)


def _crossings(space: Space, parents: Codes, rng: random.Random) -> Iterator[Architecture]:
    """Each entry from one of two parents."""
    for _ in range(TRIES):
        pair = rng.choice(parents), rng.choice(parents)
        yield space.with_code([rng.choice(values) for values in zip(*pair)])
