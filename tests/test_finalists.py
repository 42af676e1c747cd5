"""Contests of simulated scores: what finalists gain, and how often a verdict is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from detectors import TINY
from made_up import MadeUp

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import read_config
from crnas_d2.evaluation.verdict import Difference, Spread, smallest_difference
from crnas_d2.pipeline.contest import Contest, Facts
from crnas_d2.pipeline.plan import Plan
from crnas_d2.search.finalists import compete, winner
from crnas_d2.space import RESNET_DEPTHS, StageSpace

NO_IMAGES = np.zeros(1)
CODES = StageSpace("resnet", RESNET_DEPTHS).eligible(16)[:150]
SUPERNET = 1.5  # noise of its scores, AP
CONFIG = read_config("", [*TINY, "SEARCH.FINALISTS.NUM", 4, "SEARCH.FINALISTS.SEEDS", 3])
BUDGET = Budget.parse(16)
PAIRS = ((0, 1), (0, 2), (1, 0), (2, 0))  # last digits, of a greedy search's best codes


class Simulation:
    """A search over ``CODES`` whose truth is drawn; ``planted``: AP of one above the baseline."""

    def __init__(
        self, rng: np.random.Generator, truth: float, seeds: float, planted: float = 0
    ) -> None:
        self.rng, self.seeds = rng, seeds
        values = rng.normal(50, truth, len(CODES))
        order = np.argsort(-(values + rng.normal(0, SUPERNET, len(CODES))))
        self.first = [CODES[i] for i in order[:4]]
        self.truth = dict(zip(CODES, values))
        self.baseline = CODES[rng.integers(len(CODES))]
        if planted:
            self.first[rng.integers(4)] = best = CODES[order[5]]
            self.truth[best] = self.truth[self.baseline] + planted

    def train(self, architecture: Architecture, seed: int) -> float:
        return self.truth[architecture] + self.rng.normal(0, self.seeds)

    def run(self) -> tuple[Architecture, Facts]:
        """The contests of both searches; no rate changes anything."""
        CONFIG.MODEL.CRNAS.STAGE_CODE = list(self.baseline.stage_code)
        contest = Contest(Plan(CONFIG, {BUDGET: ""}, "", None), MadeUp(self.train, None))
        first, _ = contest.choose(BUDGET, self.first)
        (*zeros, _) = first.dilation_code
        rates = [Architecture(first.family, first.stage_code, (*zeros[:-1], *pair)) for pair in PAIRS]
        self.truth |= dict.fromkeys(rates, self.truth[first])
        return contest.choose(BUDGET, rates, first)


@pytest.mark.parametrize(("seeds", "times"), [(0.6, 1.3), (1.5, 1.0)])
def test_finalists_gain_more_than_the_first_of_the_supernet(seeds: float, times: float) -> None:
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(600):
        one = Simulation(rng, 1.0, seeds)
        best, base = one.run()[0], one.truth[one.baseline]
        gains.append([one.truth[best] - base, one.truth[one.first[0]] - base])
    ours, first = np.mean(gains, axis=0)
    assert first > 1 and ours > times * first


@pytest.mark.parametrize("seeds", [0.6, 1.5])
def test_equal_networks_are_rarely_called_better(seeds: float) -> None:
    rng = np.random.default_rng(1)
    says = Counter(Simulation(rng, 0.0, seeds).run()[1]["says"] for _ in range(600))
    assert says["better"] <= 0.05 * 600 and says["worse"] <= 0.05 * 600


def test_a_planted_network_is_found_and_called_better() -> None:
    rng, found = np.random.default_rng(2), 0
    for _ in range(300):
        one = Simulation(rng, 0.0, 0.6, planted=3.0)
        best, facts = one.run()
        found += one.truth[best] > one.truth[one.baseline] and facts["says"] == "better"
    assert found >= 0.8 * 300


def named(*codes: Sequence[int]) -> list[Architecture]:
    return [Architecture.undilated("resnet", code) for code in codes]


def test_rounds() -> None:
    """Half of those left stay, the baseline to the end; it is trained once where it is a finalist."""
    *five, baseline = named(
        [1, 5, 5, 5], [2, 4, 5, 5], [5, 1, 5, 5], [5, 5, 1, 5], [5, 5, 5, 1], [3, 4, 6, 3]
    )
    calls: list[tuple[Architecture, int]] = []

    def train(architecture: Architecture, seed: int) -> float:
        calls.append((architecture, seed))
        return {five[1]: 3.0, five[3]: 2.0, baseline: 3.0}.get(architecture, 1.0)

    scores = compete([five[0], baseline, *five[1:]], [baseline], 3, train)
    expected = {
        0: [baseline, *five],
        1: [baseline, five[1], five[3], five[0]],
        2: [baseline, five[1], five[3]],
    }
    assert calls == [(a, seed) for seed, networks in expected.items() for a in networks]
    assert scores == {a: [train(a, 0)] * sum(a in of for of in expected.values()) for a in scores}
    assert winner(scores) == baseline  # as good as the best finalist
    assert winner({**scores, five[0]: [9.0]}) == baseline  # fewer seeds


def test_who_has_all_seeds_already_is_not_dropped_for_the_first() -> None:
    """As the winner of the stage search in the contest of the dilation search."""
    known, baseline, *three = named(
        [1, 5, 5, 5], [3, 4, 6, 3], [2, 4, 5, 5], [5, 1, 5, 5], [5, 5, 1, 5]
    )
    aps = {known: [50.2, 53.0, 53.0], three[0]: [51.0, 50.0, 50.0], three[1]: [50.9] * 3}

    def train(architecture: Architecture, seed: int) -> float:
        return aps.get(architecture, [50.0] * 3)[seed]

    scores = compete(three, [baseline, known], 3, train)
    assert scores[known] == aps[known] and winner(scores) == known


def test_the_spread_is_pooled() -> None:
    found = Spread.of([[1.0, 3.0], [10.0, 10.0, 13.0], [5.0], []])
    assert found.freedom == 3 and found.value == pytest.approx(np.sqrt((2 + 6) / 3))
    assert Spread.of([[1.0], [2.0]]).freedom == 0


def test_intervals_hold_what_they_promise() -> None:
    """Of 95 %, with few seeds and noise of images, over many draws of everything."""
    rng, held, repeats = np.random.default_rng(3), 0, 1000
    for _ in range(repeats):
        ours, theirs = rng.normal(0, 0.6, (2, 3))
        images = rng.normal(0, 0.4, 400)
        found = Difference(ours + rng.normal(0, 0.4), theirs, Spread.of([ours, theirs]), images)
        held += found.interval[0] < 0 < found.interval[1]
    assert 0.94 * repeats <= held <= 0.985 * repeats


def test_one_seed_tells_nothing_apart() -> None:
    found = Difference([60.0], [40.0], Spread.of([[60.0], [40.0]]), NO_IMAGES)
    assert found.says == "not told apart" and found.interval == (-np.inf, np.inf)


def test_more_finalists_widen_the_interval() -> None:
    given = ([51.0, 52.0], [50.0, 50.5], Spread(0.5, 4), NO_IMAGES)
    one, four = Difference(*given).interval, Difference(*given, among=4).interval
    assert four[0] < one[0] < one[1] < four[1]
    # Student's t with 4 degrees of freedom: 2.776 at 97.5 %
    assert (one[1] - one[0]) / 2 == pytest.approx(2.776 * 0.5, rel=0.03)
    assert smallest_difference(0.5, 3, NO_IMAGES) == pytest.approx(2.776 * 0.408, rel=0.03)
