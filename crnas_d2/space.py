"""The two search spaces and how a path is drawn from them (paper, Sec. 3.2).

A draw is a pure function of (seed, iteration), never of a global random state. Evolutionary and random
search see architectures as codes, and a space as the ``alternatives`` of each position of a code.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Union

from crnas_d2.architecture import DIGITS, Architecture
from crnas_d2.budget import Budget, BudgetSpec, Costs
from crnas_d2.errors import InputError
from crnas_d2.seeding import derive_seed

# Depths of stages 1 to 4 in the ResNet series (paper, Sec. 3.2.1).
RESNET_DEPTHS = (
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    (2, 3, 5, 6, 9, 11, 14, 17, 20, 23),
    (2, 3, 4, 6, 7, 9, 11, 13, 15, 17),
)
_RESNETS = ("resnet_basic", "resnet", "resnext")  # ResNeXt has the ResNet series' space (A.2)
FAMILY_DEPTHS: dict[str, tuple[tuple[int, ...], ...]] = {
    **dict.fromkeys(_RESNETS, RESNET_DEPTHS),
    "mobilenetv2": (  # stem, first block and the tail are fixed (A.2)
        *((1,), (1,)),
        *((1, 2, 3, 4, 5), (1, 2, 3, 4, 5), (3, 4, 5, 6, 7), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6)),
        *((1,), (1,), (1,)),
    ),
}
# What one block of each entry costs, in blocks. It is the same in all ResNet stages: half the
# resolution, twice the width (Sec. 3.2.1). MobileNetV2: the weights of A.2; fixed entries cost 0.
BLOCK_COSTS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(_RESNETS, (1, 1, 1, 1)),
    "mobilenetv2": (0, 0, 1.5, 1, 1, 0.75, 1.25, 0, 0, 0),
}


def block_costs(architecture: Architecture) -> dict[str, float]:
    """The weighted number of blocks: the one cost that is known without a network."""
    weights = BLOCK_COSTS[architecture.family]
    return {"blocks": sum(n * weight for n, weight in zip(architecture.stage_code, weights))}


@dataclass(frozen=True)
class StageSpace:
    """All stage codes with one depth from each entry's tuple, undilated; a code is a stage code."""

    phase: ClassVar[str] = "stage"  # of the search over it, in journals
    family: str
    depths: tuple[tuple[int, ...], ...]  # in blocks, ascending

    def __contains__(self, architecture: Architecture) -> bool:
        depths = zip(architecture.stage_code, self.depths)
        is_undilated = architecture.family == self.family and not any(architecture.dilation_code)
        return is_undilated and all(depth in allowed for depth, allowed in depths)

    def codes(self) -> Iterator[Architecture]:
        """Every stage code of the space, in lexicographic order."""
        return map(self.with_code, itertools.product(*self.depths))

    @property
    def alternatives(self) -> tuple[tuple[int, ...], ...]:
        return self.depths

    def code_of(self, architecture: Architecture) -> tuple[int, ...]:
        return architecture.stage_code

    def with_code(self, code: Sequence[int]) -> Architecture:
        return Architecture.undilated(self.family, code)

    def eligible(self, budget: BudgetSpec, costs: Costs | None = None) -> list[Architecture]:
        """The codes that meet the budget (paper, Eq. 1), or an InputError.

        Without ``costs`` it may limit blocks alone.
        """
        budget = Budget.parse(budget)
        if costs is None and budget.without("blocks").limits:
            keys = "SEARCH.STAGE.ONLY_ELIGIBLE and SAMPLING 'eligible'"
            raise InputError(f"SEARCH.BUDGETS: {budget}: {keys} allow limits of blocks only")
        return budget.within(self.codes(), costs or block_costs)

    def only_eligible(self, budgets: Sequence[BudgetSpec]) -> StageSpace:
        """The space without the depths that no ``eligible`` code of any of the budgets uses."""
        codes = [code.stage_code for budget in budgets for code in self.eligible(budget)]
        return StageSpace(self.family, tuple(tuple(sorted(set(used))) for used in zip(*codes)))

    def sample(self, seed: int, iteration: int, among: Sequence[Architecture] = ()) -> Architecture:
        """Uniform and independent in each stage (paper, Sec. 3.3.1), or uniform over ``among``."""
        rng = random.Random(derive_seed(seed, "path", iteration))
        if among:
            return rng.choice(among)
        return self.with_code([rng.choice(depths) for depths in self.depths])


@dataclass(frozen=True)
class DilationSpace:
    """All dilation codes of one stage code; a code is a dilation code."""

    phase: ClassVar[str] = "dilation"
    family: str
    stage_code: tuple[int, ...]

    def __contains__(self, architecture: Architecture) -> bool:
        return (architecture.family, architecture.stage_code) == (self.family, self.stage_code)

    @property
    def root(self) -> Architecture:
        """The partial architecture with nothing chosen; the greedy search starts from it."""
        return self._past_fixed(Architecture(self.family, self.stage_code, ()))

    @property
    def alternatives(self) -> tuple[tuple[int, ...], ...]:
        """Digits of each block; 0 alone where there is no choice."""
        root = self.root
        return tuple(DIGITS if root.has_choice(block) else (0,) for block in range(root.blocks))

    def code_of(self, architecture: Architecture) -> tuple[int, ...]:
        return architecture.dilation_code

    def with_code(self, code: Sequence[int]) -> Architecture:
        return Architecture(self.family, self.stage_code, tuple(code))

    def _past_fixed(self, partial: Architecture) -> Architecture:
        """``partial`` with the zeros of the blocks that come next and have no choice."""
        while not partial.is_complete and not partial.has_choice(len(partial.dilation_code)):
            partial = partial.extended([0])
        return partial

    def extensions(self, partial: Architecture) -> list[Architecture]:
        """``partial`` with each digit of its next choice block, and the zeros that follow."""
        return [self._past_fixed(partial.extended([digit])) for digit in DIGITS]

    def _filled(self, partial: Architecture, digit: Callable[[int], int]) -> Architecture:
        """``partial`` with ``digit(block)`` in every open block that has a choice."""
        open_blocks = range(len(partial.dilation_code), partial.blocks)
        return partial.extended(digit(b) if partial.has_choice(b) else 0 for b in open_blocks)

    def complete(self, partial: Architecture, seed: int, batch: int) -> Architecture:
        """Draw the blocks that ``partial`` leaves open, uniformly (paper, Sec. 3.3.2)."""
        # The candidates of one greedy step have equally many digits and meet the same draws.
        rng = random.Random(derive_seed(seed, "completion", len(partial.dilation_code), batch))
        return self._filled(partial, lambda _: rng.choice(DIGITS))

    def complete_evenly(self, partial: Architecture, seed: int, batch: int) -> Architecture:
        """As ``complete``, but batches 3k to 3k + 2 draw each digit of an open block once."""
        block = len(partial.dilation_code)

        def digit(of: int) -> int:
            rng = random.Random(derive_seed(seed, "even completion", block, of, batch // 3))
            return rng.sample(DIGITS, k=len(DIGITS))[batch % 3]

        return self._filled(partial, digit)

    def sample(self, seed: int, iteration: int, among: Sequence[Architecture] = ()) -> Architecture:
        """Uniform and independent in each choice block, or uniform over ``among``."""
        rng = random.Random(derive_seed(seed, "path", iteration))
        if among:
            return rng.choice(among)
        return self._filled(self.root, lambda _: rng.choice(DIGITS))


@dataclass(frozen=True)
class JointSpace(StageSpace):
    """All dilation codes of all stage codes with one depth from each entry's tuple."""

    phase: ClassVar[str] = "joint"

    def __contains__(self, architecture: Architecture) -> bool:
        depths = zip(architecture.stage_code, self.depths)
        return architecture.family == self.family and all(depth in allowed for depth, allowed in depths)

    def _dilations(self, architecture: Architecture) -> DilationSpace:
        return DilationSpace(self.family, architecture.stage_code)

    def complete(self, partial: Architecture, seed: int, batch: int) -> Architecture:
        """As DilationSpace's of its stage code."""
        return self._dilations(partial).complete(partial, seed, batch)

    def complete_evenly(self, partial: Architecture, seed: int, batch: int) -> Architecture:
        """As DilationSpace's of its stage code."""
        return self._dilations(partial).complete_evenly(partial, seed, batch)

    def sample(self, seed: int, iteration: int, among: Sequence[Architecture] = ()) -> Architecture:
        """A stage code as StageSpace's, and uniform and independent digits."""
        code = super().sample(seed, iteration, among)
        digits = derive_seed(seed, "digits")  # other draws than those of the stage code
        return self._dilations(code).sample(digits, iteration)


Space = Union[StageSpace, DilationSpace, JointSpace]
