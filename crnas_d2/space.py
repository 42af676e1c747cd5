"""The two search spaces and how a path is drawn from them (paper, Sec. 3.2).

StageSpace: which depths each stage may have, what a block of each stage costs, and the codes that
meet a budget. DilationSpace: the dilation codes of one stage code. Plain Python: a draw is a pure
function of (seed, iteration), never of a global random state, so that every process draws the same.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crnas_d2.architecture import DIGITS, Architecture
from crnas_d2.errors import InputError
from crnas_d2.seeding import derive_seed

# Depths of stages 1 to 4 in the ResNet series (paper, Sec. 3.2.1).
RESNET_DEPTHS = (
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    (2, 3, 5, 6, 9, 11, 14, 17, 20, 23),
    (2, 3, 4, 6, 7, 9, 11, 13, 15, 17),
)
# A block costs the same in every ResNet stage: half the resolution, twice the width (Sec. 3.2.1).
RESNET_BLOCK_COSTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class StageSpace:
    """All stage codes with one depth from each stage's list.

    Attributes:
        family: the family of the codes.
        depths: allowed depths (blocks), a tuple for each stage.
        block_costs: what one block of each stage adds to a code's cost; the unit of a budget.
    """

    family: str
    depths: tuple[tuple[int, ...], ...]
    block_costs: tuple[float, ...] = RESNET_BLOCK_COSTS

    def __contains__(self, architecture: Architecture) -> bool:
        return architecture.family == self.family and all(
            depth in allowed for depth, allowed in zip(architecture.stage_code, self.depths)
        )

    def codes(self) -> Iterator[Architecture]:
        """Every stage code of the space, undilated, in lexicographic order."""
        for code in itertools.product(*map(sorted, self.depths)):
            yield Architecture.undilated(self.family, code)

    def cost(self, architecture: Architecture) -> float:
        """Weighted number of blocks; plain number of blocks in the ResNet series."""
        return sum(n * c for n, c in zip(architecture.stage_code, self.block_costs))

    def eligible(self, budget: float) -> list[Architecture]:
        """The codes whose cost is the budget (paper, Eq. 1).

        Raises:
            InputError: no code has that cost.
        """
        found = [code for code in self.codes() if self.cost(code) == budget]
        if not found:
            costs = sorted({self.cost(code) for code in self.codes()})
            near = sorted(costs, key=lambda cost: (abs(cost - budget), cost))[:3]
            raise InputError(
                f"SEARCH.BUDGETS: {budget:g}: no code of the space costs that; "
                f"costs go from {costs[0]:g} to {costs[-1]:g}, nearest: "
                + ", ".join(f"{cost:g}" for cost in sorted(near))
            )
        return found

    def only_eligible(self, budgets: Sequence[float]) -> StageSpace:
        """The space without the depths that no eligible code of any of the budgets uses."""
        codes = [code.stage_code for budget in budgets for code in self.eligible(budget)]
        return StageSpace(
            self.family,
            tuple(tuple(sorted({code[i] for code in codes})) for i in range(len(self.depths))),
            self.block_costs,
        )

    def sample(self, seed: int, iteration: int, among: Sequence[Architecture] = ()) -> Architecture:
        """Uniform and independent in each stage (paper, Sec. 3.3.1), or uniform over ``among``."""
        rng = random.Random(derive_seed(seed, "path", iteration))
        if among:
            return rng.choice(among)
        return Architecture.undilated(self.family, [rng.choice(d) for d in self.depths])


@dataclass(frozen=True)
class DilationSpace:
    """All dilation codes of one stage code.

    Attributes:
        family: the family of the codes.
        stage_code: blocks in each stage; fixed.
    """

    family: str
    stage_code: tuple[int, ...]

    def __contains__(self, architecture: Architecture) -> bool:
        return (architecture.family, architecture.stage_code) == (self.family, self.stage_code)

    @property
    def root(self) -> Architecture:
        """The partial architecture with no digit chosen, from which the greedy search starts."""
        return Architecture(self.family, self.stage_code, ())

    def complete(self, partial: Architecture, seed: int, batch: int) -> Architecture:
        """Draw the blocks that ``partial`` leaves open, uniformly (paper, Sec. 3.3.2).

        A function of (seed, block, mini-batch) alone: the candidates of one greedy step, which have
        equally many digits, meet the same draws.
        """
        block = len(partial.dilation_code)
        rng = random.Random(derive_seed(seed, "completion", block, batch))
        return partial.extended(rng.choice(DIGITS) for _ in range(partial.blocks - block))

    def complete_evenly(self, partial: Architecture, seed: int, batch: int) -> Architecture:
        """As ``complete``, but three batches in a row, 3k to 3k + 2, draw each digit of a block once.

        So every alternative of an open block is reached whenever there are three batches.
        """
        block = len(partial.dilation_code)

        def digit(of: int) -> int:
            rng = random.Random(derive_seed(seed, "even completion", block, of, batch // 3))
            return rng.sample(DIGITS, k=len(DIGITS))[batch % 3]

        return partial.extended(digit(of) for of in range(block, partial.blocks))

    def sample(self, seed: int, iteration: int, among: Sequence[Architecture] = ()) -> Architecture:
        """Uniform and independent in each choice block, or uniform over ``among``."""
        rng = random.Random(derive_seed(seed, "path", iteration))
        if among:
            return rng.choice(among)
        return self.root.extended(rng.choice(DIGITS) for _ in range(self.root.blocks))
