"""Latency as a cost: what is measured of a space and what is only predicted, and the stopwatch."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import FAMILIES, HEADS, TINY
from fake_scorer import FakeScorer

from crnas_d2.analysis import latency
from crnas_d2.analysis.costs import input_size
from crnas_d2.analysis.latency import REPEATS, WARM_UP, LatencyCosts, Stopwatch
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import stage_space_of
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import Race
from crnas_d2.search.stage import stage_search
from crnas_d2.space import FAMILY_DEPTHS, StageSpace, block_costs
from detectron2.utils import comm

SPACE = StageSpace("resnet", FAMILY_DEPTHS["resnet"])
CODES = list(SPACE.codes())
# Seconds of a block of each stage; the rest of the detector.
OF_A_BLOCK, REST = (0.005, 0.003, 0.002, 0.004), 0.03


class Timer:
    """A detector whose seconds are nearly a sum over its blocks; raises where it is told to."""

    def __init__(self, off: float = 0.0, fails_at: int | None = None) -> None:
        self.calls: list[Architecture] = []
        self._off = off
        self._fails_at = fails_at

    def __call__(self, architecture: Architecture) -> float:
        if len(self.calls) == self._fails_at:
            raise KeyboardInterrupt
        self.calls.append(architecture)
        return self.seconds(architecture)

    def seconds(self, architecture: Architecture) -> float:
        code = architecture.stage_code
        of_blocks = sum(n * seconds for n, seconds in zip(code, OF_A_BLOCK))
        # Within +-off of the sum, none at the codes that the fit is of.
        bent = (code[0] - 1) * (code[1] - 1) * (-1) ** sum(code) / 81
        return (REST + of_blocks) * (1 + self._off * bent)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a slow disk
    return tmp_path / "out" / "latency.jsonl"


def costs_of(timer: Timer, path: Path, *texts: str, device: str = "a chip") -> LatencyCosts:
    budgets = map(Budget.parse, texts)
    limits = [limit for budget in budgets for limit in budget.limits if limit.cost == "latency"]
    journal = Journal(path, writes=comm.is_main_process())
    return LatencyCosts(
        block_costs, space=SPACE, limits=limits, measure=timer, device=device, journal=journal
    )


TEXTS = ["latency=0.12~2%", "latency=0.2~1%", "blocks=16, latency=0.1~10%"]


@pytest.mark.parametrize("off", [0.0, 0.009])
@pytest.mark.parametrize("text", TEXTS)
def test_eligible_codes_are_those_whose_measured_latency_is_within(
    path: Path, text: str, off: float
) -> None:
    timer, budget = Timer(off), Budget.parse(text)
    found = SPACE.eligible(text, costs_of(timer, path, text))
    measured = {code: {**block_costs(code), "latency": timer.seconds(code)} for code in CODES}
    assert found == [code for code in CODES if budget.meets(measured[code])]
    assert 0 < len(found) < len(CODES)
    assert len(timer.calls) == len(set(timer.calls))
    assert set(found) <= set(timer.calls)


@pytest.mark.parametrize("text", TEXTS)
def test_only_what_is_near_the_budget_is_measured(path: Path, text: str) -> None:
    timer, budget = Timer(), Budget.parse(text)
    found = SPACE.eligible(text, costs_of(timer, path, text))
    fit, rest = timer.calls[:5], timer.calls[5:]
    assert [code.stage_code for code in fit] == [
        *((1, 1, 2, 2), (10, 1, 2, 2), (1, 10, 2, 2), (1, 1, 23, 2), (1, 1, 2, 17)),
    ]
    (limit,) = (limit for limit in budget.limits if limit.cost == "latency")
    reach = 2 * limit.tolerance * limit.value
    assert all(abs(timer.seconds(code) - limit.value) <= reach * (1 + 1e-9) for code in rest)
    assert all(budget.without("latency").meets(block_costs(code)) for code in rest)
    assert len(found) <= len(timer.calls) < len(CODES) / 4


def test_several_budgets_measure_a_code_once(path: Path) -> None:
    timer = Timer()
    costs = costs_of(timer, path, "latency=0.1~1%", "latency=0.101~1%")
    for text in ("latency=0.1~1%", "latency=0.101~1%"):
        assert SPACE.eligible(text, costs)
    assert len(timer.calls) == len(set(timer.calls))


def test_a_mobilenet_has_entries_that_cost_nothing_to_fit(path: Path) -> None:
    space = StageSpace("mobilenetv2", FAMILY_DEPTHS["mobilenetv2"])
    measured = []

    def timer(architecture: Architecture) -> float:
        measured.append(architecture)
        return 0.01 * sum(architecture.stage_code)

    limits = Budget.parse("latency=0.2~1%").limits
    costs = LatencyCosts(
        block_costs, space=space, limits=limits, measure=timer, device="", journal=Journal(path)
    )
    found = space.eligible("latency=0.2~1%", costs)
    assert found == [code for code in space.codes() if sum(code.stage_code) == 20]
    assert len(measured) == len(set(measured)) <= 6 + len(found)


def test_a_budget_of_latency_that_no_code_meets(path: Path) -> None:
    with pytest.raises(InputError, match=r"latency=9~1%: none of .*costs go from 0.05 to 0.224, near"):
        SPACE.eligible("latency=9~1%", costs_of(Timer(), path, "latency=9~1%"))


def test_the_journal_has_the_measured_latency(path: Path) -> None:
    timer, text = Timer(0.009), "blocks=8, latency=0.06~5%"
    costs = costs_of(timer, path, text)

    def with_macs(architecture: Architecture) -> Any:
        found = costs(architecture)
        found["macs"] = 1.0
        return found

    journal = Journal(path.with_name("journal.jsonl"))
    nothing = Journal("never written", writes=False)
    compare = Race("stage", "", FakeScorer(), with_macs, journal, nothing, 0.0)
    found = stage_search(SPACE, text, compare, with_macs)
    assert found
    for record in journal.records:
        assert record["latency"] == timer.seconds(Architecture.parse(record["architecture"]))


# ---- stopped and resumed -------------------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(path: Path) -> None:
    """A resumed run sees the same seconds, whatever a stopwatch would show now."""
    text, timer = TEXTS[1], Timer(0.009)
    found = SPACE.eligible(text, costs_of(timer, path, text))
    before = path.read_bytes()
    lines = [json.loads(line) for line in before.splitlines()]
    assert [(line["architecture"], line["score"]) for line in lines] == [
        (str(code), timer.seconds(code)) for code in timer.calls
    ]
    again = Timer(-0.009)
    assert SPACE.eligible(text, costs_of(again, path, text)) == found
    assert again.calls == [] and path.read_bytes() == before


@pytest.mark.parametrize("k", [0, 1, 4, 5, 6, 40])
def test_stopped_at_any_measurement_and_resumed(path: Path, k: int) -> None:
    whole, text, timer = path.with_name("whole.jsonl"), TEXTS[1], Timer(0.009)
    expected = SPACE.eligible(text, costs_of(timer, whole, text))
    stopped, resumed = Timer(0.009, fails_at=k), Timer(0.009)
    with pytest.raises(KeyboardInterrupt):
        SPACE.eligible(text, costs_of(stopped, path, text))
    assert SPACE.eligible(text, costs_of(resumed, path, text)) == expected
    assert stopped.calls + resumed.calls == timer.calls
    assert path.read_bytes() == whole.read_bytes()


def test_seconds_of_another_device(path: Path) -> None:
    SPACE.eligible(TEXTS[1], costs_of(Timer(), path, TEXTS[1]))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"MODEL.DEVICE: another chip: .* measured on a chip before"):
        costs_of(Timer(), path, TEXTS[1], device="another chip")
    assert path.read_bytes() == before


def test_other_processes_take_the_seconds_of_rank_0(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played through in turn: what rank 0 gathers is what rank 1 gets."""
    text, gathered = TEXTS[2], []
    monkeypatch.setattr(comm, "all_gather", lambda value: gathered.append(value) or [value])
    main = Timer(0.009)
    expected = SPACE.eligible(text, costs_of(main, path, text))
    heard, timer = iter(gathered), Timer()
    monkeypatch.setattr(comm, "all_gather", lambda value: [next(heard), value])
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    other = path.with_name("other.jsonl")
    assert SPACE.eligible(text, costs_of(timer, other, text)) == expected
    assert next(heard, None) is None
    assert timer.calls == [] and not other.exists()


# ---- the stopwatch -------------------------------------------------------------------------------


def tiny(*options: Any) -> Any:
    return read_config("", [*TINY, *options])


@pytest.mark.parametrize("head", HEADS)
def test_a_real_detector_is_timed(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle of the repeats, of whole forward passes; nothing else is changed by it."""
    cfg = tiny(*HEADS[head])
    before, state = cfg.clone(), torch.get_rng_state()
    stopwatch = Stopwatch(cfg)
    code = next(iter(stage_space_of(cfg).codes()))
    assert 0 < stopwatch(code) < 60
    assert cfg == before and torch.equal(torch.get_rng_state(), state)

    passes = []
    stopwatch._detector.register_forward_hook(lambda _, inputs, output: passes.append(inputs[0]))
    ticks = itertools.accumulate(range(2 * (WARM_UP + REPEATS)))  # a pass takes one second more
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(ticks))
    assert stopwatch(code) == 1 + 2 * (WARM_UP + REPEATS // 2)
    assert len(passes) == WARM_UP + REPEATS
    assert all(p[0]["image"].shape == (3, *input_size(cfg)) for p in passes)


def test_the_heads_are_the_same_in_every_run() -> None:
    features = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        stopwatch = Stopwatch(cfg := tiny())
        stopwatch(next(iter(stage_space_of(cfg).codes())))
        weights = stopwatch._detector.roi_heads.state_dict()
        features.append({**stopwatch._features, **weights})
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_the_codes_own_and_the_heads_get_the_same(family: str) -> None:
    """However deep random networks blow up their features, the heads have the same to do."""
    cfg = tiny(*FAMILIES[family])
    stopwatch, seen, blocks = Stopwatch(cfg), [], []
    codes = list(stage_space_of(cfg).codes())
    for code in (codes[0], codes[-1]):
        stopwatch(code)
        bottom_up = stopwatch._detector.backbone.bottom_up
        blocks.append(sum(len(getattr(bottom_up, name)) for name in bottom_up.stage_names))
    assert blocks[0] < blocks[1]
    stopwatch._detector.roi_heads.register_forward_hook(lambda *call: seen.append(call[1:]))
    for code in (codes[0], codes[-1]):
        stopwatch(code)
    (first, found), (last, found_last) = seen[0], seen[-1]
    for name, feature in first[1].items():
        torch.testing.assert_close(feature, last[1][name], rtol=0, atol=0)
    assert len(first[2][0]) == len(last[2][0]) == cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    assert len(found[0][0]) == len(found_last[0][0])
