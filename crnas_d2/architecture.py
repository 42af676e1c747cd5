"""Architecture: a family, a stage code and a dilation code, in one frozen, validated value.

Stage code: blocks in each stage; [3, 4, 6, 3] is ResNet50 (paper, Table 5).
Dilation code: one digit a block; 0, 1, 2 are dilation rates 1, 2, 3 (paper, Table 6).
Text form, in logs, journals and file names: ``resnet/1-3-5-7/0-010-00120-0102112`` (CR-ResNet50; one
group of digits a stage); ``_`` is a block without a digit yet, in a partial code. MobileNetV2's codes
have ten entries (paper, A.2); stem, 1x1 tail and pooling are among them, one "block" each.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

# Entries of a stage code, by family. The family names the block: resnet_basic is ResNet18 and 34.
FAMILY_STAGES = {"resnet_basic": 4, "resnet": 4, "resnext": 4, "mobilenetv2": 10}
# Entries without a chain of blocks: always 1, with digit 0. MobileNetV2: stem, 1x1 tail, pooling.
FIXED_ENTRIES: dict[str, tuple[int, ...]] = {"mobilenetv2": (0, 8, 9)}
DIGITS = (0, 1, 2)  # dilation rates 1, 2, 3 (paper, Sec. 3.2.2)


@dataclass(frozen=True)
class Architecture:
    """One network of a family, partial with fewer digits than blocks; a ValueError if it is none."""

    family: str  # a key of FAMILY_STAGES
    stage_code: tuple[int, ...]  # blocks in each stage, at least 1
    dilation_code: tuple[int, ...]  # digits of the first blocks, each in DIGITS

    def __post_init__(self) -> None:
        if self.family not in FAMILY_STAGES:
            raise ValueError(f"family {self.family!r}: allowed are {', '.join(FAMILY_STAGES)}")
        code, digits = self.stage_code, self.dilation_code
        stages = FAMILY_STAGES[self.family]
        if len(code) != stages or not all(type(n) is int and n >= 1 for n in code):
            needed = f"{self.family} takes {stages} integers of at least 1"
            raise ValueError(f"stage code {list(code)}: {needed}")
        if len(digits) > self.blocks or not all(type(d) is int and d in DIGITS for d in digits):
            needed = f"stage code {list(code)} takes {self.blocks} digits, each 0, 1 or 2"
            raise ValueError(f"dilation code {list(digits)}: {needed}")
        groups = self.digits_by_stage()
        for entry in FIXED_ENTRIES.get(self.family, ()):
            if code[entry] != 1 or any(groups[entry]):
                raise ValueError(
                    f"stage code {list(code)}, dilation code {list(digits)}: entry {entry + 1} of "
                    f"{self.family} has no chain of blocks: allowed is 1, with digit 0"
                )

    @classmethod
    def undilated(cls, family: str, stage_code: Iterable[int]) -> Architecture:
        """The architecture with rate 1 in every block, as classification networks have it."""
        code = tuple(stage_code)
        blocks = sum(n for n in code if isinstance(n, int) and n > 0)
        return cls(family, code, (0,) * blocks)

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Read the text form; ``parse(str(a)) == a``. Raises a ValueError for any other text."""
        try:
            family, stages, groups = text.split("/")
            digits = groups.replace("-", "").rstrip("_")
            found = cls(family, tuple(map(int, stages.split("-"))), tuple(map(int, digits)))
            if str(found) != text:
                raise ValueError(f"one group of digits a stage is needed, as in {found}")
        except ValueError as error:
            raise ValueError(f"architecture {text!r}: {error}") from error
        return found

    def __str__(self) -> str:
        stages = "-".join(map(str, self.stage_code))
        groups = "-".join(
            "".join(map(str, digits)).ljust(depth, "_")
            for depth, digits in zip(self.stage_code, self.digits_by_stage())
        )
        return f"{self.family}/{stages}/{groups}"

    @property
    def blocks(self) -> int:
        """Number of blocks in the whole network."""
        return sum(self.stage_code)

    @property
    def is_complete(self) -> bool:
        """Whether every block has its digit."""
        return len(self.dilation_code) == self.blocks

    def has_choice(self, block: int) -> bool:
        """Whether block number ``block`` of the whole network has a 3x3 convolution to dilate."""
        entry = bisect.bisect_right(list(itertools.accumulate(self.stage_code)), block)
        return entry not in FIXED_ENTRIES.get(self.family, ())

    def digits_by_stage(self) -> list[tuple[int, ...]]:
        """The dilation code cut into stages; groups of a partial code are shorter than the stage."""
        digits = iter(self.dilation_code)
        return [tuple(itertools.islice(digits, depth)) for depth in self.stage_code]

    def extended(self, digits: Iterable[int]) -> Architecture:
        """With ``digits`` appended to the dilation code."""
        return Architecture(self.family, self.stage_code, (*self.dilation_code, *digits))
