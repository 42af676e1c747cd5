"""How far a supernet's ranking can be trusted: its scores against networks that were trained alone.

A row is one training: code, number of its seed, AP, and AP on bootstraps of the test images, which are
the same for all rows. Correlations are of a code's supernet score with its mean AP over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
Correlation = Callable[[np.ndarray, np.ndarray], float]


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b, -1..1; nan where all of x or of y are equal."""
    upper = np.triu_indices(len(x), 1)
    signs = [np.sign(np.subtract.outer(v, v))[upper] for v in (np.asarray(x), np.asarray(y))]
    pairs = math.sqrt(float(np.abs(signs[0]).sum() * np.abs(signs[1]).sum()))
    return float(signs[0] @ signs[1]) / pairs if pairs else math.nan


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho, -1..1: the correlation of ranks, equal values sharing their mean rank."""
    ranks = [_ranks(np.asarray(v, dtype=float)) for v in (x, y)]
    if any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    below, equal = values[:, None] > values, values[:, None] == values
    return below.sum(1) + (equal.sum(1) - 1) / 2


@dataclass(frozen=True)
class Trained:
    """A code: its supernet score, and of each training AP and AP on bootstraps of the test images."""

    score: float
    aps: Sequence[float]
    bootstraps: np.ndarray  # (seeds, B)


def interval(
    codes: Sequence[Trained], correlation: Correlation, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float, float]:
    """The correlation, and its interval over codes, seeds and test images.

    At least 95 %: drawing again from what is noisy already makes it wide, and its middle lower.
    """
    rng = np.random.default_rng(seed)
    found = correlation(np.array([c.score for c in codes]), np.array([np.mean(c.aps) for c in codes]))
    drawn = []
    for _ in range(draws):
        column = rng.integers(codes[0].bootstraps.shape[1])
        some = [codes[i] for i in rng.integers(len(codes), size=len(codes))]
        means = [np.mean(c.bootstraps[rng.integers(len(c.aps), size=len(c.aps)), column]) for c in some]
        drawn.append(correlation(np.array([c.score for c in some]), np.array(means)))
    low, high = (float(np.nanquantile(drawn, at)) for at in (0.025, 0.975))
    return found, low, high


def ceiling(codes: Sequence[Trained], correlation: Correlation, seed: int = 0) -> float:
    """What a supernet that knows the truth would reach: seeds alone blur the mean APs.

    The spread of the true APs is what that of the means has beyond the seeds' share.
    """
    several = [c.aps for c in codes if len(c.aps) > 1]
    freedom = sum(len(aps) - 1 for aps in several)
    within = sum(np.var(aps) * len(aps) for aps in several) / freedom
    blur = np.array([math.sqrt(within / len(c.aps)) for c in codes])
    means = np.array([np.mean(c.aps) for c in codes])
    true = math.sqrt(max(0.0, float(np.var(means, ddof=1) - np.mean(blur**2))))
    rng, found = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        truth = rng.normal(0, true, len(codes))
        found.append(correlation(truth, truth + rng.normal(0, 1, len(codes)) * blur))
    return float(np.nanmean(found)) if true else 0.0


def regret(codes: Mapping[str, Trained]) -> float:
    """How much the best mean AP is above that of the code with the highest supernet score."""
    means = {name: float(np.mean(c.aps)) for name, c in codes.items()}
    return max(means.values()) - means[max(codes, key=lambda name: codes[name].score)]


def first_of(codes: Sequence[Trained], number: int) -> list[Trained]:
    """Those with the highest supernet scores."""
    return sorted(codes, key=lambda code: -code.score)[:number]


def lead(
    codes: Sequence[Trained], number: int, seed: int = 0, draws: int = 300
) -> tuple[float, float, float]:
    """By how much best_of the supernet's first is above that of as many at random; its 95 % interval.

    The interval is over codes, seeds and test images, as ``interval``'s.
    """
    rng = np.random.default_rng(seed)
    found = best_of(first_of(codes, number), number) - best_of(codes, number)
    drawn = []
    for _ in range(draws):
        column = rng.integers(codes[0].bootstraps.shape[1])
        some = []
        for code in (codes[i] for i in rng.integers(len(codes), size=len(codes))):
            aps = code.bootstraps[rng.permutation(len(code.aps)), column]
            some.append(Trained(code.score, aps.tolist(), code.bootstraps))
        times = {"seed": int(rng.integers(2**31)), "draws": 50}
        drawn.append(best_of(first_of(some, number), number, **times) - best_of(some, number, **times))
    low, high = (float(np.quantile(drawn, at)) for at in (0.025, 0.975))
    return found, low, high


def best_of(codes: Sequence[Trained], number: int, seed: int = 0, draws: int = DRAWS) -> float:
    """Mean AP of the best of ``number`` codes out of these: chosen by one seed, judged by the others.

    Averaged over draws of codes and of the seed, so that no choice is judged by its own luck.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        some = [codes[i] for i in rng.permutation(len(codes))[:number]]
        chooser = rng.integers(min(len(c.aps) for c in some))
        best = max(some, key=lambda c: c.aps[chooser])
        found.append(np.mean(np.delete(np.asarray(best.aps), chooser)))
    return float(np.mean(found))
