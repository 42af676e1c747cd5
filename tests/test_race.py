"""Races, on scores that are means over images."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_scorer import in_memory, timeless

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.matches import bootstrap
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import Race, fractions_behind
from crnas_d2.space import RESNET_DEPTHS, DilationSpace, StageSpace, block_costs

CODES = StageSpace("resnet", RESNET_DEPTHS).eligible(16)


def costs(architecture: Architecture) -> dict[str, float]:
    return {**block_costs(architecture), "macs": 1.0}


class Means:
    """A candidate's score is the weighted mean of its images' values; remembers who detected on what.

    Attributes:
        calls: (architecture, portion), in the order in which they detected.
    """

    def __init__(self, values: dict[Architecture, np.ndarray], fails_at: int | None = None) -> None:
        self.values = values
        self.images = [8, 16, 32, 64]
        self.calls: list[tuple[Architecture, int]] = []
        self.fails_at = fails_at

    def missing(self, architectures: Sequence[Architecture], portion: int) -> list[Architecture]:
        return [a for a in architectures if (a, portion) not in self.calls]

    def detect(self, group: Sequence[Architecture], portion: int) -> None:
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls += [(architecture, portion) for architecture in group]

    def scores(self, architectures: Sequence[Architecture], portion: int) -> list[list[float]]:
        assert all((a, seen) in self.calls for a in architectures for seen in range(portion + 1))
        images = self.images[portion]
        weights = np.concatenate([np.ones((1, images)), bootstrap(images, 64, 200, seed=portion)])
        return [self.weighted(architecture, weights).tolist() for architecture in architectures]

    def weighted(self, architecture: Architecture, weights: np.ndarray) -> np.ndarray:
        return weights @ self.values[architecture][: weights.shape[1]] / weights.sum(1)

    @property
    def evaluations(self) -> int:
        """Image evaluations."""
        sizes = np.diff([0, *self.images])
        return int(sum(sizes[portion] for _, portion in self.calls))


def values_of(
    codes: Sequence[Architecture], spread: float, seed: int
) -> dict[Architecture, np.ndarray]:
    """Images differ by much, candidates by ``spread`` on all of them, and by chance on each."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(20, 60, 64)
    return {code: images + rng.normal() * spread + rng.normal(size=64) for code in codes}


def race(scorer: Means, folder: Path | None = None, confidence: float = 0.95) -> Race:
    files = ("journal.jsonl", "race.jsonl")
    journals = [Journal(folder / file) if folder else in_memory() for file in files]
    return Race("stage", "N16", scorer, costs, *journals, confidence, group_size=1)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_wins_and_few_see_all(seed: int) -> None:
    scorer = Means(values_of(CODES, spread=3, seed=seed))
    found = race(scorer)(CODES, 1)
    means = {code: float(np.mean(values)) for code, values in scorer.values.items()}
    assert found[0].architecture == max(CODES, key=means.__getitem__)
    assert scorer.evaluations < 0.35 * 64 * len(CODES)
    assert {c.architecture: c.score for c in found} == pytest.approx(
        {c.architecture: means[c.architecture] for c in found}, rel=1e-12
    )


def test_who_was_dropped_and_why() -> None:
    scorer = Means(values_of(CODES, spread=3, seed=0))
    compare = race(scorer)
    found = compare(CODES, 1)
    dropped, finished = compare.dropped.records, compare.journal.records
    assert sorted(r["architecture"] for r in dropped + finished) == sorted(map(str, CODES))
    assert {r["architecture"] for r in finished} == {str(c.architecture) for c in found}
    assert all(r["phase"] == "stage" and r["blocks"] == 16 for r in finished)
    for record in dropped:
        assert record["phase"] == "stage race N16" and record["images"] in scorer.images[:-1]
        assert record["score"] < record["leader_score"] and record["behind"] >= 0.95
        assert len(found) <= record["racing"] <= len(CODES)
        code, leader = (Architecture.parse(record[key]) for key in ("architecture", "leader"))
        for key, who in (("score", code), ("leader_score", leader)):
            seen = scorer.values[who][: record["images"]]
            assert record[key] == pytest.approx(seen.mean(), rel=1e-12)
        portion = scorer.images.index(record["images"])
        assert (code, portion) in scorer.calls and (code, portion + 1) not in scorer.calls
    assert len({record["images"] for record in dropped}) > 1


def test_equal_candidates_all_stay() -> None:
    compare = race(Means({code: np.arange(64.0) for code in CODES[:9]}))
    assert len(compare(CODES[:9], 1)) == 9
    assert compare.dropped.records == []


def test_at_least_as_many_stay_as_the_search_keeps() -> None:
    """Three that no other can reach: with room for five the others stay, until they lose by places."""
    values = {code: np.full(64, 10.0) for code in CODES[:9]}
    for i, code in enumerate(CODES[:3]):
        values[code] = np.full(64, 50.0 + i)
    for keep, left in ((1, 1), (2, 2), (3, 3), (5, 9)):
        found = race(Means(values))(CODES[:9], keep)
        assert len(found) == left
        assert [c.architecture for c in found[:3]] == CODES[2::-1][:left]


@pytest.mark.parametrize(("count", "keep"), [(4, 1), (9, 3), (30, 10)])
def test_candidates_that_differ_by_chance_alone(count: int, keep: int) -> None:
    """Each is behind in most bootstraps, and still as many stay as the search keeps."""
    lengths = []
    for seed in range(60):
        scorer = Means(values_of(CODES[:count], spread=0, seed=seed))
        lengths.append(len(race(scorer, confidence=0.51)(CODES[:count], keep)))
    assert min(lengths) == keep


def test_no_object_on_the_first_images_drops_none() -> None:
    values = values_of(CODES, spread=30, seed=0)
    for array in values.values():
        array[:8] = np.nan

    class Blind(Means):
        def weighted(self, architecture: Architecture, weights: np.ndarray) -> np.ndarray:
            """The mean over the images but the first eight; nan where that is none."""
            with np.errstate(invalid="ignore"):
                seen = self.values[architecture][8 : weights.shape[1]]
                return weights[:, 8:] @ seen / weights[:, 8:].sum(1)

    compare = race(Blind(values))
    compare(CODES, 1)
    assert 8 not in {record["images"] for record in compare.dropped.records} != set()


def test_stopped_anywhere_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a slow disk
    values = values_of(CODES, spread=3, seed=1)
    whole = Means(values)
    expected = race(whole, tmp_path)(CODES, 1)
    for k in random.Random(0).sample(range(len(whole.calls)), 12):
        folder, scorer = tmp_path / str(k), Means(values, fails_at=k)
        with pytest.raises(KeyboardInterrupt):
            race(scorer, folder)(CODES, 1)
        scorer.fails_at = None
        assert race(scorer, folder)(CODES, 1) == expected
        assert scorer.calls == whole.calls
        for name in ("journal.jsonl", "race.jsonl"):
            assert timeless(folder / name) == timeless(tmp_path / name)


def test_races_for_two_budgets_share_what_was_seen() -> None:
    scorer = Means(values_of(CODES, spread=3, seed=0))
    compare = race(scorer)
    first = compare(CODES, 1)
    second = dataclasses.replace(compare, name="macs=1")(CODES[::2], 1)
    assert {c.architecture for c in second} <= set(CODES[::2])
    assert len(scorer.calls) == len(set(scorer.calls))
    assert compare(CODES, 1) == first


def test_greedy_search_by_races() -> None:
    space = DilationSpace("resnet", (1, 1, 2, 1))
    worth = np.random.default_rng(0).normal(size=(5, 3)) * 5
    images = np.random.default_rng(1).uniform(20, 60, 64)

    class Sums(Means):
        def weighted(self, architecture: Architecture, weights: np.ndarray) -> np.ndarray:
            total = sum(worth[i, digit] for i, digit in enumerate(architecture.dilation_code))
            return weights @ (images[: weights.shape[1]] + total) / weights.sum(1)

    scorer = Sums({})
    found = greedy_search(space, race(scorer), 3)
    assert found[0].architecture.dilation_code == tuple(worth.argmax(1))
    assert scorer.evaluations < 0.7 * 64 * (3 + 4 * 9)


def test_who_is_behind_in_what_fraction_of_the_bootstraps() -> None:
    scores = [[0, 5, 5, 1, 9], [0, 4, 5, 2, 8], [0, 3, 6, 3, 7]]
    assert fractions_behind(scores, 1) == [0.5, 1.0, 0.5]
    assert fractions_behind(scores, 2) == [0.25, 0.0, 0.5]
    assert fractions_behind(scores, 3) == [0.0, 0.0, 0.0]
