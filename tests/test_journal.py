"""The journal of scored candidates, and searches that are killed and resumed."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_scorer import (
    SMALL_SPACE,
    FakeScorer,
    alternative,
    arbitrary,
    costs,
    exhaustive,
    greedy,
    lines,
    stages,
    timeless,
)

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError
from crnas_d2.search.alternatives import evolution, random_search
from crnas_d2.search.journal import Candidate, Journal
from crnas_d2.space import RESNET_DEPTHS, DilationSpace, StageSpace

STAGES = StageSpace("resnet", RESNET_DEPTHS)

# ---- the journal -----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stage" / "journal.jsonl"


NEW = {"phase": "stage", "architecture": "resnet/2-1-2-2/00-0-00-00", "score": 1.5}


def filled(path: Path, count: int = 3) -> Journal:
    journal = Journal(path)
    for i in range(count):
        journal.add("stage", f"resnet/1-1-2-{i + 1}/0-0-00-" + "0" * (i + 1), i / 7)
    return journal


def test_scores_survive_the_file_to_the_bit(path: Path) -> None:
    rng = random.Random(0)
    scores = [rng.uniform(0, 100) for _ in range(30)]
    scores += [0.0, 100.0, 100 / 3, 0.1 + 0.2, math.nextafter(50, 51), 5e-324, math.pi * 1e-9]
    journal = Journal(path)
    for i, score in enumerate(scores):
        journal.add("stage", f"code {i}", score)
    again = Journal(path)
    for i, score in enumerate(scores):
        for known in (journal, again):
            value = known.score("stage", f"code {i}")
            assert value is not None and value.hex() == score.hex()
    assert again.records == journal.records == lines(path)
    assert again.score("dilation", "code 1") is None
    assert again.score("stage", "code 99") is None


def test_what_a_line_says(path: Path) -> None:
    code = Architecture.undilated("resnet", (1, 1, 2, 2))
    exhaustive("stage", FakeScorer(), Journal(path))([code], 1)
    (line,) = lines(path)
    assert line.pop("seconds") >= 0
    expected = {"phase": "stage", "architecture": str(code), "score": arbitrary(code)}
    assert line == {**expected, "error": 0.0, **costs(code)}


def test_a_line_is_on_disk_before_the_next_score(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    scorer = FakeScorer(looks)
    stages(STAGES, 8, scorer, Journal(path))
    assert len(scorer.calls) == 9
    assert synced[-1] == path.read_bytes() and len(lines(path)) == 9


def test_a_torn_last_line_is_dropped(path: Path) -> None:
    records, whole = filled(path).records, path.read_bytes()
    torn = json.dumps(NEW).encode()
    for tail in (torn, torn[:20], torn[:1], b"\0\0\0", "é".encode()[:1]):
        path.write_bytes(whole + tail)
        assert Journal(path, writes=False).records == records
        assert path.read_bytes() == whole + tail  # a reader leaves the file alone
        journal = Journal(path)
        assert path.read_bytes() == whole
        assert journal.records == records
        assert journal.score("stage", NEW["architecture"]) is None
        journal.add(**NEW)
        assert Journal(path).records == [*records, NEW]


@pytest.mark.parametrize(
    "bad",
    [
        *(b"", b"{", b"null", b"[1, 2]", b'"text"', b"{}", b"\xff\xfe\xfd"),
        b'{"phase": "stage", "architecture": "x"}',
        b'{"phase": "stage", "score": 1.0}',
        b'{"architecture": "x", "score": 1.0}',
        b'{"phase": "stage", "architecture": "x", "score": null}',
        b'{"phase": "stage", "architecture": "x", "score": "1.0"}',
        b'{"phase": "stage", "architecture": "x", "score": NaN}',
        b'{"phase": "stage", "architecture": "x", "score": Infinity}',
        b'{"phase": ["stage"], "architecture": "x", "score": 1.0}',
    ],
)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_damaged_line_is_an_error_that_names_it(path: Path, bad: bytes, number: int) -> None:
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


def test_a_candidate_that_stands_there_twice_is_an_error(path: Path) -> None:
    filled(path)
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes() + first)
    with pytest.raises(InputError, match=r"journal.jsonl:4: .*resnet/1-1-2-1/.*a second time"):
        Journal(path)


@pytest.mark.parametrize("writes", [True, False])
def test_a_second_score_is_refused_and_not_written(path: Path, writes: bool) -> None:
    known = filled(path).records[1]
    before = path.read_bytes()
    journal = Journal(path, writes=writes)
    with pytest.raises(ValueError, match="a second time"):
        journal.add("stage", known["architecture"], 99.0)
    assert path.read_bytes() == before
    assert journal.score("stage", known["architecture"]) == known["score"]
    assert len(journal.records) == 3


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("writes", [True, False])
def test_a_score_that_is_not_finite_is_refused(path: Path, writes: bool, score: float) -> None:
    journal = Journal(path, writes=writes)
    code = Architecture.undilated("resnet", (1, 1, 2, 2))
    with pytest.raises(ValueError, match=str(score)) as caught:
        exhaustive("stage", FakeScorer(lambda _: score), journal)([code], 1)
    assert str(code) in str(caught.value)
    assert journal.records == [] and journal.score("stage", str(code)) is None
    assert not path.exists()


def test_another_process_remembers_but_never_writes(path: Path) -> None:
    reader = Journal(path, writes=False)
    found = stages(STAGES, 8, FakeScorer(), reader)
    assert not path.parent.exists()
    assert len(reader.records) == 9
    scorer = FakeScorer()
    assert stages(STAGES, 8, scorer, reader) == found
    assert scorer.calls == []


def test_all_processes_hold_the_same_after_a_resume(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stages(STAGES, 8, FakeScorer(fails_at=4), Journal(path))
    reader = Journal(path, writes=False)
    mine, writers = FakeScorer(), FakeScorer()
    found = stages(STAGES, 8, mine, reader)
    assert stages(STAGES, 8, writers, Journal(path)) == found
    assert mine.calls == writers.calls and len(mine.calls) == 5


@pytest.mark.parametrize("count", [0, 3], ids=["cannot be made", "goes away"])
def test_a_folder_that_is_a_file(path: Path, count: int) -> None:
    """The error names it, and the lines from before stay."""
    moved = path.parent.with_name("moved")
    journal = filled(path, count)
    if count:
        path.parent.rename(moved)
    path.parent.write_text("a file")
    with pytest.raises(OSError) as caught:
        journal.add(**NEW)
    assert str(path.parent) in str(caught.value)
    assert len(journal.records) == count and path.parent.read_text() == "a file"
    assert not count or lines(moved / "journal.jsonl") == journal.records


# ---- killed and resumed ----------------------------------------------------------------------------

Search = Callable[[FakeScorer, Journal], list[Candidate]]
DIGITS = DilationSpace("resnet", (1, 3, 2, 2))
LIMITS = {"macs": [40, 0.1]}
SEARCHES = pytest.mark.parametrize(
    ("search", "evaluations"),
    [
        (lambda *of: stages(SMALL_SPACE, 8, *of), 9),
        (lambda *of: greedy(DilationSpace("resnet", (1, 1, 2, 1)), *of), 3 + 9 * 4),
        (lambda *of: alternative(evolution, STAGES, LIMITS, *of, evaluations=45, seed=1), 45),
        (lambda *of: alternative(evolution, DIGITS, 8, *of, evaluations=45, seed=1), 45),
        (lambda *of: alternative(random_search, STAGES, LIMITS, *of, evaluations=12, seed=1), 12),
    ],
    ids=["stages", "blocks", "evolved stages", "evolved digits", "drawn stages"],
)


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@SEARCHES
def test_killed_at_any_candidate_and_resumed(
    tmp_path: Path, no_disk: None, search: Search, evaluations: int
) -> None:
    whole, scorer = tmp_path / "whole.jsonl", FakeScorer()
    expected = search(scorer, Journal(whole))
    assert len(scorer.calls) == evaluations
    for k in range(evaluations):
        path, killed, resumed = tmp_path / f"{k}.jsonl", FakeScorer(fails_at=k), FakeScorer()
        with pytest.raises(KeyboardInterrupt):
            search(killed, Journal(path))
        found = search(resumed, Journal(path))
        assert found == expected
        assert killed.calls + resumed.calls == scorer.calls
        assert len(resumed.calls) == evaluations - k
        assert timeless(path) == timeless(whole)


@SEARCHES
def test_killed_in_the_middle_of_a_line_and_resumed(
    tmp_path: Path, no_disk: None, search: Search, evaluations: int
) -> None:
    whole, scorer = tmp_path / "whole.jsonl", FakeScorer()
    expected = search(scorer, Journal(whole))
    data = whole.read_bytes()
    cuts = random.Random(0).sample(range(len(data)), 40)
    for cut in [*cuts, 0, len(data) - 1, len(data)]:
        path, resumed = tmp_path / f"{cut}.jsonl", FakeScorer()
        path.write_bytes(data[:cut])
        assert search(resumed, Journal(path)) == expected
        assert resumed.calls == scorer.calls[data[:cut].count(b"\n") :]
        assert timeless(path) == timeless(whole)
