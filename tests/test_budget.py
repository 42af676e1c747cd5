"""Budgets: what an entry says, in files and on the command line; the codes that meet one."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from crnas_d2.architecture import Architecture
from crnas_d2.budget import LIMITED, Budget, Limit
from crnas_d2.config import read_config
from crnas_d2.engine.setup import check_same_run
from crnas_d2.errors import InputError
from crnas_d2.space import FAMILY_DEPTHS, StageSpace, block_costs

PARSED: list[tuple[Any, list[tuple[str, float, float]], str, str]] = [
    # an entry of SEARCH.BUDGETS, (cost, value, tolerance), in messages, in folders
    (16, [("blocks", 16, 0)], "16", "N16"),
    (7.25, [("blocks", 7.25, 0)], "7.25", "N7.25"),
    ("16", [("blocks", 16, 0)], "16", "N16"),
    ({"blocks": 16}, [("blocks", 16, 0)], "16", "N16"),
    ({"blocks": [16, 0]}, [("blocks", 16, 0)], "16", "N16"),
    ({"blocks": [16, 0.1]}, [("blocks", 16, 0.1)], "16 +-10%", "N16"),
    ({"macs": [4.1e9, 0.02]}, [("macs", 4.1e9, 0.02)], "macs 4.1e9 +-2%", "macs4.1e9"),
    ({"macs": ["4.1e9", "2e-2"]}, [("macs", 4.1e9, 0.02)], "macs 4.1e9 +-2%", "macs4.1e9"),
    ({"latency": (0.045, 0.05)}, [("latency", 0.045, 0.05)], "latency 0.045 +-5%", "latency0.045"),
    (
        {"params": [25e6, 0.005], "blocks": 16},
        [("blocks", 16, 0), ("params", 25e6, 0.005)],
        "16, params 2.5e7 +-0.5%",
        "N16_params2.5e7",
    ),
    (
        {"latency": [1, 0.01], "params": [2, 0.02], "macs": [3, 0.03], "blocks": [4, 0.04]},
        [("blocks", 4, 0.04), ("macs", 3, 0.03), ("params", 2, 0.02), ("latency", 1, 0.01)],
        "4 +-4%, macs 3 +-3%, params 2 +-2%, latency 1 +-1%",
        "N4_macs3_params2_latency1",
    ),
]
ENTRIES = [entry for entry, *_ in PARSED]


@pytest.mark.parametrize(("entry", "limits", "text", "name"), PARSED, ids=str)
def test_what_an_entry_says(
    entry: Any, limits: list[tuple[str, float, float]], text: str, name: str
) -> None:
    budget = Budget.parse(entry)
    assert budget == Budget(tuple(Limit(*limit) for limit in limits))
    assert (str(budget), budget.name) == (text, name)
    assert Budget.parse(budget) is budget
    assert not set(name) & set("/ ~%")


NONE: list[tuple[Any, str]] = [
    *((text, "could not convert") for text in ("", "five", "macs", "macs=4.1e9~2%")),
    *((entry, "is no number") for entry in (True, None, [16], [16, 0.1], {"macs": [[4], 0.1]})),
    *(({"macs": [4, given]}, "is no number") for given in (None, True, [0.1], {})),
    ({}, "no limit"),
    ({"mac": [4, 0.1]}, "no cost 'mac'"),
    ({5: [4, 0.1]}, "no cost 5"),
    *(({"macs": n}, f"macs: {n} is not [value, tolerance]") for n in ([], [4], [4, 0.1, 0.1])),
    ({"blocks": [16]}, "blocks: [16] is not [value, tolerance]"),
    *(({name: 4}, f"{name}: a tolerance between 0 and 1") for name in ("macs", "params", "latency")),
    ({"macs": [4, 2]}, "macs: a tolerance between 0 and 1"),  # meant as 2 %
    *(({"blocks": [4, n]}, "blocks: a tolerance") for n in (-0.1, 1, float("nan"), float("inf"))),
    *((n, "a value above 0 are needed") for n in (0, -1, "nan", float("inf"), "1e999")),
    ({"macs": [-4, 0.02]}, "a value above 0 are needed"),
]


@pytest.mark.parametrize(("entry", "why"), NONE, ids=str)
def test_an_entry_that_is_none(entry: Any, why: str) -> None:
    with pytest.raises(InputError) as caught:
        Budget.parse(entry)
    message = str(caught.value)
    assert message.startswith(f"SEARCH.BUDGETS: {entry!r}: ") and "\n" not in message
    assert why in message
    assert "{'macs': [4.1e9, 0.02], 'blocks': 16}" in message and ", ".join(LIMITED) in message


def parsed(budgets: Any) -> list[Budget]:
    return [Budget.parse(entry) for entry in budgets]


def test_entries_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    """And in the file that a run writes; on a command line everything is text."""
    path = tmp_path / "config.yaml"
    lines = "[16, {macs: [4.1e9, 0.02], blocks: 16}, {latency: [45e-3, 5e-2]}]"  # 4.1e9 is text in YAML
    path.write_text(f"SEARCH: {{BUDGETS: {lines}}}")
    text = "[16, {'macs': [4.1e9, 0.02], 'blocks': 16}, {'latency': [45e-3, 5e-2]}]"
    expected = parsed(ast.literal_eval(text))
    for cfg in (read_config(str(path)), read_config("", ["SEARCH.BUDGETS", text])):
        assert parsed(cfg.SEARCH.BUDGETS) == expected
        assert parsed(cfg.clone().SEARCH.BUDGETS) == expected
        path.write_text(cfg.dump())
        assert parsed(read_config(str(path)).SEARCH.BUDGETS) == expected
    assert yaml.safe_load(path.read_text())["SEARCH"]["BUDGETS"][2] == {"latency": [0.045, 0.05]}


@pytest.mark.parametrize("text", ["{macs: [4, 0.1]}", "{'macs': [4, 0.1]}", "macs=4~10%"])
def test_what_is_no_list_of_budgets(text: str) -> None:
    with pytest.raises(InputError, match=r"SEARCH.BUDGETS: ") as caught:
        read_config("", ["SEARCH.BUDGETS", text])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_a_resumed_run_has_the_same_budgets(entry: Any, tmp_path: Path) -> None:
    options = ["OUTPUT_DIR", str(tmp_path), "SEARCH.BUDGETS"]
    cfg = read_config("", [*options, str([entry])])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    check_same_run(cfg)
    check_same_run(read_config("", [*options, str((entry,))]))
    for other in ([{"macs": [4.2e9, 0.02]}], [{"blocks": [16, 0.2]}], [entry, 8]):
        with pytest.raises(InputError, match=r"SEARCH.BUDGETS: .* has .*--resume keeps"):
            check_same_run(read_config("", [*options, str(other)]))


@pytest.mark.parametrize(
    ("cost", "met"), [(97.9, False), (98, True), (100, True), (102, True), (102.1, False)]
)
def test_a_tolerance_is_to_both_sides_and_included(cost: float, met: bool) -> None:
    for name in LIMITED:
        assert Budget.parse({name: [100, 0.02]}).meets({name: cost}) == met
    assert Limit("macs", 100, 0.01).allows(cost, times=2) == met
    assert Budget.parse(100).meets({"blocks": cost}) == (cost == 100)  # exactly


class Lazy(Mapping[str, float]):
    """Costs that record which of them were looked up."""

    def __init__(self, **costs: float) -> None:
        self.costs = costs
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> float:
        self.asked.append(name)
        return self.costs[name]

    def __iter__(self) -> None:  # type: ignore[override]
        raise AssertionError("all costs are never looked up at once")

    __len__ = __iter__  # type: ignore[assignment]


def test_latency_is_asked_for_last_and_only_where_all_else_is_met() -> None:
    budget = Budget.parse({"latency": [1, 0.1], "params": [10, 0.1], "blocks": [6, 0.5]})
    assert not budget.meets(costs := Lazy(blocks=1))
    assert costs.asked == ["blocks"]
    assert not budget.meets(costs := Lazy(blocks=6, params=12))
    assert costs.asked == ["blocks", "params"]
    assert budget.meets(costs := Lazy(blocks=6, params=10, latency=1.05))
    assert costs.asked == ["blocks", "params", "latency"]

    found: dict[Architecture, Lazy] = {}

    def priced(architecture: Architecture) -> Lazy:
        n = sum(architecture.stage_code)
        return found.setdefault(architecture, Lazy(blocks=n, params=n + 3, latency=n / 6))

    space = StageSpace("resnet", ((1, 2, 3),) * 4)
    codes = space.eligible(budget, priced)
    assert {sum(code.stage_code) for code in codes} == {6}
    for architecture, costs in found.items():
        assert ("latency" in costs.asked) == (9 <= sum(architecture.stage_code) + 3 <= 11)


def linear(per_block: Mapping[str, tuple[int, ...]]) -> Callable[[Architecture], dict[str, float]]:
    """Costs that are sums over the blocks of each entry."""

    def costs(architecture: Architecture) -> dict[str, float]:
        found = block_costs(architecture)
        for name, amounts in per_block.items():
            found[name] = sum(n * amount for n, amount in zip(architecture.stage_code, amounts))
        return found

    return costs


AMOUNTS = {
    "macs": (7, 7, 6, 5, 7, 9, 4, 3, 2, 1),
    "params": (1, 3, 10, 40, 2, 5, 8, 20, 30, 7),
    "latency": (9, 5, 3, 2, 8, 1, 4, 6, 2, 3),
}
BUDGETS: list[dict[str, Any]] = [
    {"blocks": 16},
    {"blocks": [16, 0.1]},
    {"macs": [110, 0.05]},
    {"params": [300, 0.1]},
    {"latency": [60, 0.1]},
    {"blocks": [16, 0.1], "params": [300, 0.3]},
    {"macs": [110, 0.2], "params": [300, 0.3], "latency": [60, 0.4]},
]


@pytest.mark.parametrize("entry", BUDGETS, ids=str)
@pytest.mark.parametrize("family", FAMILY_DEPTHS)
def test_eligible_codes_are_those_of_a_brute_force(family: str, entry: dict[str, Any]) -> None:
    space, costs = StageSpace(family, FAMILY_DEPTHS[family]), linear(AMOUNTS)
    every = list(space.codes())
    bounds = []
    for name, given in entry.items():
        value, tolerance = given if isinstance(given, list) else (given, 0)
        bounds.append((name, round((1 - tolerance) * value, 9), round((1 + tolerance) * value, 9)))
    expected = [
        code for code in every if all(low <= costs(code)[name] <= high for name, low, high in bounds)
    ]
    assert 0 < len(expected) < len(every)
    assert space.eligible(entry, costs) == expected
    budget = Budget.parse(entry)
    assert [code for code in every if budget.meets(costs(code))] == expected


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ({"macs": [1e5, 0.01]}, "none of 10000 codes costs that; macs from 36 to 363, nearest: 353, 3"),
        (
            {"macs": [88, 0.001], "blocks": 12},
            "; with blocks 12, macs from 67 to 78, nearest: 76, 77, 78",
        ),
        ({"macs": [50, 0.01], "params": [1e3, 0.01]}, "; with macs 50 +-1%, params from "),
    ],
    ids=str,
)
def test_a_budget_that_no_code_meets_names_the_nearest(entry: dict[str, Any], shown: str) -> None:
    space = StageSpace("resnet", FAMILY_DEPTHS["resnet"])
    with pytest.raises(InputError) as caught:
        space.eligible(entry, linear(AMOUNTS))
    message = str(caught.value)
    assert message.startswith(f"SEARCH.BUDGETS: {Budget.parse(entry)}: ") and "\n" not in message
    assert shown in message, message


def test_without_costs_a_budget_is_of_blocks_alone() -> None:
    """So it is where a supernet is built: it knows nothing of the network that will be found."""
    space = StageSpace("resnet", FAMILY_DEPTHS["resnet"])
    assert space.only_eligible([{"blocks": 8}]) == space.only_eligible([8])
    for call in (space.eligible, lambda entry: space.only_eligible([8, entry])):
        with pytest.raises(InputError, match="allow limits of blocks only"):
            call({"blocks": 16, "macs": [110, 0.05]})
