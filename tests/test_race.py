"""Races, on scores that are means over images, and over a real archval."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_scoring import trained

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.matches import bootstrap
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.looks import ArchvalLooks
from crnas_d2.pipeline.scorer import build_scorer
from crnas_d2.search.candidates import ScoreAll
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import Race, fractions_behind, portions
from crnas_d2.space import RESNET_DEPTHS, DilationSpace, StageSpace, block_costs

CODES = StageSpace("resnet", RESNET_DEPTHS).eligible(16)


def costs(architecture: Architecture) -> dict[str, float]:
    return {**block_costs(architecture), "macs": 1.0}


class Means:
    """A candidate's score is the weighted mean of its images' values; remembers who looked at what.

    Attributes:
        calls: (architecture, portion), in the order in which they looked.
    """

    def __init__(self, values: dict[Architecture, np.ndarray], fails_at: int | None = None) -> None:
        self.values = values
        self.images = [8, 16, 32, 64]
        self.calls: list[tuple[Architecture, int]] = []
        self.fails_at = fails_at

    def missing(self, architectures: Sequence[Architecture], portion: int) -> list[Architecture]:
        return [a for a in architectures if (a, portion) not in self.calls]

    def look(self, group: Sequence[Architecture], portion: int) -> None:
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
    def looked_at(self) -> int:
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


def race(
    tmp_path: Path,
    looks: Means,
    codes: Sequence[Architecture],
    keep: int = 1,
    name: str = "N16",
    confidence: float = 0.95,
) -> list:
    compare = Race(
        *("stage", name, looks, costs),
        journal=Journal(tmp_path / "journal.jsonl"),
        verdicts=Journal(tmp_path / "race.jsonl"),
        confidence=confidence,
    )
    return compare(codes, keep)


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("seed", range(5))
def test_the_best_wins_and_few_see_all(tmp_path: Path, seed: int) -> None:
    looks = Means(values_of(CODES, spread=3, seed=seed))
    found = race(tmp_path, looks, CODES)
    means = {code: float(np.mean(values)) for code, values in looks.values.items()}
    assert found[0].architecture == max(CODES, key=means.__getitem__)
    assert looks.looked_at < 0.35 * 64 * len(CODES)
    assert {c.architecture: c.score for c in found} == pytest.approx(
        {c.architecture: means[c.architecture] for c in found}, rel=1e-12
    )


def test_who_was_dropped_and_why(tmp_path: Path) -> None:
    looks = Means(values_of(CODES, spread=3, seed=0))
    found = race(tmp_path, looks, CODES)
    dropped, finished = records(tmp_path / "race.jsonl"), records(tmp_path / "journal.jsonl")
    assert sorted(r["architecture"] for r in dropped + finished) == sorted(map(str, CODES))
    assert {r["architecture"] for r in finished} == {str(c.architecture) for c in found}
    assert all(r["phase"] == "stage" and r["blocks"] == 16 for r in finished)
    for record in dropped:
        assert record["phase"] == "stage race N16" and record["images"] in looks.images[:-1]
        assert record["score"] < record["leader_score"] and record["behind"] >= 0.95
        assert len(found) <= record["racing"] <= len(CODES)
        code, leader = (Architecture.parse(record[key]) for key in ("architecture", "leader"))
        for key, who in (("score", code), ("leader_score", leader)):
            assert record[key] == pytest.approx(looks.values[who][: record["images"]].mean(), rel=1e-12)
        portion = looks.images.index(record["images"])
        assert (code, portion) in looks.calls and (code, portion + 1) not in looks.calls
    assert len({record["images"] for record in dropped}) > 1


def test_equal_candidates_all_stay(tmp_path: Path) -> None:
    looks = Means({code: np.arange(64.0) for code in CODES[:9]})
    assert len(race(tmp_path, looks, CODES[:9])) == 9
    assert records(tmp_path / "race.jsonl") == []


def test_at_least_as_many_stay_as_the_search_keeps(tmp_path: Path) -> None:
    """Three that nobody can reach: with room for five the others stay in, until they lose by places."""
    values = {code: np.full(64, 10.0) for code in CODES[:9]}
    for i, code in enumerate(CODES[:3]):
        values[code] = np.full(64, 50.0 + i)
    for keep, left in ((1, 1), (2, 2), (3, 3), (5, 9)):
        folder = tmp_path / str(keep)
        folder.mkdir()
        found = race(folder, Means(values), CODES[:9], keep)
        assert len(found) == left
        assert [c.architecture for c in found[:3]] == CODES[2::-1][:left]


@pytest.mark.parametrize(("count", "keep"), [(4, 1), (9, 3), (30, 10)])
def test_candidates_that_differ_by_chance_alone(tmp_path: Path, count: int, keep: int) -> None:
    """Each is behind in most bootstraps, and still so many stay as the search goes on with."""
    lengths = []
    for seed in range(60):
        folder = tmp_path / str(seed)
        folder.mkdir()
        looks = Means(values_of(CODES[:count], spread=0, seed=seed))
        lengths.append(len(race(folder, looks, CODES[:count], keep, confidence=0.51)))
    assert min(lengths) == keep


def test_no_object_on_the_first_images_drops_nobody(tmp_path: Path) -> None:
    values = values_of(CODES, spread=30, seed=0)
    for array in values.values():
        array[:8] = np.nan

    class Blind(Means):
        def weighted(self, architecture: Architecture, weights: np.ndarray) -> np.ndarray:
            """The mean over the images but the first eight; nan where that is none."""
            with np.errstate(invalid="ignore"):
                seen = self.values[architecture][8 : weights.shape[1]]
                return weights[:, 8:] @ seen / weights[:, 8:].sum(1)

    race(tmp_path, Blind(values), CODES)
    assert 8 not in {r["images"] for r in records(tmp_path / "race.jsonl")} != set()


def test_stopped_anywhere_and_resumed(tmp_path: Path) -> None:
    values = values_of(CODES, spread=3, seed=1)
    whole = Means(values)
    expected = race(tmp_path, whole, CODES)
    for k in random.Random(0).sample(range(len(whole.calls)), 12):
        folder = tmp_path / str(k)
        folder.mkdir()
        looks = Means(values, fails_at=k)
        with pytest.raises(KeyboardInterrupt):
            race(folder, looks, CODES)
        looks.fails_at = None
        assert race(folder, looks, CODES) == expected
        assert looks.calls == whole.calls
        for name in ("journal.jsonl", "race.jsonl"):
            assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_races_for_two_budgets_share_what_was_seen(tmp_path: Path) -> None:
    looks = Means(values_of(CODES, spread=3, seed=0))
    first = race(tmp_path, looks, CODES, name="N16")
    second = race(tmp_path, looks, CODES[::2], name="macs=1")
    assert {c.architecture for c in second} <= set(CODES[::2])
    assert len(looks.calls) == len(set(looks.calls))
    again = race(tmp_path, looks, CODES, name="N16")
    assert again == first


def test_greedy_search_by_races(tmp_path: Path) -> None:
    space = DilationSpace("resnet", (1, 1, 2, 1))
    worth = np.random.default_rng(0).normal(size=(5, 3)) * 5
    images = np.random.default_rng(1).uniform(20, 60, 64)

    class Sums(Means):
        def weighted(self, architecture: Architecture, weights: np.ndarray) -> np.ndarray:
            total = sum(worth[i, digit] for i, digit in enumerate(architecture.dilation_code))
            return weights @ (images[: weights.shape[1]] + total) / weights.sum(1)

    looks = Sums({})
    compare = Race(
        *("dilation", "N5", looks, costs),
        journal=Journal(tmp_path / "journal.jsonl"),
        verdicts=Journal(tmp_path / "race.jsonl"),
        confidence=0.95,
    )
    found = greedy_search(space, compare)
    assert found[0].architecture.dilation_code == tuple(worth.argmax(1))
    assert looks.looked_at < 0.7 * 64 * (3 + 4 * 9)


def test_who_is_behind_in_what_fraction_of_the_bootstraps() -> None:
    scores = [[0, 5, 5, 1, 9], [0, 4, 5, 2, 8], [0, 3, 6, 3, 7]]
    assert fractions_behind(scores, 1) == [0.5, 1.0, 0.5]
    assert fractions_behind(scores, 2) == [0.25, 0.0, 0.5]
    assert fractions_behind(scores, 3) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("count", "ends"),
    [(1, [1]), (2, [1, 2]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (100, [17, 24, 35, 50, 60, 70, 83, 100])],
)
def test_portions(count: int, ends: list[int]) -> None:
    assert portions(count) == ends


# ---- over a real archval -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_who_sees_all_of_archval_has_the_score_of_the_whole_search(kind: str, tmp_path: Path) -> None:
    """Partial codes, too; from what is on disk after the first time, and nothing else."""
    cfg, split, detector = trained(tmp_path, kind, "SEARCH.EVAL.BATCH_SIZE", 1)
    space = find_supernet(detector).space
    if isinstance(space, StageSpace):
        codes = list(space.codes())[:6]
    else:
        codes = [
            longer for partial in space.extensions(space.root) for longer in space.extensions(partial)
        ]
    scorer = build_scorer(cfg, split, detector)
    whole = ScoreAll(kind, scorer, costs, Journal(tmp_path / "whole.jsonl"))(codes, 1)
    assert whole[0].score > 0

    def raced(name: str, keep: int) -> list:
        compare = Race(
            *(kind, name, ArchvalLooks(scorer, tmp_path / "matches", seed=0), costs),
            journal=Journal(tmp_path / f"{name}.jsonl"),
            verdicts=Journal(tmp_path / f"{name}-race.jsonl"),
            confidence=0.51,
            group_size=4,
        )
        return compare(codes, keep)

    everyone = raced("everyone", len(codes))
    assert [c.architecture for c in everyone] == [c.architecture for c in whole]
    assert [c.score for c in everyone] == pytest.approx([c.score for c in whole], abs=1e-9)
    files = sorted((tmp_path / "matches").rglob("*.npz"))
    assert len(files) == 4 * len(codes)  # portions of one image each
    before = scorer.macs.shared
    few = raced("few", 1)
    assert scorer.macs.shared == before
    assert 1 <= len(few) < len(codes) and all(candidate in everyone for candidate in few)

    files[0].write_bytes(files[0].read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"{files[0].name}.*remove it"):
        raced("again", len(codes))
    files[0].write_bytes(files[-1].read_bytes())
    with pytest.raises(InputError, match=rf"{files[0].name}.*matches on other images.*remove it"):
        raced("strange", len(codes))
    files[0].unlink()
    assert raced("mended", len(codes)) == everyone


def archval_of(images: int) -> FixedBatches:
    dicts = [{"image_id": i, "height": 9, "width": 9} for i in range(images)]
    return FixedBatches(dicts, lambda record: {**record, "image": torch.zeros(1)}, batch_size=2)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_every_process_has_its_share_of_a_portion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    shares = []
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)

        class Scorer:
            archval = archval_of(200)

        portions = ArchvalLooks(Scorer(), tmp_path, seed=0)._batches  # type: ignore[arg-type]
        shares.append([[n for n, _ in Scorer.archval.mine(portion)] for portion in portions])
    for portion, dealt in zip(portions, zip(*shares)):
        assert sorted(number for share in dealt for number in share) == sorted(portion)
        lengths = [len(share) for share in dealt]
        assert max(lengths) - min(lengths) <= 1


def test_portions_are_of_images_in_random_order(tmp_path: Path) -> None:
    class Scorer:
        archval = archval_of(73)

    looks = ArchvalLooks(Scorer(), tmp_path, seed=0)  # type: ignore[arg-type]
    numbers = [number for batches in looks._batches for number in batches]
    assert sorted(numbers) == list(range(37)) != numbers
    assert looks.images[-1] == 73 and looks.images[0] in (11, 12)
