"""Budgets: what a network may cost (paper, Sec. 3.3.1, Eq. 1), in blocks as there or in other units.

A budget is a number of blocks, or limits that hold together: {macs: [4.1e9, 0.02], blocks: 16}.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError

# What a budget may limit, in the order of looking it up: blocks (weighted), macs (multiply-accumulates)
# and params of the backbone, and seconds an image, which have to be measured.
LIMITED = ("blocks", "macs", "params", "latency")
Costs = Callable[[Architecture], Mapping[str, float]]  # by name; latency where a budget limits it
BudgetSpec = Union["Budget", float, str, Mapping[str, Any]]  # what Budget.parse takes


def _short(value: float) -> str:
    """4.1e9, 2.5e7, 16, 0.045: six digits."""
    return re.sub(r"e\+0*", "e", f"{value:g}")


@dataclass(frozen=True)
class Limit:
    """A cost, its value, and the fraction by which it may differ from it; else a ValueError."""

    cost: str  # one of LIMITED
    value: float  # above 0
    tolerance: float = 0.0  # between 0 and 1; 0, exactly, for blocks alone

    def __post_init__(self) -> None:
        if self.cost not in LIMITED:
            raise ValueError(f"no cost {self.cost!r}")
        is_exact = self.cost == "blocks" and self.tolerance == 0
        if not (0 < self.value < math.inf and (is_exact or 0 < self.tolerance < 1)):
            raise ValueError(f"{self.cost}: a tolerance between 0 and 1 and a value above 0 are needed")

    def allows(self, cost: float, times: float = 1) -> bool:
        """Whether a cost differs from the value by at most ``times`` the tolerance."""
        return abs(cost - self.value) <= times * self.tolerance * self.value

    def __str__(self) -> str:
        tolerance = f" +-{100 * self.tolerance:g}%" if self.tolerance else ""
        return f"{self.cost} {_short(self.value)}{tolerance}"


@dataclass(frozen=True)
class Budget:
    """Limits that hold together, at most one for each cost, in the order of ``LIMITED``."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, entry: BudgetSpec) -> Budget:
        """The budget of an entry of SEARCH.BUDGETS; an InputError if it is none.

        Numbers may be text, as YAML 1.1 reads 4.1e9.
        """
        if isinstance(entry, Budget):
            return entry
        try:
            by_cost = entry if isinstance(entry, Mapping) else {"blocks": _number(entry)}
            limits = [_limit(cost, given) for cost, given in by_cost.items()]
            if not limits:
                raise ValueError("no limit")
        except ValueError as error:
            raise InputError(
                f"SEARCH.BUDGETS: {entry!r}: {error}; allowed are a number of blocks, or limits as in "
                "{'macs': [4.1e9, 0.02], 'blocks': 16}: a value and the fraction by which a cost may "
                f"differ from it, of {', '.join(LIMITED)} (seconds an image)"
            ) from error
        return cls(tuple(sorted(limits, key=lambda limit: LIMITED.index(limit.cost))))

    def meets(self, costs: Mapping[str, float]) -> bool:
        """Whether the costs are within all limits; none is looked up after one that is not."""
        return all(limit.allows(costs[limit.cost]) for limit in self.limits)

    def within(self, architectures: Iterable[Architecture], costs: Costs) -> list[Architecture]:
        """The architectures that cost no more and no less (paper, Eq. 1); an InputError if none do."""
        known = {architecture: costs(architecture) for architecture in architectures}
        left = list(known)
        for i, limit in enumerate(self.limits):
            values = {architecture: known[architecture][limit.cost] for architecture in left}
            left = [architecture for architecture, cost in values.items() if limit.allows(cost)]
            if not left:
                found = sorted(set(values.values()))
                nearest = sorted(sorted(found, key=lambda cost: abs(cost - limit.value))[:3])
                met = f"with {', '.join(map(str, self.limits[:i]))}, " if i else ""
                raise InputError(
                    f"SEARCH.BUDGETS: {self}: none of {len(known)} codes costs that; {met}{limit.cost} "
                    f"from {_short(found[0])} to {_short(found[-1])}, "
                    f"nearest: {', '.join(map(_short, nearest))}"
                )
        return left

    def without(self, name: str) -> Budget:
        """The same budget with one cost not limited."""
        return Budget(tuple(limit for limit in self.limits if limit.cost != name))

    @property
    def name(self) -> str:
        """For folders and files: ``N16`` as in the paper, ``N16_params2.5e7``; without tolerances."""
        names = "_".join(f"{limit.cost}{_short(limit.value)}" for limit in self.limits)
        return names.replace("blocks", "N")

    def __str__(self) -> str:
        return ", ".join(map(str, self.limits)).removeprefix("blocks ")


def _limit(cost: str, given: Any) -> Limit:
    pair = given if isinstance(given, (list, tuple)) else (given, 0)
    if len(pair) != 2:
        raise ValueError(f"{cost}: {given!r} is not [value, tolerance]")
    return Limit(cost, *map(_number, pair))


def _number(given: Any) -> float:
    if type(given) not in (int, float, str):
        raise ValueError(f"{given!r} is no number")
    return float(given)
