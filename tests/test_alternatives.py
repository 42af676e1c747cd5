"""Evolution and random search, on scores that cost nothing."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
from fake_scorer import SMALL_SPACE, FakeScorer, alternative, arbitrary, costs, in_memory

from crnas_d2.architecture import Architecture
from crnas_d2.budget import BudgetSpec
from crnas_d2.errors import InputError
from crnas_d2.search.alternatives import GENERATION, PARENTS, evolution, random_search
from crnas_d2.search.journal import Candidate, ranked
from crnas_d2.space import FAMILY_DEPTHS, RESNET_DEPTHS, DilationSpace, Space, StageSpace

ALTERNATIVES: dict[str, Callable[..., list[Candidate]]] = dict(
    evolution=evolution, random=random_search
)
STAGES = StageSpace("resnet", RESNET_DEPTHS)
DIGITS = DilationSpace("resnet", (3, 4, 6, 3))
LARGE = DilationSpace("resnet", (3, 4, 23, 3))  # 3 ** 33 codes
MOBILENET = StageSpace("mobilenetv2", FAMILY_DEPTHS["mobilenetv2"])
PROBLEMS: dict[str, tuple[Space, BudgetSpec]] = {
    "stages": (STAGES, 33),
    "stages, macs": (STAGES, {"macs": [80, 0.05]}),
    "stages, two limits": (STAGES, {"blocks": [33, 0.1], "macs": [80, 0.05]}),
    "mobilenet's stages": (MOBILENET, {"blocks": [16, 0.05]}),
    "digits": (DIGITS, 16),
    "many digits": (LARGE, 33),
}
PROBLEM = pytest.mark.parametrize("problem", PROBLEMS)
ALTERNATIVE = pytest.mark.parametrize("name", ALTERNATIVES)


def separable(space: Space, seed: int) -> Callable[[Architecture], float]:
    """What an entry of the code adds depends on that entry alone."""
    rng = random.Random(seed)
    table = [{value: rng.random() for value in values} for values in space.alternatives]
    return lambda a: sum(row[value] for row, value in zip(table, space.code_of(a)))


@ALTERNATIVE
@PROBLEM
def test_different_eligible_candidates_as_many_as_asked_for(problem: str, name: str) -> None:
    space, entry = PROBLEMS[problem]
    scorer = FakeScorer()
    found = alternative(ALTERNATIVES[name], space, entry, scorer, evaluations=50, seed=2)
    assert len(scorer.calls) == len(set(scorer.calls)) == 50
    assert all(a in space and a.is_complete for a in scorer.calls)
    if isinstance(space, StageSpace):
        assert set(scorer.calls) <= set(space.eligible(entry, costs))
    assert sorted(map(str, scorer.calls)) == sorted(str(c.architecture) for c in found)
    assert found == ranked(found)


@ALTERNATIVE
@PROBLEM
def test_the_course_is_a_function_of_the_seed(problem: str, name: str) -> None:
    space, entry = PROBLEMS[problem]

    def calls(seed: int, global_seed: str) -> list[Architecture]:
        scorer = FakeScorer()
        random.seed(global_seed)  # a state that no search may look at
        alternative(ALTERNATIVES[name], space, entry, scorer, evaluations=50, seed=seed)
        return scorer.calls

    assert calls(0, "a") == calls(0, "b")
    assert set(calls(0, "c")) != set(calls(1, "d"))


@PROBLEM
def test_evolution_is_no_worse_than_random_search(problem: str) -> None:
    """On a separable score, with equally many evaluations, on the mean; with digits for every seed."""
    space, entry = PROBLEMS[problem]
    scores: dict[str, list[float]] = {name: [] for name in ALTERNATIVES}
    for seed in range(6):
        for name, search in ALTERNATIVES.items():
            scorer = FakeScorer(separable(space, seed))
            found = alternative(search, space, entry, scorer, evaluations=120, seed=seed)
            assert len(scorer.calls) == 120
            scores[name].append(found[0].score)
    assert sum(scores["evolution"]) > sum(scores["random"])
    if isinstance(space, DilationSpace):
        assert all(e > r for e, r in zip(scores["evolution"], scores["random"]))


@pytest.mark.parametrize("seed", range(4))
def test_evolution_finds_the_best_of_a_small_space(seed: int) -> None:
    """Of 729 codes, with 120 evaluations of a separable score."""
    space = DilationSpace("resnet", (1, 1, 2, 2))
    score = separable(space, seed)
    found = alternative(evolution, space, 6, FakeScorer(score), evaluations=120, seed=seed)
    best = max((space.with_code(code) for code in itertools.product(*space.alternatives)), key=score)
    assert found[0].architecture == best


@ALTERNATIVE
@pytest.mark.parametrize(
    ("space", "entry", "count"),
    [
        (STAGES, 8, 9),
        (STAGES, 6, 1),
        (DilationSpace("resnet", (1, 1, 2, 1)), 5, 3**5),
        (StageSpace("resnet", ((1,), (1,), (2,), (2,))), 6, 1),
    ],
    ids=str,
)
def test_a_small_space_is_gone_through(name: str, space: Space, entry: float, count: int) -> None:
    scorer = FakeScorer()
    found = alternative(ALTERNATIVES[name], space, entry, scorer, evaluations=1000)
    assert len(scorer.calls) == len(set(scorer.calls)) == len(found) == count
    assert found[0].score == max(map(arbitrary, scorer.calls))


@pytest.mark.parametrize("space", [STAGES, LARGE], ids=["stages", "many digits"])
def test_more_evaluations_of_a_random_search_are_more_of_the_same(space: Space) -> None:
    few, many = FakeScorer(), FakeScorer()
    alternative(random_search, space, 33, few, evaluations=10)
    alternative(random_search, space, 33, many, evaluations=30)
    assert set(few.calls) < set(many.calls)


def test_random_search_draws_uniformly() -> None:
    """Nine codes, 900 seeds: 100 draws of each, with a standard deviation of 9.4."""
    drawn = []
    for seed in range(900):
        drawn += alternative(random_search, SMALL_SPACE, 8, FakeScorer(), evaluations=1, seed=seed)
    counts = Counter(candidate.architecture for candidate in drawn).values()
    assert len(counts) == 9 and sum(counts) == 900
    assert all(abs(count - 100) < 4 * 9.4 for count in counts)


def test_several_budgets_score_every_candidate_once() -> None:
    journal, scorer = in_memory(), FakeScorer()
    for entry in ({"blocks": [16, 0.2]}, {"macs": [40, 0.2]}):  # with many codes in common
        assert len(alternative(evolution, STAGES, entry, scorer, journal, evaluations=60)) == 60
    assert len(scorer.calls) == len(set(scorer.calls)) == len(journal.records)


@ALTERNATIVE
def test_a_budget_that_no_code_drawn_meets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = FakeScorer()

    def call(entry: object) -> str:
        with pytest.raises(InputError, match=r"SEARCH\.BUDGETS: (61|macs 1 .*): none of ") as caught:
            alternative(ALTERNATIVES[name], STAGES, entry, scorer, evaluations=10)
        return str(caught.value)

    assert "of 10000 codes" in call(61) and "nearest: 58, 59, 60" in call(61)
    assert "macs from 13 to " in call({"macs": [1, 0.01]})
    monkeypatch.setattr("crnas_d2.search.alternatives.DRAWS", 500)  # as if the space were larger
    drawn = re.search(r"none of (\d+) codes", call(61))
    assert drawn is not None and 450 < int(drawn[1]) < 500  # some came twice
    assert not scorer.calls


def test_evolution_breeds_from_the_best() -> None:
    """All entries of a child are those of the best before it, but for one if it is a mutant."""
    scorer = FakeScorer(separable(DIGITS, 0))
    alternative(evolution, DIGITS, 16, scorer, evaluations=2 * GENERATION)
    first, second = scorer.calls[:GENERATION], scorer.calls[GENERATION:]
    parents = sorted(first, key=separable(DIGITS, 0), reverse=True)[:PARENTS]
    columns = [set(values) for values in zip(*(a.dilation_code for a in parents))]
    strange = [
        sum(digit not in column for digit, column in zip(child.dilation_code, columns))
        for child in second
    ]
    assert len(second) == GENERATION and max(strange) <= 1
    assert strange.count(0) >= GENERATION // 2
