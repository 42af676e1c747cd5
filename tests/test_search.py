"""The searches and their journal, on scores that cost nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crnas_d2.architecture import FAMILY_STAGES, Architecture
from crnas_d2.budget import Budget, BudgetSpec
from crnas_d2.errors import InputError
from crnas_d2.search.candidates import (
    Candidate,
    Done,
    Group,
    Score,
    ScoreAll,
    grouped,
    ranked,
)
from crnas_d2.search.evolution import GENERATION, PARENTS, evolution
from crnas_d2.search.greedy import TOP_K, greedy_search
from crnas_d2.search.journal import Journal
from crnas_d2.search.random_search import random_search
from crnas_d2.search.stage import stage_search
from crnas_d2.seeding import derive_seed
from crnas_d2.space import FAMILY_DEPTHS, RESNET_DEPTHS, DilationSpace, Space, StageSpace, block_cost

Search = Callable[[Any, Journal], list[Candidate]]


def costs(architecture: Architecture) -> dict[str, float]:
    """A block of a later stage is cheaper; rates cost nothing, as in the real thing."""
    macs = sum((4 - i) * n for i, n in enumerate(architecture.stage_code))
    return {"blocks": block_cost(architecture), "macs": macs}


def arbitrary(architecture: Architecture) -> float:
    """A score with all its bits in use, in 0..100."""
    return derive_seed(0, "score", str(architecture)) / 2**63 * 100


class Scorer:
    """Counts what it is asked for; raises where it is told to.

    Attributes:
        calls: architectures in the order in which they were scored.
    """

    def __init__(
        self, score: Callable[[Architecture], float] = arbitrary, fails_at: int | None = None
    ) -> None:
        self.calls: list[Architecture] = []
        self._score = score
        self._fails_at = fails_at

    def __call__(self, groups: Iterable[Group], done: Done) -> None:
        for group in groups:
            scores = []
            for architecture in group:
                if len(self.calls) == self._fails_at:
                    raise KeyboardInterrupt
                self.calls.append(architecture)
                scores.append(self._score(architecture))
            done(group, scores)


def stages(
    space: StageSpace, budget: Any, score: Score, journal: Journal, **options: Any
) -> list[Candidate]:
    compare = ScoreAll("stage", score, costs, journal, **options)
    return stage_search(space, budget, compare, costs)


def greedy(
    space: DilationSpace, score: Score, journal: Journal, top_k: int = TOP_K, **options: Any
) -> list[Candidate]:
    return greedy_search(space, ScoreAll("dilation", score, costs, journal, **options), top_k)


def alternative(
    search: Callable[..., list[Candidate]],
    space: Space,
    budget: Any,
    score: Score,
    journal: Journal,
    evaluations: int,
    seed: int,
    **options: Any,
) -> list[Candidate]:
    compare = ScoreAll(space.phase, score, costs, journal, **options)
    return search(space, budget, compare, costs, evaluations, seed)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(path)]


def record(name: str = "resnet/1-1-2-2/0-0-00-00", score: float = 1.5) -> dict[str, Any]:
    return {"phase": "stage", "architecture": name, "score": score}


def filled(path: Path, count: int = 3) -> Journal:
    journal = Journal(path)
    for i in range(count):
        journal.add(record(f"resnet/1-1-2-{i + 1}/0-0-00-" + "0" * (i + 1), score=i / 7))
    return journal


# ---- the order of candidates ---------------------------------------------------------------------


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


# ---- stage search --------------------------------------------------------------------------------

RESNETS = [family for family in FAMILY_STAGES if FAMILY_DEPTHS[family] == RESNET_DEPTHS]


@pytest.mark.parametrize(("budget", "count"), [(8, 9), (16, 153), (33, 374)])
@pytest.mark.parametrize("family", RESNETS)
def test_stage_search_visits_exactly_the_eligible_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, budget: int, count: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a slow disk
    scorer = Scorer()
    space = StageSpace(family, RESNET_DEPTHS)
    found = stages(space, budget, scorer, Journal(tmp_path / "journal.jsonl"))
    assert len(scorer.calls) == len(set(scorer.calls)) == count
    t1, t2, t3, t4 = RESNET_DEPTHS
    assert {code.stage_code for code in scorer.calls} == {
        (a, b, c, budget - a - b - c) for a in t1 for b in t2 for c in t3 if budget - a - b - c in t4
    }
    assert sorted(map(str, scorer.calls)) == sorted(str(c.architecture) for c in found)
    assert all(c.score == arbitrary(c.architecture) for c in found)
    assert found[0].score == max(map(arbitrary, scorer.calls))
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_stage_search_with_equal_scores_takes_the_cheapest(tmp_path: Path) -> None:
    space = StageSpace("resnet", RESNET_DEPTHS)
    journal = Journal(tmp_path / "journal.jsonl")
    found = stages(space, 8, Scorer(lambda _: 40.0), journal)
    codes = space.eligible(8)
    assert found[0].architecture == min(codes, key=lambda a: (costs(a)["macs"], str(a)))


def test_one_journal_serves_several_budgets(tmp_path: Path) -> None:
    space = StageSpace("resnet", RESNET_DEPTHS)
    scorer, journal = Scorer(), Journal(tmp_path / "journal.jsonl")
    for budget in (7, 8, 7):
        found = stages(space, budget, scorer, journal)
        assert {sum(c.architecture.stage_code) for c in found} == {budget}
    assert len(scorer.calls) == len(set(scorer.calls)) == 4 + 9


@pytest.mark.parametrize("size", [1, 2, 7, 32, 1000])
def test_groups_are_neighbours_that_share_their_first_depth(size: int) -> None:
    codes = StageSpace("resnet", RESNET_DEPTHS).eligible(16)
    groups = grouped(codes, size)
    assert [code for group in groups for code in group] == codes
    assert max(map(len, groups)) <= size
    assert all(len({code.stage_code[0] for code in group}) == 1 for group in groups)
    if size == 1000:
        assert len(groups) == 10
    # MobileNetV2's first two entries are the same everywhere; of one stage code all share everything.
    codes = StageSpace("mobilenetv2", FAMILY_DEPTHS["mobilenetv2"]).eligible(16)
    assert len(grouped(codes, 1000)) == len({code.stage_code[2] for code in codes})
    space = DilationSpace("resnet", (1, 1, 2, 4))
    assert len(grouped(space.extensions(space.root), 1000)) == 1


@pytest.mark.parametrize("kind", ["stage", "greedy", "evolution", "random"])
def test_the_size_of_a_group_changes_nothing_but_when_lines_are_written(
    tmp_path: Path, kind: str
) -> None:
    def search(name: str, size: int) -> list[Candidate]:
        journal = Journal(tmp_path / f"{name}.jsonl")
        if kind == "stage":
            return stages(SMALL_SPACE, 8, Scorer(), journal, group_size=size)
        if kind in ALTERNATIVES:
            search = ALTERNATIVES[kind]
            return alternative(search, STAGES, 16, Scorer(), journal, 30, seed=0, group_size=size)
        space = DilationSpace("resnet", (1, 1, 2, 1))
        return greedy(space, Scorer(), journal, group_size=size)

    assert search("one", 1) == search("four", 4) == search("all", 1000)
    for name in ("four", "all"):
        assert timeless(tmp_path / "one.jsonl") == timeless(tmp_path / f"{name}.jsonl")


def test_a_group_is_journalled_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    on_disk = []

    def score(groups: Iterable[Group], done: Done) -> None:
        for group in groups:
            on_disk.append((len(group), len(lines(path)) if path.exists() else 0))
            done(group, [arbitrary(architecture) for architecture in group])

    stages(SMALL_SPACE, 8, score, Journal(path), group_size=4)
    before = 0
    for size, held in on_disk:
        assert held == before
        before += size
    assert max(size for size, _ in on_disk) == 4
    assert before == 9


# ---- greedy search -------------------------------------------------------------------------------

STAGE_CODES = [(1, 1, 1, 1), (1, 1, 2, 4), (3, 4, 6, 3), (1, 3, 5, 7), (5, 1, 1, 1)]
CODES_OF_FAMILIES = [(family, stages) for family in RESNETS for stages in STAGE_CODES]
CODES_OF_FAMILIES.append(("mobilenetv2", (1, 1, 2, 2, 3, 4, 4, 1, 1, 1)))


@pytest.mark.parametrize(("family", "stages"), CODES_OF_FAMILIES, ids=str)
def test_greedy_search_finds_the_optimum_of_a_separable_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, stages: tuple[int, ...]
) -> None:
    """What a block adds depends on its own digit alone, so each block's best digit is the answer."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a slow disk
    space = DilationSpace(family, stages)
    blocks = space.choices
    for seed in range(5):
        rng = random.Random(seed)
        # Integers: sums are exact, and different within a block.
        open_blocks = [i for i in range(sum(stages)) if space.root.has_choice(i)]
        chosen = {i: rng.sample(range(1000), 3) for i in open_blocks}
        table = [chosen.get(i, [0, -1, -1]) for i in range(sum(stages))]

        def separable(partial: Architecture, table: list[list[int]] = table) -> float:
            return sum(row[digit] for row, digit in zip(table, partial.dilation_code))

        scorer = Scorer(separable)
        found = greedy(space, scorer, Journal(tmp_path / f"{seed}.jsonl"))
        best = found[0]
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
def test_greedy_search_keeps_the_best_k(tmp_path: Path, top_k: int, evaluations: int) -> None:
    scorer = Scorer()
    space = DilationSpace("resnet", (1, 3, 2, 2))
    greedy(space, scorer, Journal(tmp_path / "journal.jsonl"), top_k)
    assert len(scorer.calls) == evaluations
    for length in range(2, 9):
        before = [a for a in scorer.calls if len(a.dilation_code) == length - 1]
        kept = sorted(before, key=arbitrary, reverse=True)[:top_k]
        parents = {a.dilation_code[:-1] for a in scorer.calls if len(a.dilation_code) == length}
        assert parents == {a.dilation_code for a in kept}


def test_greedy_search_gets_past_a_trap_that_the_best_prefix_falls_into(tmp_path: Path) -> None:
    """The second best first digit leads to the best whole code: keeping three finds it."""

    def trap(partial: Architecture) -> float:
        code = partial.dilation_code
        return {0: 2.0, 1: 1.0, 2: 0.0}[code[0]] + 10.0 * (code[:2] == (1, 2))

    space = DilationSpace("resnet", (1, 1, 1, 1))
    three = greedy(space, Scorer(trap), Journal(tmp_path / "3.jsonl"), 3)
    one = greedy(space, Scorer(trap), Journal(tmp_path / "1.jsonl"), 1)
    assert three[0].architecture.dilation_code[:2] == (1, 2)
    assert one[0].architecture.dilation_code[0] == 0


def test_greedy_search_with_equal_scores_has_one_answer(tmp_path: Path) -> None:
    space = DilationSpace("resnet", (1, 3, 2, 2))
    journal = Journal(tmp_path / "journal.jsonl")
    found = greedy(space, Scorer(lambda _: 40.0), journal)
    assert not any(found[0].architecture.dilation_code)


# ---- evolution and random search -----------------------------------------------------------------

ALTERNATIVES: dict[str, Callable[..., list[Candidate]]] = {
    "evolution": evolution,
    "random": random_search,
}
STAGES = StageSpace("resnet", RESNET_DEPTHS)
MOBILENET = StageSpace("mobilenetv2", FAMILY_DEPTHS["mobilenetv2"])
DIGITS = DilationSpace("resnet", (3, 4, 6, 3))
LARGE = DilationSpace("resnet", (3, 4, 23, 3))  # 3 ** 33 codes
PROBLEMS: dict[str, tuple[Space, BudgetSpec]] = {
    "stages": (STAGES, 33),
    "stages, macs": (STAGES, {"macs": [80, 0.05]}),
    "stages, two limits": (STAGES, {"blocks": [33, 0.1], "macs": [80, 0.05]}),
    "mobilenet's stages": (MOBILENET, {"blocks": [16, 0.05]}),
    "digits": (DIGITS, 16),
    "many digits": (LARGE, 33),
}
PROBLEM = pytest.mark.parametrize("problem", PROBLEMS)
ALTERNATIVE = pytest.mark.parametrize("name", ALTERNATIVES)


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def separable(space: Space, seed: int) -> Callable[[Architecture], float]:
    """What an entry of the code adds depends on that entry alone."""
    rng = random.Random(seed)
    table = [{value: rng.random() for value in values} for values in space.alternatives]
    return lambda a: sum(row[value] for row, value in zip(table, space.code_of(a)))


@ALTERNATIVE
@PROBLEM
def test_different_eligible_candidates_as_many_as_asked_for(
    tmp_path: Path, no_disk: None, problem: str, name: str
) -> None:
    space, entry = PROBLEMS[problem]
    scorer, search = Scorer(), ALTERNATIVES[name]
    found = alternative(search, space, entry, scorer, Journal(tmp_path / "j.jsonl"), 50, seed=2)
    assert len(scorer.calls) == len(set(scorer.calls)) == 50
    assert all(a in space and a.is_complete for a in scorer.calls)
    if isinstance(space, StageSpace):
        assert set(scorer.calls) <= set(space.eligible(entry, costs))
    assert sorted(map(str, scorer.calls)) == sorted(str(c.architecture) for c in found)
    assert found == ranked(found)


@ALTERNATIVE
@PROBLEM
def test_the_course_is_a_function_of_the_seed(
    tmp_path: Path, no_disk: None, problem: str, name: str
) -> None:
    space, entry = PROBLEMS[problem]

    def calls(seed: int, file: str) -> list[Architecture]:
        scorer = Scorer()
        random.seed(file)  # a global state that nobody may look at
        alternative(ALTERNATIVES[name], space, entry, scorer, Journal(tmp_path / file), 50, seed=seed)
        return scorer.calls

    assert calls(0, "a") == calls(0, "b")
    assert set(calls(0, "c")) != set(calls(1, "d"))


@PROBLEM
def test_evolution_is_no_worse_than_random_search(tmp_path: Path, no_disk: None, problem: str) -> None:
    """On a separable score, with equally many evaluations, on the mean; with digits for every seed."""
    space, entry = PROBLEMS[problem]
    scores: dict[str, list[float]] = {name: [] for name in ALTERNATIVES}
    for seed in range(6):
        for name, search in ALTERNATIVES.items():
            scorer, path = Scorer(separable(space, seed)), tmp_path / f"{name}-{seed}.jsonl"
            found = alternative(search, space, entry, scorer, Journal(path), 120, seed=seed)
            assert len(scorer.calls) == 120
            scores[name].append(found[0].score)
    assert sum(scores["evolution"]) > sum(scores["random"])
    if isinstance(space, DilationSpace):
        assert all(e > r for e, r in zip(scores["evolution"], scores["random"]))


@pytest.mark.parametrize("seed", range(4))
def test_evolution_finds_the_best_of_a_small_space(tmp_path: Path, no_disk: None, seed: int) -> None:
    """Of 729 codes, with 120 evaluations of a separable score."""
    space = DilationSpace("resnet", (1, 1, 2, 2))
    score, journal = separable(space, seed), Journal(tmp_path / "j.jsonl")
    found = alternative(evolution, space, 6, Scorer(score), journal, 120, seed=seed)
    best = max((space.with_code(code) for code in itertools.product(*space.alternatives)), key=score)
    assert found[0].architecture == best


@ALTERNATIVE
@pytest.mark.parametrize(
    ("space", "entry", "count"),
    [
        (STAGES, 8, 9),
        (STAGES, 6, 1),
        (DilationSpace("resnet", (1, 1, 2, 1)), 5, 3**5),
        (StageSpace("resnet", ((1,), (1,), (2,), (2,))), 6, 1),
    ],
    ids=str,
)
def test_a_small_space_is_gone_through(
    tmp_path: Path, no_disk: None, name: str, space: Space, entry: float, count: int
) -> None:
    scorer = Scorer()
    found = alternative(ALTERNATIVES[name], space, entry, scorer, Journal(tmp_path / "j"), 1000, seed=0)
    assert len(scorer.calls) == len(set(scorer.calls)) == len(found) == count
    assert found[0].score == max(map(arbitrary, scorer.calls))


@pytest.mark.parametrize("space", [STAGES, LARGE], ids=["stages", "many digits"])
def test_more_evaluations_of_a_random_search_are_more_of_the_same(
    tmp_path: Path, no_disk: None, space: Space
) -> None:
    calls = []
    for evaluations in (10, 30):
        scorer, journal = Scorer(), Journal(tmp_path / f"{evaluations}.jsonl")
        alternative(random_search, space, 33, scorer, journal, evaluations, seed=0)
        calls.append(set(scorer.calls))
    assert calls[0] < calls[1]


def test_random_search_draws_uniformly(tmp_path: Path, no_disk: None) -> None:
    """Nine codes, 900 seeds: 100 draws of each, with a standard deviation of 9.4."""
    journal, drawn = Journal(tmp_path / "j.jsonl"), []
    for seed in range(900):
        (candidate,) = alternative(random_search, SMALL_SPACE, 8, Scorer(), journal, 1, seed=seed)
        drawn.append(candidate.architecture)
    counts = [drawn.count(architecture) for architecture in set(drawn)]
    assert len(counts) == 9
    assert all(abs(count - 100) < 4 * 9.4 for count in counts)


def test_several_budgets_score_every_candidate_once(tmp_path: Path, no_disk: None) -> None:
    path, scorer = tmp_path / "j.jsonl", Scorer()
    for entry in ({"blocks": [16, 0.2]}, {"macs": [40, 0.2]}):  # with many codes in common
        journal = Journal(path)
        found = alternative(evolution, STAGES, entry, scorer, journal, 60, seed=0)
        assert len(found) == 60
    assert len(scorer.calls) == len(set(scorer.calls)) == len(lines(path))


@ALTERNATIVE
def test_a_budget_that_no_code_drawn_meets(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, path = Scorer(), tmp_path / "j.jsonl"

    def call(entry: BudgetSpec) -> str:
        with pytest.raises(InputError) as caught:
            alternative(ALTERNATIVES[name], STAGES, entry, scorer, Journal(path), 10, seed=0)
        assert str(caught.value).startswith(f"SEARCH.BUDGETS: {Budget.parse(entry)}: none of ")
        return str(caught.value)

    assert "of 10000 codes" in call(61) and "nearest: 58, 59, 60" in call(61)
    assert "macs from 13 to " in call({"macs": [1, 0.01]})
    monkeypatch.setattr("crnas_d2.search.random_search.DRAWS", 500)  # as if the space were larger
    drawn = re.search(r"none of (\d+) codes", call(61))
    assert drawn is not None and 450 < int(drawn[1]) < 500  # some came twice
    assert not scorer.calls and not path.exists()


def test_evolution_breeds_from_the_best(tmp_path: Path, no_disk: None) -> None:
    """All entries of a child are those of the best before it, but for one if it is a mutant."""
    scorer = Scorer(separable(DIGITS, 0))
    alternative(evolution, DIGITS, 16, scorer, Journal(tmp_path / "j.jsonl"), 2 * GENERATION, seed=0)
    first, second = scorer.calls[:GENERATION], scorer.calls[GENERATION:]
    parents = sorted(first, key=separable(DIGITS, 0), reverse=True)[:PARENTS]
    columns = [set(values) for values in zip(*(a.dilation_code for a in parents))]
    strange = [
        sum(digit not in column for digit, column in zip(child.dilation_code, columns))
        for child in second
    ]
    assert len(second) == GENERATION and max(strange) <= 1
    assert strange.count(0) >= GENERATION // 2


# ---- the journal ---------------------------------------------------------------------------------


def test_scores_survive_the_file_to_the_bit(tmp_path: Path) -> None:
    rng = random.Random(0)
    scores = [rng.uniform(0, 100) for _ in range(30)]
    scores += [0.0, 100.0, 100 / 3, 0.1 + 0.2, math.nextafter(50, 51), 5e-324, math.pi * 1e-9]
    path = tmp_path / "stage" / "journal.jsonl"
    journal = Journal(path)
    for i, score in enumerate(scores):
        journal.add(record(f"resnet/1-1-2-{i + 1}/...", score))
    again = Journal(path)
    for i, score in enumerate(scores):
        for known in (journal, again):
            value = known.score("stage", f"resnet/1-1-2-{i + 1}/...")
            assert value is not None and value.hex() == score.hex()
    assert again.records == journal.records == lines(path)
    assert again.score("dilation", "resnet/1-1-2-1/...") is None
    assert again.score("stage", "resnet/1-1-2-99/...") is None


def test_what_a_line_says(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = Architecture.undilated("resnet", (1, 1, 2, 2))
    ScoreAll("stage", Scorer(), costs, Journal(path))([code], 1)
    (line,) = lines(path)
    assert line.pop("seconds") >= 0
    assert line == {
        "phase": "stage",
        "architecture": str(code),
        "score": arbitrary(code),
        **costs(code),
    }


def test_a_line_is_on_disk_before_the_next_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stage" / "journal.jsonl"
    synced: list[bytes] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(path.read_bytes())  # flushed by then

    monkeypatch.setattr(os, "fsync", watched)

    def looks(architecture: Architecture) -> float:
        there = lines(path) if path.exists() else []
        assert [line["architecture"] for line in there] == list(map(str, scorer.calls[:-1]))
        assert not there or synced[-1] == path.read_bytes()
        return arbitrary(architecture)

    scorer = Scorer(looks)
    stages(StageSpace("resnet", RESNET_DEPTHS), 8, scorer, Journal(path))
    assert len(scorer.calls) == 9
    assert synced[-1] == path.read_bytes() and len(lines(path)) == 9


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    whole = path.read_bytes()
    torn = json.dumps(record("resnet/2-1-2-2/00-0-00-00")).encode()
    for tail in (torn, torn[:20], torn[:1], b"\0\0\0", "é".encode()[:1]):
        path.write_bytes(whole + tail)
        assert Journal(path, writes=False).records == lines_of(whole)
        assert path.read_bytes() == whole + tail  # a reader leaves the file alone
        journal = Journal(path)
        assert path.read_bytes() == whole
        assert journal.records == lines_of(whole)
        assert journal.score("stage", "resnet/2-1-2-2/00-0-00-00") is None
        journal.add(record("resnet/2-1-2-2/00-0-00-00"))
        assert len(Journal(path).records) == 4


def lines_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"null",
        b"[1, 2]",
        b'"text"',
        b"{}",
        b'{"phase": "stage", "architecture": "x"}',
        b'{"phase": "stage", "score": 1.0}',
        b'{"architecture": "x", "score": 1.0}',
        b'{"phase": "stage", "architecture": "x", "score": null}',
        b'{"phase": "stage", "architecture": "x", "score": "1.0"}',
        b'{"phase": "stage", "architecture": "x", "score": NaN}',
        b'{"phase": "stage", "architecture": "x", "score": Infinity}',
        b'{"phase": ["stage"], "architecture": "x", "score": 1.0}',
        b"\xff\xfe\xfd",
    ],
)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path, bad: bytes, number: int) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    damaged = path.read_bytes().splitlines()
    damaged.insert(number - 1, bad)
    path.write_bytes(b"\n".join(damaged) + b"\n")
    before = path.read_bytes()
    for writes in (True, False):
        with pytest.raises(InputError) as caught:
            Journal(path, writes=writes)
        assert str(caught.value).startswith(f"{path}:{number}: ")
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before


def test_a_candidate_that_stands_there_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes() + first)
    with pytest.raises(InputError, match=r"journal.jsonl:4: .*resnet/1-1-2-1/.*a second time"):
        Journal(path)


@pytest.mark.parametrize("writes", [True, False])
def test_a_second_score_is_refused_and_not_written(tmp_path: Path, writes: bool) -> None:
    path = tmp_path / "journal.jsonl"
    known = filled(path).records[1]
    before = path.read_bytes()
    journal = Journal(path, writes=writes)
    with pytest.raises(ValueError, match="a second time"):
        journal.add({**known, "score": 99.0})
    assert path.read_bytes() == before
    assert journal.score("stage", known["architecture"]) == known["score"]
    assert len(journal.records) == 3


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("writes", [True, False])
def test_a_score_that_is_not_finite_is_refused(tmp_path: Path, writes: bool, score: float) -> None:
    path = tmp_path / "stage" / "journal.jsonl"
    journal = Journal(path, writes=writes)
    code = Architecture.undilated("resnet", (1, 1, 2, 2))
    with pytest.raises(ValueError, match=str(score)) as caught:
        ScoreAll("stage", Scorer(lambda _: score), costs, journal)([code], 1)
    assert str(code) in str(caught.value)
    assert journal.records == [] and journal.score("stage", str(code)) is None
    assert not path.exists()


def test_another_process_remembers_but_never_writes(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "journal.jsonl"
    reader = Journal(path, writes=False)
    space = StageSpace("resnet", RESNET_DEPTHS)
    found = stages(space, 8, Scorer(), reader)
    assert not path.parent.exists()
    assert len(reader.records) == 9
    scorer = Scorer()
    assert stages(space, 8, scorer, reader) == found
    assert scorer.calls == []


def test_all_processes_hold_the_same_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    space = StageSpace("resnet", RESNET_DEPTHS)
    with pytest.raises(KeyboardInterrupt):
        stages(space, 8, Scorer(fails_at=4), Journal(path))
    reader = Journal(path, writes=False)
    mine, writers = Scorer(), Scorer()
    found = stages(space, 8, mine, reader)
    assert stages(space, 8, writers, Journal(path)) == found
    assert mine.calls == writers.calls and len(mine.calls) == 5


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "stage").write_text("a file")
    journal = Journal(tmp_path / "stage" / "journal.jsonl")
    with pytest.raises(OSError) as caught:
        journal.add(record())
    assert str(tmp_path / "stage") in str(caught.value)
    assert journal.records == []
    assert (tmp_path / "stage").read_text() == "a file"


def test_a_folder_that_goes_away_leaves_the_journal_whole(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "journal.jsonl"
    journal = filled(path)
    before = path.read_bytes()
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.write_text("a file")
    with pytest.raises(OSError) as caught:
        journal.add(record("resnet/2-1-2-2/00-0-00-00"))
    assert str(path.parent) in str(caught.value)
    assert len(journal.records) == 3
    assert (tmp_path / "elsewhere" / "journal.jsonl").read_bytes() == before


# ---- killed and resumed --------------------------------------------------------------------------


SMALL_SPACE = StageSpace("resnet_basic", RESNET_DEPTHS).only_eligible([8])


def nine_stage_codes(scorer: Scorer, journal: Journal) -> list[Candidate]:
    return stages(SMALL_SPACE, 8, scorer, journal)


def five_blocks(scorer: Scorer, journal: Journal) -> list[Candidate]:
    return greedy(DilationSpace("resnet", (1, 1, 2, 1)), scorer, journal)


def evolved_stage_codes(scorer: Scorer, journal: Journal) -> list[Candidate]:
    return alternative(evolution, STAGES, {"macs": [40, 0.1]}, scorer, journal, evaluations=45, seed=1)


def evolved_digits(scorer: Scorer, journal: Journal) -> list[Candidate]:
    space = DilationSpace("resnet", (1, 3, 2, 2))
    return alternative(evolution, space, 8, scorer, journal, evaluations=45, seed=1)


def drawn_stage_codes(scorer: Scorer, journal: Journal) -> list[Candidate]:
    return alternative(
        random_search, STAGES, {"macs": [40, 0.1]}, scorer, journal, evaluations=12, seed=1
    )


SEARCHES = pytest.mark.parametrize(
    ("search", "evaluations"),
    [
        (nine_stage_codes, 9),
        (five_blocks, 3 + 9 * 4),
        (evolved_stage_codes, 45),
        (evolved_digits, 45),
        (drawn_stage_codes, 12),
    ],
)


@SEARCHES
def test_killed_at_any_candidate_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: Search, evaluations: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a slow disk
    whole, scorer = tmp_path / "whole.jsonl", Scorer()
    expected = search(scorer, Journal(whole))
    assert len(scorer.calls) == evaluations
    for k in range(evaluations):
        path, killed, resumed = tmp_path / f"{k}.jsonl", Scorer(fails_at=k), Scorer()
        with pytest.raises(KeyboardInterrupt):
            search(killed, Journal(path))
        found = search(resumed, Journal(path))
        assert found == expected
        assert killed.calls + resumed.calls == scorer.calls
        assert len(resumed.calls) == evaluations - k
        assert timeless(path) == timeless(whole)


@SEARCHES
def test_killed_in_the_middle_of_a_line_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: Search, evaluations: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a slow disk
    whole, scorer = tmp_path / "whole.jsonl", Scorer()
    expected = search(scorer, Journal(whole))
    data = whole.read_bytes()
    cuts = random.Random(0).sample(range(len(data)), 40)
    for cut in [*cuts, 0, len(data) - 1, len(data)]:
        path, resumed = tmp_path / f"{cut}.jsonl", Scorer()
        path.write_bytes(data[:cut])
        assert search(resumed, Journal(path)) == expected
        assert resumed.calls == scorer.calls[data[:cut].count(b"\n") :]
        assert timeless(path) == timeless(whole)


def test_progress_sees_every_candidate(tmp_path: Path) -> None:
    seen: list[list[Architecture]] = []

    def progress(architectures: Sequence[Architecture]) -> Sequence[Architecture]:
        seen.append(list(architectures))
        return architectures

    space, scorer = DilationSpace("resnet", (1, 1, 2, 1)), Scorer()
    greedy(space, scorer, Journal(tmp_path / "j.jsonl"), progress=progress)
    assert [a for step in seen for a in step] == scorer.calls
    assert [len(step) for step in seen] == [3, 9, 9, 9, 9]
