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
from fake_scorer import FakeScorer, in_memory

from crnas_d2.analysis import latency
from crnas_d2.analysis.costs import input_size
from crnas_d2.analysis.latency import REPEATS, WARM_UP, LatencyCosts, Stopwatch
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, BudgetSpec
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import stage_space_of
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import Race
from crnas_d2.search.stage import stage_search
from crnas_d2.space import FAMILY_DEPTHS, DilationSpace, StageSpace, block_costs
from detectron2.modeling import build_backbone
from detectron2.utils import comm

SPACE = StageSpace("resnet", FAMILY_DEPTHS["resnet"])
CODES = list(SPACE.codes())
# Seconds of a block of each stage; the rest of the detector.
OF_A_BLOCK, REST = (0.005, 0.003, 0.002, 0.004), 0.03


class Timer:
    """A detector whose seconds are nearly a sum over its blocks; raises where it is told to."""

    device = "a chip"

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


def costs_of(timer: Timer, path: Path, *entries: BudgetSpec, space: StageSpace = SPACE) -> LatencyCosts:
    budgets = map(Budget.parse, entries)
    limits = [limit for budget in budgets for limit in budget.limits if limit.cost == "latency"]
    return LatencyCosts(block_costs, space, limits, timer, Journal(path, comm.is_main_process()))


ENTRIES = [{"latency": [0.12, 0.02]}, {"latency": [0.2, 0.01]}, {"blocks": 16, "latency": [0.1, 0.1]}]


@pytest.mark.parametrize("off", [0.0, 0.009])
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_eligible_codes_are_those_whose_measured_latency_is_within(
    path: Path, entry: BudgetSpec, off: float
) -> None:
    """Only the codes of the fit, and those whose fit is near the budget, are measured."""
    timer, budget = Timer(off), Budget.parse(entry)
    found = SPACE.eligible(entry, costs_of(timer, path, entry))
    measured = {code: {**block_costs(code), "latency": timer.seconds(code)} for code in CODES}
    assert found == [code for code in CODES if budget.meets(measured[code])]
    assert 0 < len(found) < len(CODES)
    assert [code.stage_code for code in timer.calls[:5]] == [
        *((1, 1, 2, 2), (10, 1, 2, 2), (1, 10, 2, 2), (1, 1, 23, 2), (1, 1, 2, 17)),
    ]
    assert len(timer.calls) == len(set(timer.calls)) < len(CODES) / 4
    assert set(found) <= set(timer.calls)
    limit, rest = budget.limits[-1], budget.without("latency")
    for code in timer.calls[5:]:
        of_fit = Timer().seconds(code)
        assert limit.allows(of_fit, times=2 * (1 + 1e-9)) and rest.meets(block_costs(code))


def test_several_budgets_measure_a_code_once(path: Path) -> None:
    timer = Timer()
    costs = costs_of(timer, path, {"latency": [0.1, 0.01]}, {"latency": [0.101, 0.01]})
    for entry in ({"latency": [0.1, 0.01]}, {"latency": [0.101, 0.01]}):
        assert SPACE.eligible(entry, costs)
    assert len(timer.calls) == len(set(timer.calls))


def test_a_mobilenet_has_entries_that_cost_nothing_to_fit(path: Path) -> None:
    class Even(Timer):
        def seconds(self, architecture: Architecture) -> float:
            return 0.01 * sum(architecture.stage_code)

    space, entry = StageSpace("mobilenetv2", FAMILY_DEPTHS["mobilenetv2"]), {"latency": [0.2, 0.01]}
    timer = Even()
    found = space.eligible(entry, costs_of(timer, path, entry, space=space))
    assert found == [code for code in space.codes() if sum(code.stage_code) == 20]
    assert len(timer.calls) == len(set(timer.calls)) <= 6 + len(found)


def test_a_budget_of_latency_that_no_code_meets(path: Path) -> None:
    entry = {"latency": [9, 0.01]}
    with pytest.raises(InputError, match=r"latency 9 \+-1%: none of .* from 0.05 to 0.224, near"):
        SPACE.eligible(entry, costs_of(Timer(), path, entry))


def test_the_journal_has_the_measured_latency(path: Path) -> None:
    timer, entry = Timer(0.009), {"blocks": 8, "latency": [0.06, 0.05]}
    costs = costs_of(timer, path, entry)

    def with_macs(architecture: Architecture) -> Any:
        found = costs(architecture)
        found["macs"] = 1.0
        return found

    compare = Race("stage", "", FakeScorer(), with_macs, in_memory(), in_memory(), 0.0)
    assert stage_search(SPACE, entry, compare, with_macs)
    for record in compare.journal.records:
        assert record["latency"] == timer.seconds(Architecture.parse(record["architecture"]))


# ---- dilated networks -----------------------------------------------------------------------------

PLAIN = Architecture.undilated("resnet", (1, 3, 5, 7))
DILATED = Architecture("resnet", (1, 3, 5, 7), (0, 1, 2, *[0] * 13))


class DilationTimer(Timer):
    """A Timer on whose device a dilated block takes 4 ms more."""

    def seconds(self, architecture: Architecture) -> float:
        return super().seconds(architecture) + 0.004 * sum(map(bool, architecture.dilation_code))


def test_a_dilated_network_is_measured_when_its_latency_is_asked_for(path: Path) -> None:
    """However far from a budget; once, in all runs, and without any fit."""
    timer, budget = DilationTimer(), Budget.parse({"latency": [0.082, 0.02]})
    costs = costs_of(timer, path, budget)
    assert "latency" not in costs(DILATED) and timer.calls == []
    assert costs(DILATED)["latency"] == timer.seconds(DILATED) == costs(DILATED).pop("latency")
    assert timer.calls == [DILATED]
    assert budget.meets({"latency": timer.seconds(PLAIN)}) and not budget.meets(costs(DILATED))
    assert budget.within([PLAIN, DILATED], costs) == [PLAIN]
    resumed = DilationTimer(fails_at=0)
    assert costs_of(resumed, path, budget)(DILATED)["latency"] == timer.seconds(DILATED)


# ---- stopped and resumed -------------------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(path: Path) -> None:
    """A resumed run sees the same seconds, whatever a stopwatch would show now."""
    entry, timer = ENTRIES[1], Timer(0.009)
    found = SPACE.eligible(entry, costs_of(timer, path, entry))
    before = path.read_bytes()
    lines = [json.loads(line) for line in before.splitlines()]
    assert [(line["architecture"], line["score"]) for line in lines] == [
        (str(code), timer.seconds(code)) for code in timer.calls
    ]
    again = Timer(-0.009)
    assert SPACE.eligible(entry, costs_of(again, path, entry)) == found
    assert again.calls == [] and path.read_bytes() == before


@pytest.mark.parametrize("k", [0, 1, 4, 5, 6, 40])
def test_stopped_at_any_measurement_and_resumed(path: Path, k: int) -> None:
    whole, entry, timer = path.with_name("whole.jsonl"), ENTRIES[1], Timer(0.009)
    expected = SPACE.eligible(entry, costs_of(timer, whole, entry))
    stopped, resumed = Timer(0.009, fails_at=k), Timer(0.009)
    with pytest.raises(KeyboardInterrupt):
        SPACE.eligible(entry, costs_of(stopped, path, entry))
    assert SPACE.eligible(entry, costs_of(resumed, path, entry)) == expected
    assert stopped.calls + resumed.calls == timer.calls
    assert path.read_bytes() == whole.read_bytes()


def test_seconds_of_another_device(path: Path) -> None:
    SPACE.eligible(ENTRIES[1], costs_of(Timer(), path, ENTRIES[1]))
    before, timer = path.read_bytes(), Timer()
    timer.device = "another chip"
    with pytest.raises(InputError, match=r"MODEL.DEVICE: another chip: allowed is a chip, "):
        costs_of(timer, path, ENTRIES[1])
    assert path.read_bytes() == before


def test_other_processes_take_the_seconds_of_rank_0(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played through in turn: what rank 0 gathers is what rank 1 gets."""
    entry, gathered = ENTRIES[2], []
    monkeypatch.setattr(comm, "all_gather", lambda value: gathered.append(value) or [value])
    costs = costs_of(Timer(0.009), path, entry)
    expected = [SPACE.eligible(entry, costs), costs(DILATED)["latency"]]
    heard, timer = iter(gathered), Timer()
    monkeypatch.setattr(comm, "all_gather", lambda value: [next(heard), value])
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    other = path.with_name("other.jsonl")
    costs = costs_of(timer, other, entry)
    assert [SPACE.eligible(entry, costs), costs(DILATED)["latency"]] == expected
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
    cfg, seen = tiny(*FAMILIES[family]), []
    stopwatch, codes = Stopwatch(cfg), list(stage_space_of(cfg).codes())
    dilated = DilationSpace(codes[0].family, codes[-1].stage_code).sample(0, 0)
    for code in (dilated, codes[0], codes[-1]):
        stopwatch(code)
        cfg.MODEL.CRNAS.STAGE_CODE = list(code.stage_code)
        cfg.MODEL.CRNAS.DILATION_CODE = list(code.dilation_code)
        assert convolutions(stopwatch._detector.backbone) == convolutions(build_backbone(cfg))
    assert any(dilated.dilation_code) and codes[0].blocks < codes[-1].blocks
    stopwatch._detector.roi_heads.register_forward_hook(lambda *call: seen.append(call[1:]))
    for code in (codes[0], codes[-1], dilated):
        stopwatch(code)
        (first, found), (last, found_last) = seen[0], seen[-1]
        for name, feature in first[1].items():
            torch.testing.assert_close(feature, last[1][name], rtol=0, atol=0)
        assert len(first[2][0]) == len(last[2][0]) == cfg.MODEL.RPN.POST_NMS_TOPK_TEST
        assert len(found[0][0]) == len(found_last[0][0])


def convolutions(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Their rates by name."""
    convs = network.named_modules()
    return {name: conv.dilation for name, conv in convs if isinstance(conv, torch.nn.Conv2d)}
