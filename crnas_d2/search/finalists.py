"""Finalists: the best few of a search are trained alone, beside the baseline, in rounds of one more
seed for fewer networks. The paper has none: it takes the supernet's first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from crnas_d2.architecture import Architecture

# Trains a network with a seed, 0, 1 ...: its score on archval.
Train = Callable[[Architecture, int], float]


def compete(
    finalists: Sequence[Architecture], kept: Sequence[Architecture], seeds: int, train: Train
) -> dict[Architecture, list[float]]:
    """The scores of each network, one a seed; who was dropped early has fewer.

    In each of ``seeds`` rounds (at least 1) those left are trained with one more seed, and the better
    half of them stays; those that are ``kept``, such as the baseline, stay to the end.

    Args:
        finalists: best first by the search; ties of means keep that order.
    """
    running = [architecture for architecture in dict.fromkeys(finalists) if architecture not in kept]
    scores: dict[Architecture, list[float]] = {a: [] for a in (*kept, *running)}
    for seed in range(seeds):
        for architecture in (*kept, *running):
            scores[architecture].append(train(architecture, seed))
        running.sort(key=lambda a: -fmean(scores[a]))
        running = running[: (len(running) + 1) // 2]
    return scores


def winner(scores: dict[Architecture, list[float]]) -> Architecture:
    """Of those with the most seeds the one with the best mean; of equal ones the first."""
    most = max(map(len, scores.values()))
    return max((a for a in scores if len(scores[a]) == most), key=lambda a: fmean(scores[a]))
