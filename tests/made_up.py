"""Trainings without training: scores are made up, and what images have to do with them, too."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crnas_d2.architecture import Architecture
from crnas_d2.pipeline.trainings import LONGER, Network

Score = Callable[[Architecture, int], float]  # of a seed


@dataclass
class MadeUpMatches:
    """AP is the mean of a value for each image."""

    values: np.ndarray

    @property
    def image_ids(self) -> range:
        return range(len(self.values))

    def scores(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.values / weights.sum(1)


@dataclass
class MadeUp:
    """As Trainings: a score, or 0 and why it failed, where ``score`` raises FloatingPointError.

    ``images``: standard deviation, over 400 images, of what each would give as AP; None: no matches.
    """

    score: Score
    images: float | None = 0
    records: dict[tuple[Network, str, int], dict[str, Any]] = field(default_factory=dict)

    def __call__(self, network: Network, data: str, number: int) -> float:
        key, record = (network, data, number), {"macs": 1e9, "params": 1e6}
        if key not in self.records:
            try:
                record["score"] = self.score(network.architecture, number) + 3.0 * (data == LONGER)
            except FloatingPointError as error:
                record |= {"score": 0.0, "failed": str(error)}
            self.records[key] = {**record, "metrics": {"AP": record["score"]}}
        return self.records[key]["score"]

    def of(self, network: Network, data: str) -> list[dict[str, Any]]:
        return [r for key, r in self.records.items() if key[:2] == (network, data)]

    def matches(self, network: Network, data: str, seeds: int) -> list[MadeUpMatches]:
        if self.images is None:
            return []
        rng = np.random.default_rng(zlib.crc32(str(network.architecture).encode()))
        values = [rng.normal(0, 1, 400) for _ in range(seeds)]
        return [MadeUpMatches(self.images * (v - v.mean()) / v.std()) for v in values]
