"""Correlations against plain loops, and studies of simulated codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from crnas_d2.analysis.ranking import (
    Trained,
    best_of,
    ceiling,
    interval,
    kendall,
    lead,
    regret,
    spearman,
)


def test_kendall_against_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, (2, 9)).astype(float)
        agree = ties_x = ties_y = 0
        for i, j in itertools.combinations(range(9), 2):
            agree += int(np.sign((x[i] - x[j]) * (y[i] - y[j])))
            ties_x += x[i] == x[j]
            ties_y += y[i] == y[j]
        assert kendall(x, y) == pytest.approx(agree / np.sqrt((36 - ties_x) * (36 - ties_y)))
    assert np.isnan(kendall(np.ones(3), np.arange(3)))


def test_spearman() -> None:
    x = np.array([1.0, 2, 3, 4, 5])
    assert spearman(x, x**3) == pytest.approx(1) and spearman(x, -x) == pytest.approx(-1)
    # By hand: ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * 4 / (5 * 24)
    assert spearman(x, np.array([20.0, 10, 40, 30, 50])) == pytest.approx(0.8)
    # Equal values share a rank: 0, 1.5, 1.5, 3
    assert spearman(np.arange(4.0), np.array([1.0, 2, 2, 3])) == pytest.approx(np.sqrt(0.9))


def study(
    rng: np.random.Generator, codes: int, spread: float, seeds: float, supernet: float
) -> list[Trained]:
    """Codes whose true APs have a spread, two trainings each; test images add nothing."""
    found = []
    for truth in rng.normal(50, spread, codes):
        aps = truth + rng.normal(0, seeds, 2)
        found.append(Trained(truth + rng.normal(0, supernet), aps, np.repeat(aps[:, None], 5, axis=1)))
    return found


def test_a_supernet_that_knows_the_truth_reaches_the_ceiling() -> None:
    rng = np.random.default_rng(1)
    for spread, seeds in ((1.0, 0.5), (0.5, 1.0)):
        taus, ceilings = [], []
        for _ in range(15):
            codes = study(rng, 12, spread, seeds, 0.0)
            taus.append(interval(codes, kendall, draws=1)[0])
            ceilings.append(ceiling(codes, kendall))
        assert np.mean(ceilings) == pytest.approx(np.mean(taus), abs=0.1)


def test_intervals_hold_the_correlation_of_many_codes() -> None:
    rng, held = np.random.default_rng(2), 0
    truth = interval(study(rng, 800, 1.0, 0.7, 1.0), spearman, draws=1)[0]
    for _ in range(40):
        _, low, high = interval(study(rng, 20, 1.0, 0.7, 1.0), spearman, draws=200)
        held += low < truth < high
    assert held >= 33


def test_regret_and_the_best_of_some() -> None:
    aps = {"a": (50.0, 52.0), "b": (53.0, 55.0), "c": (40.0, 42.0)}
    score = {"a": 3.0, "b": 2.0, "c": 1.0}
    codes = {n: Trained(score[n], aps[n], np.zeros((2, 1))) for n in aps}
    assert regret(codes) == 3.0
    every = list(codes.values())
    assert best_of(every, 3) == pytest.approx(54, abs=0.1)  # b, by either seed
    assert best_of(every, 1) == pytest.approx((51 + 54 + 41) / 3, abs=0.3)


def test_the_lead_of_the_first_over_random_ones() -> None:
    """Of a supernet that knows the truth, and of one whose scores are noise."""
    rng = np.random.default_rng(3)
    value, low, high = lead(study(rng, 20, 2.0, 0.3, 0.0), 4, draws=100)
    assert 0 < low < value < high
    _, low, high = lead(study(rng, 20, 0.0, 1.0, 1.0), 4, draws=100)
    assert low < 0 < high
