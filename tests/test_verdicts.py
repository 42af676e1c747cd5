"""A run's noise and verdicts, on networks whose trainings are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectors import TINY

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import read_config
from crnas_d2.pipeline.contest import Contest
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.trainings import ARCHTRAIN, LONGER, Network

BASELINE, *OTHERS = (
    Architecture.undilated("resnet", code) for code in [(1, 2, 1, 1), (2, 1, 1, 1), (1, 1, 1, 2)]
)
BUDGET = Budget.parse(5)
Score = Callable[[Architecture, int], float]


class MadeUp:
    """Trainings without training: ``score`` gives a score, or raises."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self.records: dict[tuple[Network, str, int], dict[str, Any]] = {}

    def __call__(self, network: Network, data: str, number: int) -> float:
        key = (network, data, number)
        if key not in self.records:
            score = self._score(network.architecture, number) + (3.0 if data == LONGER else 0.0)
            self.records[key] = {"score": score}
        return self.records[key]["score"]

    def failed(self, network: Network, data: str, number: int, why: str) -> None:
        self.records[network, data, number] = {"score": 0.0, "failed": why}

    def of(self, network: Network, data: str) -> list[dict[str, Any]]:
        return [r for key, r in self.records.items() if key[:2] == (network, data)]

    def matches(self, network: Network, data: str, seeds: int) -> list[Any]:
        return []


@pytest.fixture
def contest(tmp_path: Path) -> Callable[..., Contest]:
    def make(score: Score, *options: Any) -> Contest:
        cfg = read_config("", [*TINY, "SEARCH.FINALISTS.NUM", 2, *options])
        (tmp_path / "base.yaml").write_text(read_config("", TINY).dump())
        return Contest(Plan(cfg, {BUDGET: str(tmp_path / "base.yaml")}, "", None), MadeUp(score))

    return make


def test_verdicts(contest: Callable[..., Contest]) -> None:
    """Of three seeds, 0.1 apart, and a second network that is so much better."""
    for gain, says in ((5.0, "better"), (0.05, "not told apart"), (-1.0, "the baseline stands")):
        one = contest(lambda a, n, gain=gain: 50 + 0.1 * n + gain * (a == OTHERS[0]))
        best, facts = one.choose(BUDGET, OTHERS)
        assert facts["says"] == says and best == (BASELINE if gain < 0 else OTHERS[0])
        assert says.split()[0] in facts["text"] and facts["finalists"] == 2
        if gain > 0:
            assert facts["low"] < facts["difference"] < facts["high"]
            assert facts["difference"] == pytest.approx(gain)
            assert "of seeds alone" in facts["text"]  # nobody knows the images here


def test_a_finalist_that_diverges_is_not_the_end(contest: Callable[..., Contest]) -> None:
    def score(architecture: Architecture, number: int) -> float:
        if architecture == OTHERS[0]:
            raise FloatingPointError("the loss is nan")
        return 50 + 0.1 * number + (architecture == OTHERS[1])

    one = contest(score)
    for _ in range(2):  # and resumed: it is not tried again
        best, facts = one.choose(BUDGET, OTHERS)
        assert best == OTHERS[1] and facts["says"] == "better" and facts["finalists"] == 2
    failed = one.trainings.of(Network(OTHERS[0], next(iter(one.plan.bases.values()))), ARCHTRAIN)
    assert [record["failed"] for record in failed] == ["the loss is nan"]


def test_a_baseline_that_diverges_is(contest: Callable[..., Contest]) -> None:
    def score(architecture: Architecture, number: int) -> float:
        raise FloatingPointError("the loss is nan")

    with pytest.raises(FloatingPointError):
        contest(score).choose(BUDGET, OTHERS)


def test_the_winner_of_the_stage_search_is_not_dropped(contest: Callable[..., Contest]) -> None:
    """By one seed of a dilated code, while all of its own are known."""
    rates = Architecture("resnet", (2, 1, 1, 1), (0, 0, 0, 0, 1))
    aps = {OTHERS[0]: [50.2, 53.0, 53.0], rates: [51.0, 50.0, 50.0], OTHERS[1]: [49.0] * 3}
    one = contest(lambda a, n: aps.get(a, [50.0] * 3)[n])
    assert one.choose(BUDGET, OTHERS)[0] == OTHERS[0]
    best, facts = one.choose(BUDGET, [rates], OTHERS[0])
    assert best == OTHERS[0] and facts["finalists"] == 3 and facts["scores"] == aps[OTHERS[0]]


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_seed_judges_nothing(contest: Callable[..., Contest], seeds: int) -> None:
    options = ["SEARCH.FINALISTS.SEEDS", seeds, "SEARCH.FINALISTS.TRY_LONGER", True]
    one = contest(lambda a, n: 50 + 0.1 * n + (a == OTHERS[0]), *options)
    if seeds == 1:  # made-up trainings have no matches, which noise needs
        (noise,) = one.noise()
        assert "one seed says nothing" in noise["text"] and "the schedule is short" not in noise["text"]
        assert noise["longer"] == 53.0
    _, facts = one.choose(BUDGET, OTHERS)
    assert (facts["low"] is None) == (seeds == 1)
    assert facts["says"] == ("not told apart" if seeds == 1 else "better")
    json.dumps(facts, allow_nan=False)
