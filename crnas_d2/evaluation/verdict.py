"""How sure a difference between two networks is that were trained alone, each with several seeds.

Two kinds of noise are known: seeds, whose spread is pooled over all networks at hand, and images, which
a paired bootstrap over the matches of both networks shows. Spreads of few seeds are uncertain
themselves: their noise is Student's t, not normal. That a search has other seeds, too, is in neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crnas_d2.evaluation.matches import Matches
from crnas_d2.seeding import derive_seed

DRAWS = 50_000  # of noise, so that tails of a thousandth are known
BOOTSTRAPS = 400  # over images
LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """The standard deviation of a score over seeds; ``freedom``: degrees of freedom, 0: not known."""

    value: float
    freedom: int

    @classmethod
    def of(cls, networks: Sequence[Sequence[float]]) -> Spread:
        """Pooled over networks, given the scores of each, one a seed."""
        several = [scores for scores in networks if len(scores) > 1]
        freedom = sum(len(scores) - 1 for scores in several)
        squares = sum(np.var(scores) * len(scores) for scores in several)
        return cls(math.sqrt(squares / freedom) if freedom else math.nan, freedom)


def image_noise(
    ours: Sequence[Matches], theirs: Sequence[Matches], times: int = BOOTSTRAPS, seed: int = 0
) -> np.ndarray:
    """How far the difference of two mean scores moves when images are drawn anew: (times,).

    Matches, one a seed, are of the same images. Draws of images without objects count as no move, and
    without matches there is none.
    """
    if not (ours and theirs):
        return np.zeros(1)
    images = len(ours[0].image_ids)
    rng = np.random.default_rng(derive_seed(seed, "image noise"))
    weights = rng.multinomial(images, np.full(images, 1 / images), times)
    weights = np.concatenate([np.ones((1, images)), weights])
    means = [np.mean([m.scores(weights) for m in matches], axis=0) for matches in (ours, theirs)]
    difference = means[0] - means[1]
    return np.nan_to_num(difference[1:] - difference[0])


@dataclass(frozen=True)
class Difference:
    """Of the mean scores of two networks, in AP.

    Args:
        ours, theirs: scores, one a seed.
        spread: of seeds.
        images: image_noise of the two; (0,) zeros if there is none.
        among: of how many networks ours is the best: its luck is allowed for by as many times less
            probability beyond the interval's ends (Bonferroni).
    """

    ours: Sequence[float]
    theirs: Sequence[float]
    spread: Spread
    images: np.ndarray
    among: int = 1
    level: float = LEVEL

    @property
    def value(self) -> float:
        return float(np.mean(self.ours) - np.mean(self.theirs))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Holds the true difference with probability ``level``; infinite if the spread is not known."""
        if not self.spread.freedom:
            return -math.inf, math.inf
        rng = np.random.default_rng(0)
        chi = rng.chisquare(self.spread.freedom, DRAWS) / self.spread.freedom
        scale = self.spread.value * math.sqrt(1 / len(self.ours) + 1 / len(self.theirs))
        noise = scale * rng.standard_normal(DRAWS) / np.sqrt(chi)
        noise += rng.normal(0, self.images.std(), DRAWS)
        tail = (1 - self.level) / 2 / self.among
        low, high = (self.value + float(np.quantile(noise, at)) for at in (tail, 1 - tail))
        return low, high

    @property
    def known_ends(self) -> list[float | None]:
        """Of the interval, None where it is infinite, which JSON does not have."""
        return [end if math.isfinite(end) else None for end in self.interval]

    @property
    def says(self) -> str:
        """ "better", "worse" or "not told apart"."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "not told apart"

    def __str__(self) -> str:
        low, high = self.interval
        of = "" if self.images.any() else "; of seeds alone"
        return f"{self.value:+.2f} AP ({self.level:.0%}{of}: {low:+.2f} .. {high:+.2f})"


def smallest_difference(spread: float, seeds: int, images: np.ndarray, among: int = 1) -> float:
    """What two networks need to differ by to be told apart, in AP, given the true spread of seeds.

    ``seeds``: of each, at least 2, of which their spread is then found; ``among``: as Difference's.
    """
    of_both = Spread(spread, 2 * (seeds - 1))
    low, high = Difference([0.0] * seeds, [0.0] * seeds, of_both, images, among).interval
    return (high - low) / 2
