"""Stage search, greedy search and groups, on scores that cost nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fake_scorer import (
    SMALL_SPACE,
    FakeScorer,
    alternative,
    arbitrary,
    costs,
    exhaustive,
    greedy,
    in_memory,
    lines,
    stages,
    timeless,
)

from crnas_d2.architecture import FAMILY_STAGES, Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import read_config
from crnas_d2.pipeline.search_hook import search_method
from crnas_d2.search.alternatives import evolution, random_search
from crnas_d2.search.journal import Candidate, Journal, ranked
from crnas_d2.search.race import Group, grouped
from crnas_d2.space import FAMILY_DEPTHS, RESNET_DEPTHS, DilationSpace, StageSpace

SPACE = StageSpace("resnet", RESNET_DEPTHS)

# ---- the order of candidates -----------------------------------------------------------------------


def test_ties_go_to_fewer_macs_then_to_the_text_form() -> None:
    def candidate(text: str, score: float, macs: float) -> Candidate:
        return Candidate(Architecture.parse(text), score, {"macs": macs})

    expected = [
        candidate("resnet/9-1-2-2/000000000-0-00-00", 50.000000001, 900),
        candidate("resnet/2-1-3-2/00-0-000-00", 50.0, 10),
        candidate("resnet/1-2-2-3/0-00-00-000", 50.0, 20),
        candidate("resnet/1-2-3-2/0-00-000-00", 50.0, 20),
        candidate("resnet/1-2-3-2/0-00-000-01", 50.0, 20),
        candidate("resnet/1-1-2-2/0-0-00-00", 49.999999999, 1),
    ]
    for seed in range(20):
        shuffled = random.Random(seed).sample(expected, len(expected))
        assert ranked(shuffled) == expected


# ---- stage search ----------------------------------------------------------------------------------

RESNETS = [family for family in FAMILY_STAGES if FAMILY_DEPTHS[family] == RESNET_DEPTHS]


@pytest.mark.parametrize(("budget", "count"), [(8, 9), (16, 153), (33, 374)])
@pytest.mark.parametrize("family", RESNETS)
def test_stage_search_visits_exactly_the_eligible_codes(family: str, budget: int, count: int) -> None:
    scorer = FakeScorer()
    found = stages(StageSpace(family, RESNET_DEPTHS), budget, scorer)
    assert len(scorer.calls) == len(set(scorer.calls)) == count
    t1, t2, t3, t4 = RESNET_DEPTHS
    assert {code.stage_code for code in scorer.calls} == {
        (a, b, c, budget - a - b - c) for a in t1 for b in t2 for c in t3 if budget - a - b - c in t4
    }
    assert sorted(map(str, scorer.calls)) == sorted(str(c.architecture) for c in found)
    assert all(c.score == arbitrary(c.architecture) for c in found)
    assert found[0].score == max(map(arbitrary, scorer.calls))
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


@pytest.mark.parametrize(
    ("phase", "method"),
    [("stage", m) for m in ("exhaustive", "evolution", "random")] + [("dilation", "greedy")],
)
def test_as_many_finalists_see_all_of_archval(phase: str, method: str) -> None:
    """A race keeps at least those that are to be trained alone."""
    options = [f"SEARCH.{phase.upper()}.METHOD", method, "SEARCH.FINALISTS.NUM", 7]
    space = (
        StageSpace("resnet", RESNET_DEPTHS)
        if phase == "stage"
        else DilationSpace("resnet", (1, 2, 1, 1))
    )
    compare, asked = exhaustive(phase, FakeScorer()), []

    def keeping(group: Any, keep: int) -> Any:
        asked.append(keep)
        return compare(group, keep)

    search_method(read_config("", options), phase)(space, Budget.parse(16), keeping, costs)
    assert asked and set(asked) == {7}


def test_stage_search_with_equal_scores_takes_the_cheapest() -> None:
    found = stages(SPACE, 8, FakeScorer(lambda _: 40.0))
    assert found[0].architecture == min(SPACE.eligible(8), key=lambda a: (costs(a)["macs"], str(a)))


def test_one_journal_serves_several_budgets() -> None:
    scorer, journal = FakeScorer(), in_memory()
    for budget in (7, 8, 7):
        found = stages(SPACE, budget, scorer, journal)
        assert {sum(c.architecture.stage_code) for c in found} == {budget}
    assert len(scorer.calls) == len(set(scorer.calls)) == 4 + 9


@pytest.mark.parametrize("size", [1, 2, 7, 32, 1000])
def test_groups_are_neighbours_that_share_their_first_depth(size: int) -> None:
    codes = SPACE.eligible(16)
    groups = list(grouped(codes, size))
    assert [code for group in groups for code in group] == codes
    assert max(map(len, groups)) <= size
    assert all(len({code.stage_code[0] for code in group}) == 1 for group in groups)
    if size == 1000:
        assert len(groups) == 10
    # MobileNetV2's first two entries are the same everywhere; of one stage code all share everything.
    codes = StageSpace("mobilenetv2", FAMILY_DEPTHS["mobilenetv2"]).eligible(16)
    assert len(list(grouped(codes, 1000))) == len({code.stage_code[2] for code in codes})
    space = DilationSpace("resnet", (1, 1, 2, 4))
    assert len(list(grouped(space.extensions(space.root), 1000))) == 1


@pytest.mark.parametrize("kind", ["stage", "greedy", "evolution", "random"])
def test_the_size_of_a_group_changes_nothing_but_when_lines_are_written(
    tmp_path: Path, kind: str
) -> None:
    def search(name: str, size: int) -> list[Candidate]:
        given = FakeScorer(), Journal(tmp_path / f"{name}.jsonl")
        if kind == "stage":
            return stages(SMALL_SPACE, 8, *given, group_size=size)
        if kind == "greedy":
            return greedy(DilationSpace("resnet", (1, 1, 2, 1)), *given, group_size=size)
        search = {"evolution": evolution, "random": random_search}[kind]
        return alternative(search, SPACE, 16, *given, evaluations=30, group_size=size)

    assert search("one", 1) == search("four", 4) == search("all", 1000)
    for name in ("four", "all"):
        assert timeless(tmp_path / "one.jsonl") == timeless(tmp_path / f"{name}.jsonl")


def test_a_group_is_journalled_before_the_next_one_detects(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    on_disk = []

    class Noting(FakeScorer):
        def detect(self, group: Group, portion: int) -> None:
            on_disk.append((len(group), len(lines(path)) if path.exists() else 0))
            super().detect(group, portion)

    stages(SMALL_SPACE, 8, Noting(), Journal(path), group_size=4)
    before = 0
    for size, held in on_disk:
        assert held == before
        before += size
    assert max(size for size, _ in on_disk) == 4
    assert before == 9


def test_what_has_matches_is_not_detected_again() -> None:
    """A group killed between its detections and the journal: the others of it are detected."""
    scorer, journal = FakeScorer(), in_memory()
    codes = SMALL_SPACE.eligible(8)
    scorer.detect([codes[0], codes[2]], 0)
    stages(SMALL_SPACE, 8, scorer, journal, group_size=4)
    assert sorted(map(str, scorer.calls)) == sorted(map(str, codes))
    assert [record["architecture"] for record in journal.records] == list(map(str, codes))


# ---- greedy search ---------------------------------------------------------------------------------

STAGE_CODES = [(1, 1, 1, 1), (1, 1, 2, 4), (3, 4, 6, 3), (1, 3, 5, 7), (5, 1, 1, 1)]
CODES_OF_FAMILIES = [(family, stages) for family in RESNETS for stages in STAGE_CODES]
CODES_OF_FAMILIES.append(("mobilenetv2", (1, 1, 2, 2, 3, 4, 4, 1, 1, 1)))


@pytest.mark.parametrize(("family", "stages"), CODES_OF_FAMILIES, ids=str)
def test_greedy_search_finds_the_optimum_of_a_separable_score(
    family: str, stages: tuple[int, ...]
) -> None:
    """What a block adds depends on its own digit alone, so each block's best digit is the answer."""
    space = DilationSpace(family, stages)
    blocks = sum(map(space.root.has_choice, range(sum(stages))))
    for seed in range(5):
        rng = random.Random(seed)
        # Integers: sums are exact, and different within a block.
        open_blocks = [i for i in range(sum(stages)) if space.root.has_choice(i)]
        chosen = {i: rng.sample(range(1000), 3) for i in open_blocks}
        table = [chosen.get(i, [0, -1, -1]) for i in range(sum(stages))]

        def separable(partial: Architecture, table: list[list[int]] = table) -> float:
            return sum(row[digit] for row, digit in zip(table, partial.dilation_code))

        scorer = FakeScorer(separable)
        best = greedy(space, scorer)[0]
        assert best.architecture.dilation_code == tuple(row.index(max(row)) for row in table)
        assert best.architecture in space and best.architecture.is_complete
        assert best.score == sum(map(max, table))
        assert len(scorer.calls) == len(set(scorer.calls)) <= 3 + 9 * (blocks - 1)
        lengths = [len(partial.dilation_code) for partial in scorer.calls]
        assert lengths == sorted(lengths)
        assert [lengths.count(n) for n in sorted(set(lengths))] == [3] + [9] * (blocks - 1)


@pytest.mark.parametrize(
    ("top_k", "evaluations"), [(1, 3 + 3 * 7), (2, 3 + 6 * 7), (9, 3 + 9 + 27 * 6)]
)
def test_greedy_search_keeps_the_best_k(top_k: int, evaluations: int) -> None:
    scorer = FakeScorer()
    greedy(DilationSpace("resnet", (1, 3, 2, 2)), scorer, top_k=top_k)
    assert len(scorer.calls) == evaluations
    for length in range(2, 9):
        before = [a for a in scorer.calls if len(a.dilation_code) == length - 1]
        kept = sorted(before, key=arbitrary, reverse=True)[:top_k]
        parents = {a.dilation_code[:-1] for a in scorer.calls if len(a.dilation_code) == length}
        assert parents == {a.dilation_code for a in kept}


def test_greedy_search_gets_past_a_trap_that_the_best_prefix_falls_into() -> None:
    """The second best first digit leads to the best whole code: keeping three finds it."""

    def trap(partial: Architecture) -> float:
        code = partial.dilation_code
        return {0: 2.0, 1: 1.0, 2: 0.0}[code[0]] + 10.0 * (code[:2] == (1, 2))

    space = DilationSpace("resnet", (1, 1, 1, 1))
    three, one = (greedy(space, FakeScorer(trap), top_k=top_k)[0] for top_k in (3, 1))
    assert three.architecture.dilation_code[:2] == (1, 2)
    assert one.architecture.dilation_code[0] == 0


def test_greedy_search_with_equal_scores_has_one_answer() -> None:
    found = greedy(DilationSpace("resnet", (1, 3, 2, 2)), FakeScorer(lambda _: 40.0))
    assert not any(found[0].architecture.dilation_code)


def test_progress_sees_every_candidate() -> None:
    seen: list[list[Architecture]] = []

    def progress(architectures: Sequence[Architecture]) -> Any:
        seen.append(list(architectures))
        return nullcontext(architectures)

    scorer = FakeScorer()
    greedy(DilationSpace("resnet", (1, 1, 2, 1)), scorer, progress=progress)
    assert [a for step in seen for a in step] == scorer.calls
    assert [len(step) for step in seen] == [3, 9, 9, 9, 9]
