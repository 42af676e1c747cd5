"""A run's noise and verdicts, on networks whose trainings are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectors import TINY
from made_up import MadeUp, Score

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import read_config
from crnas_d2.pipeline.contest import Contest
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.table import retrain
from crnas_d2.pipeline.trainings import Network, baseline_of

BASELINE, *OTHERS = (
    Architecture.undilated("resnet", code) for code in [(1, 2, 1, 1), (2, 1, 1, 1), (1, 1, 1, 2)]
)
BUDGET = Budget.parse(5)


@pytest.fixture
def contest(tmp_path: Path) -> Callable[..., Contest]:
    def make(score: Score, *options: Any, images: float = 0) -> Contest:
        cfg = read_config("", [*TINY, "SEARCH.FINALISTS.NUM", 2, *options])
        (tmp_path / "base.yaml").write_text(read_config("", TINY).dump())
        plan = Plan(cfg, {BUDGET: str(tmp_path / "base.yaml")}, "", None)
        return Contest(plan, MadeUp(score, images))

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
    best, facts = one.choose(BUDGET, OTHERS)
    assert best == OTHERS[1] and facts["says"] == "better" and facts["finalists"] == 2
    assert facts["high"] - facts["low"] < 1  # its score of 0 is not in the spread of seeds


@pytest.mark.parametrize(("images", "half"), [(0.0, 0.285), (40.0, 3.66)])
def test_the_interval_of_a_verdict(contest: Callable[..., Contest], images: float, half: float) -> None:
    """By hand: the best of two, so 97.5 % each way; seeds 0.1 apart, with 4 degrees of freedom.

    Student's t is 3.495 there, for 0.1 * sqrt(2 / 3). 400 images whose values differ by 40 make a mean
    uncertain by 2; that of three seeds by 2 / sqrt(3), the difference of two networks by
    sqrt(2) times that, which the normal distribution's 2.241 makes 3.66.
    """
    one = contest(lambda a, n: 50 + 0.1 * n + 5 * (a == OTHERS[0]), images=images)
    _, facts = one.choose(BUDGET, OTHERS)
    assert facts["difference"] == pytest.approx(5.0)
    assert (facts["high"] - facts["low"]) / 2 == pytest.approx(half, rel=0.1)
    assert "best of 2 finalists, 3 seeds, 400 images" in facts["text"]
    assert ("of seeds alone" in facts["text"]) == (not images)


def test_the_table_compares_with_the_baseline(contest: Callable[..., Contest]) -> None:
    """By hand, as above, for one network, with 95 %: Student's t is 2.776 with 4 degrees of freedom."""
    one = contest(lambda a, n: 50 + 0.1 * n - 2 * (a == OTHERS[0]), "SEARCH.RETRAIN.SEEDS", 3)
    base = next(iter(one.plan.bases.values()))
    networks = {"baseline": baseline_of(one.plan, base), "found": Network(OTHERS[0], base)}
    rows = retrain(one.plan, one.trainings, networks)
    assert [(r["network"], r["seed"]) for r in rows] == [
        (name, seed) for name in networks for seed in (0, 1, 2, "mean")
    ]
    found = rows[-1]
    assert found["AP"] == pytest.approx(48.1) and found["spread of seeds"] == pytest.approx(0.1)
    assert found["to the baseline"] == pytest.approx(-2.0) and found["verdict"] == "worse"
    half = 2.776 * 0.1 * (2 / 3) ** 0.5
    ends = found["95 % low"], found["95 % high"]
    assert ends == pytest.approx((-2 - half, -2 + half), abs=0.02)
    assert "to the baseline" not in rows[3]


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
    (noise,) = one.noise()
    assert ("one seed says nothing" in noise["text"]) == (seeds == 1)
    assert ("the schedule is short" in noise["text"]) == (seeds > 1)
    assert noise["longer"] == 53.0
    _, facts = one.choose(BUDGET, OTHERS)
    assert (facts["low"] is None) == (seeds == 1)
    assert facts["says"] == ("not told apart" if seeds == 1 else "better")
    json.dumps(facts, allow_nan=False)
