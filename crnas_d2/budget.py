"""Budgets: what a network may cost (paper, Sec. 3.3.1, Eq. 1), in blocks as there or in other units.

A budget is a number of blocks, or limits that hold together, in text form
``macs=4.1e9~2%, params=25e6~5%``: a cost's name, its value, and by what part of it the cost may differ.
Plain Python.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Union

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError

# Costs of an architecture by name: blocks (weighted), macs (multiply-accumulates), params, and for a
# budget of latency (seconds an image) that one, too.
Costs = Callable[[Architecture], Mapping[str, float]]
# What costs may be limited, the dearest to find out last.
LIMITED = ("blocks", "macs", "params", "latency")

_LIMIT = re.compile(r"\s*(\w+)\s*=\s*([^\s~]+)\s*(?:~\s*([^\s%]+)\s*%\s*)?")


def _short(value: float) -> str:
    """4.1e9, 2.5e7, 16, 0.045: six digits."""
    return re.sub(r"e\+0*", "e", f"{value:g}")


@dataclass(frozen=True)
class Limit:
    """One cost and its value.

    Attributes:
        cost: a name of ``LIMITED``.
        value: above 0.
        tolerance: by what fraction of the value the cost may differ from it; 0: not at all.

    Raises:
        ValueError: another cost, or a number out of range.
    """

    cost: str
    value: float
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.cost not in LIMITED:
            raise ValueError(f"no cost {self.cost!r}")
        if not (0 < self.value < math.inf and 0 <= self.tolerance < math.inf):
            raise ValueError(f"{self}: a value above 0 and no tolerance below 0 are needed")

    def allows(self, cost: float, times: float = 1) -> bool:
        """Whether a cost differs from the value by at most ``times`` the tolerance."""
        return abs(cost - self.value) <= times * self.tolerance * self.value

    @property
    def name(self) -> str:
        """For folders and files: ``N16`` as in the paper, ``macs4.1e9``."""
        return ("N" if self.cost == "blocks" else self.cost) + _short(self.value)

    def __str__(self) -> str:
        tolerance = f"~{100 * self.tolerance:g}%" if self.tolerance else ""
        return f"{self.cost}={_short(self.value)}{tolerance}"


@dataclass(frozen=True)
class Budget:
    """Limits that hold together.

    Attributes:
        limits: at most one for each cost, in the order of ``LIMITED``.
    """

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, entry: BudgetSpec) -> Budget:
        """An entry of SEARCH.BUDGETS: a number of blocks, limits in text form, or a budget as it is.

        Raises:
            InputError: it is none of them.
        """
        if isinstance(entry, Budget):
            return entry
        try:
            if isinstance(entry, str):
                return cls(_limits(entry))
            if type(entry) in (int, float):
                return cls((Limit("blocks", entry),))
            raise ValueError("neither a number nor text")
        except ValueError as error:
            raise InputError(
                f"SEARCH.BUDGETS: {entry!r}: {error}; allowed are numbers of blocks, and limits as in "
                f"'macs=4.1e9~2%, params=25e6~5%': {', '.join(LIMITED)} (seconds an image), each with "
                "a tolerance, which blocks may go without"
            ) from error

    def meets(self, costs: Mapping[str, float]) -> bool:
        """Whether the costs are within all limits; none is looked up after one that is not."""
        return all(limit.allows(costs[limit.cost]) for limit in self.limits)

    def within(self, architectures: Iterable[Architecture], costs: Costs) -> list[Architecture]:
        """The architectures that cost no more and no less (paper, Eq. 1).

        Raises:
            InputError: there is none; the line gives the costs that come nearest.
        """
        every = [(architecture, costs(architecture)) for architecture in architectures]
        priced = every
        for i, limit in enumerate(self.limits):
            kept = [(a, cost) for a, cost in priced if limit.allows(cost[limit.cost])]
            if not kept:
                hint = self._nearest(i, {cost[limit.cost] for _, cost in priced})
                raise InputError(
                    f"SEARCH.BUDGETS: {self}: none of {len(every)} codes costs that; {hint}"
                )
            priced = kept
        return [architecture for architecture, _ in priced]

    def _nearest(self, i: int, costs: set[float]) -> str:
        """The costs nearest to limit number i, of those that are within the limits before it."""
        limit, before = self.limits[i], ", ".join(map(str, self.limits[:i]))
        near = sorted(costs, key=lambda cost: (abs(cost - limit.value), cost))[:3]
        return (
            (f"with {before}, " if before else "")
            + (limit.cost if len(self.limits) > 1 else "costs")
            + f" go from {_short(min(costs))} to {_short(max(costs))}, nearest: "
            + ", ".join(map(_short, sorted(near)))
        )

    def limits_only(self, name: str) -> bool:
        """Whether no other cost than this one is limited."""
        return all(limit.cost == name for limit in self.limits)

    def without(self, name: str) -> Budget:
        """The same budget with one cost not limited."""
        return Budget(tuple(limit for limit in self.limits if limit.cost != name))

    @property
    def name(self) -> str:
        """For folders and files: ``N16``, ``N16_params2.5e7``; tolerances are not part of it."""
        return "_".join(limit.name for limit in self.limits)

    def __str__(self) -> str:
        exact_blocks = self.limits_only("blocks") and not any(limit.tolerance for limit in self.limits)
        return ", ".join(_short(limit.value) if exact_blocks else str(limit) for limit in self.limits)


# What parse takes.
BudgetSpec = Union[Budget, float, str]


def _limits(text: str) -> tuple[Limit, ...]:
    """The limits of the text form, in order.

    Raises:
        ValueError: it is none, or names a cost twice.
    """
    limits = []
    for part in text.split(","):
        matched = _LIMIT.fullmatch(part)
        if matched is None:
            raise ValueError(f"{part.strip()!r} is no limit")
        cost, value, percent = matched.groups()
        limits.append(Limit(cost, float(value), float(percent or 0) / 100))
        if percent is None and cost != "blocks":
            raise ValueError(f"{cost} needs a tolerance")
        if [limit.cost for limit in limits].count(cost) > 1:
            raise ValueError(f"{cost} comes twice")
    return tuple(sorted(limits, key=lambda limit: LIMITED.index(limit.cost)))
