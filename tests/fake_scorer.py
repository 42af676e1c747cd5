"""A scorer that costs nothing, and the searches over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Candidate, Journal
from crnas_d2.search.race import Compare, Group, Race
from crnas_d2.search.stage import stage_search
from crnas_d2.seeding import derive_seed
from crnas_d2.space import RESNET_DEPTHS, DilationSpace, Space, StageSpace, block_costs

Found = list[Candidate]
SMALL_SPACE = StageSpace("resnet_basic", RESNET_DEPTHS).only_eligible([8])


def costs(architecture: Architecture) -> dict[str, float]:
    """A block of a later stage is cheaper; rates cost nothing, as in the real thing."""
    macs = sum((4 - i) * n for i, n in enumerate(architecture.stage_code))
    return {**block_costs(architecture), "macs": macs}


def arbitrary(architecture: Architecture) -> float:
    """A score with all its bits in use, in 0..100."""
    return derive_seed(0, "score", str(architecture)) / 2**63 * 100


class FakeScorer:
    """One portion of archval; remembers what it is asked for, and raises where it is told to.

    Attributes:
        calls: architectures in the order in which they detected.
    """

    images = [1]

    def __init__(
        self, score: Callable[[Architecture], float] = arbitrary, fails_at: int | None = None
    ) -> None:
        self.calls: list[Architecture] = []
        self._score = score
        self._fails_at = fails_at

    def missing(self, architectures: Sequence[Architecture], portion: int) -> list[Architecture]:
        return [architecture for architecture in architectures if architecture not in self.calls]

    def detect(self, group: Group, portion: int) -> None:
        for architecture in group:
            if len(self.calls) == self._fails_at:
                raise KeyboardInterrupt
            self.calls.append(architecture)

    def scores(self, architectures: Sequence[Architecture], portion: int) -> list[list[float]]:
        return [[self._score(architecture)] for architecture in architectures]


def in_memory() -> Journal:
    return Journal("never written", writes=False)


def exhaustive(
    phase: str, scorer: Any, journal: Journal | None = None, group_size: int = 1, **options: Any
) -> Compare:
    """A race in which none is dropped: there is one portion. By default nothing is on disk."""
    journals = journal or in_memory(), in_memory()
    return Race(phase, "", scorer, costs, *journals, 0.0, group_size=group_size, **options)


def stages(space: StageSpace, budget: Any, scorer: Any, *journal: Journal, **options: Any) -> Found:
    return stage_search(space, budget, exhaustive("stage", scorer, *journal, **options), costs)


def greedy(
    space: DilationSpace, scorer: Any, *journal: Journal, top_k: int = 3, **options: Any
) -> Found:
    return greedy_search(space, exhaustive("dilation", scorer, *journal, **options), top_k)


def alternative(
    search: Callable[..., Found],
    space: Space,
    budget: Any,
    scorer: Any,
    *journal: Journal,
    evaluations: int,
    seed: int = 0,
    **options: Any,
) -> Found:
    compare = exhaustive(space.phase, scorer, *journal, **options)
    return search(space, Budget.parse(budget), compare, costs, evaluations, seed)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(path)]
