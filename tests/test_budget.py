"""Budgets: their text form, and the codes that meet them, against a filter of all codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from crnas_d2.architecture import Architecture
from crnas_d2.budget import LIMITED, Budget, Limit
from crnas_d2.errors import InputError
from crnas_d2.space import FAMILY_DEPTHS, StageSpace, block_cost

PARSED = [
    # an entry of SEARCH.BUDGETS, (cost, value, tolerance), in messages, in folders
    (16, [("blocks", 16, 0)], "16", "N16"),
    (7.25, [("blocks", 7.25, 0)], "7.25", "N7.25"),
    ("blocks=16", [("blocks", 16, 0)], "16", "N16"),
    ("blocks=16~10%", [("blocks", 16, 0.1)], "blocks=16~10%", "N16"),
    ("macs=4.1e9~2%", [("macs", 4.1e9, 0.02)], "macs=4.1e9~2%", "macs4.1e9"),
    ("latency=0.045~5%", [("latency", 0.045, 0.05)], "latency=0.045~5%", "latency0.045"),
    (
        " params = 25e6 ~ 0.5 % ,blocks=16",
        [("blocks", 16, 0), ("params", 25e6, 0.005)],
        "blocks=16, params=2.5e7~0.5%",
        "N16_params2.5e7",
    ),
    (
        "latency=1~1%,params=2~2%,macs=3~3%,blocks=4~4%",
        [("blocks", 4, 0.04), ("macs", 3, 0.03), ("params", 2, 0.02), ("latency", 1, 0.01)],
        "blocks=4~4%, macs=3~3%, params=2~2%, latency=1~1%",
        "N4_macs3_params2_latency1",
    ),
]


@pytest.mark.parametrize(("entry", "limits", "text", "name"), PARSED, ids=str)
def test_what_an_entry_says(
    entry: float | str, limits: list[tuple[str, float, float]], text: str, name: str
) -> None:
    budget = Budget.parse(entry)
    assert budget == Budget(tuple(Limit(*limit) for limit in limits))
    assert (str(budget), budget.name) == (text, name)
    assert Budget.parse(budget) is budget
    assert not set(name) & set("/ ~%")
    if "=" in text:
        assert Budget.parse(text) == budget


NONE = [
    *("", "five", "16", "macs", "macs=", "macs=4~", "macs=4~2", "macs=4 2%", "mac=4~2%", "macs=a~2%"),
    *("macs=4~b%", "macs=4", "params=4", "latency=4", "blocks=16,", "blocks=16 params=4~1%"),
    *("blocks=8, blocks=16", "macs=4~-2%", "macs=-4~2%", "macs=nan~2%", "macs=1e999~2%", "macs=4~inf%"),
    *(0, -1, float("nan"), True, None, [16]),
]


@pytest.mark.parametrize("entry", NONE, ids=repr)
def test_an_entry_that_is_none(entry: object) -> None:
    with pytest.raises(InputError) as caught:
        Budget.parse(entry)
    message = str(caught.value)
    assert message.startswith(f"SEARCH.BUDGETS: {entry!r}: ") and "\n" not in message
    assert "'macs=4.1e9~2%, params=25e6~5%'" in message and ", ".join(LIMITED) in message


@pytest.mark.parametrize(
    ("cost", "met"), [(97.9, False), (98, True), (100, True), (102, True), (102.1, False)]
)
def test_a_tolerance_is_to_both_sides_and_included(cost: float, met: bool) -> None:
    for name in LIMITED:
        assert Budget.parse(f"{name}=100~2%").meets({name: cost}) == met
    assert Limit("macs", 100, 0.01).allows(cost, times=2) == met


def test_blocks_without_a_tolerance_are_exact() -> None:
    assert Budget.parse(16).meets({"blocks": 16})
    assert not Budget.parse(16).meets({"blocks": 16.25})


class Lazy(Mapping[str, float]):
    """Costs that know which of them were asked for."""

    def __init__(self, **costs: float) -> None:
        self.costs = costs
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> float:
        self.asked.append(name)
        return self.costs[name]

    def __iter__(self) -> None:  # type: ignore[override]
        raise AssertionError("nobody asks for all costs")

    __len__ = __iter__  # type: ignore[assignment]


def test_latency_is_asked_for_last_and_only_where_all_else_is_met() -> None:
    budget = Budget.parse("latency=1~10%, params=10~10%, blocks=6~50%")
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
        found = {"blocks": block_cost(architecture)}
        for name, amounts in per_block.items():
            found[name] = sum(n * amount for n, amount in zip(architecture.stage_code, amounts))
        return found

    return costs


AMOUNTS = {
    "macs": (7, 7, 6, 5, 7, 9, 4, 3, 2, 1),
    "params": (1, 3, 10, 40, 2, 5, 8, 20, 30, 7),
    "latency": (9, 5, 3, 2, 8, 1, 4, 6, 2, 3),
}
# A budget: cost, lowest and highest.
BOUNDS = {
    "blocks=16": [("blocks", 16, 16)],
    "blocks=16~10%": [("blocks", 14.4, 17.6)],
    "macs=110~5%": [("macs", 104.5, 115.5)],
    "params=300~10%": [("params", 270, 330)],
    "latency=60~10%": [("latency", 54, 66)],
    "blocks=16~10%, params=300~30%": [("blocks", 14.4, 17.6), ("params", 210, 390)],
    "macs=110~20%, params=300~30%, latency=60~40%": [
        *(("macs", 88, 132), ("params", 210, 390), ("latency", 36, 84)),
    ],
}


@pytest.mark.parametrize("text", BOUNDS)
@pytest.mark.parametrize("family", FAMILY_DEPTHS)
def test_eligible_codes_are_those_of_a_brute_force(family: str, text: str) -> None:
    space, costs = StageSpace(family, FAMILY_DEPTHS[family]), linear(AMOUNTS)
    every = list(space.codes())
    expected = [
        code
        for code in every
        if all(low <= costs(code)[name] <= high for name, low, high in BOUNDS[text])
    ]
    assert 0 < len(expected) < len(every)
    assert space.eligible(text, costs) == expected
    budget = Budget.parse(text)
    assert [code for code in every if budget.meets(costs(code))] == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("macs=1e5~1%", "costs go from 36 to 363, nearest: 353, 356, 363"),
        ("blocks=12, macs=88~0.1%", "with blocks=12, macs go from 67 to 78, nearest: 76, 77, 78"),
        ("macs=50~1%, params=1e3~1%", "with macs=50~1%, params go from "),
    ],
)
def test_a_budget_that_no_code_meets_names_the_nearest(text: str, shown: str) -> None:
    space = StageSpace("resnet", FAMILY_DEPTHS["resnet"])
    with pytest.raises(InputError) as caught:
        space.eligible(text, linear(AMOUNTS))
    message = str(caught.value)
    assert message.startswith(f"SEARCH.BUDGETS: {Budget.parse(text)}: ") and "\n" not in message
    assert shown in message, message


def test_without_costs_a_budget_is_of_blocks_alone() -> None:
    """So it is where a supernet is built: it knows nothing of the network that will be found."""
    space = StageSpace("resnet", FAMILY_DEPTHS["resnet"])
    assert space.only_eligible(["blocks=8"]) == space.only_eligible([8])
    for call in (space.eligible, lambda entry: space.only_eligible([8, entry])):
        with pytest.raises(InputError, match=r"ONLY_ELIGIBLE and SEARCH.STAGE.SAMPLING 'eligible' allowed"):
            call("blocks=16, macs=110~5%")
