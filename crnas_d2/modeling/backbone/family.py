"""Family: what the networks of a series have in common, and the fixed network built from it.

A family is a stem, a table of stages, and the name of the convolution in a block that takes a dilation
rate, the choice block (paper, Sec. 3.2.2). A stage is one or more chains of equal blocks; each entry of
the stage code is the length of one chain. A new family is one file that makes one Family.
Shapes: the stem takes images (N, 3, H, W); stage i = 2..5 gives resi, (N, out_i, H/2**i, W/2**i).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from torch import nn

from crnas_d2.architecture import Architecture
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone.resnet import ResNet

Norm = Union[str, Callable[[int], nn.Module]]  # as detectron2.layers.get_norm takes it


@dataclass(frozen=True)
class Chain:
    """Equal blocks in a row.

    Attributes:
        position: of the entry of the stage code that says how many.
        block: ``block(in_channels, width, stride, norm)`` makes one block with rate 1.
        stride: of the first block; the others have 1.
    """

    position: int
    block: Callable[[int, int, int, Norm], CNNBlockBase]
    stride: int


@dataclass(frozen=True)
class Family:
    """A series of networks.

    Attributes:
        name: as in ``Architecture.family``.
        stem: ``stem(in_channels, out_channels, norm)``.
        stages: the chains of res2 .. res5.
        choice: the attribute of a block that holds its 3x3 convolution with alternatives; blocks
            without it have no choice.
        stem_channels: channels after the stem, at full width.
        widths: what the blocks of each chain take as ``width``, at full width.
        projects_by_width: a block projects its shortcut only where the width changes, so a stage with
            a stride needs another width than the one before.
    """

    name: str
    stem: Callable[[int, int, Norm], CNNBlockBase]
    stages: Mapping[str, tuple[Chain, ...]]
    choice: str
    stem_channels: int
    widths: tuple[int, ...]
    projects_by_width: bool

    def chains(self) -> Iterator[tuple[str, Chain]]:
        """(stage name, chain) in the order of ``widths``."""
        return ((name, chain) for name, chains in self.stages.items() for chain in chains)

    def digits(self, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        """The dilation digits of the blocks of each stage."""
        groups = architecture.digits_by_stage()
        return {
            name: tuple(digit for chain in chains for digit in groups[chain.position])
            for name, chains in self.stages.items()
        }


def make_chain(
    family: Family, chain: Chain, in_channels: int, width: int, norm: Norm, digits: Sequence[int]
) -> list[CNNBlockBase]:
    """The blocks of a chain, one for each dilation digit (0, 1, 2: rates 1, 2, 3)."""
    blocks: list[CNNBlockBase] = []
    for digit in digits:
        block = chain.block(in_channels, width, 1 if blocks else chain.stride, norm)
        if hasattr(block, family.choice):
            conv = getattr(block, family.choice)
            # With padding equal to the rate the output keeps its size.
            conv.dilation = conv.padding = (digit + 1, digit + 1)
        blocks.append(block)
        in_channels = block.out_channels
    return blocks


def build_network(
    family: Family,
    architecture: Architecture,
    *,
    in_channels: int,
    stem_channels: int,
    widths: Sequence[int],
    norm: Norm,
    out_features: Sequence[str],
    freeze_at: int = 0,
) -> ResNet:
    """A fixed network: detectron2's own ResNet class over the family's blocks, no supernet code.

    Args:
        architecture: complete; any positive stage code.
        in_channels: channels of the image.
        stem_channels: channels after the stem.
        widths: width of each chain, as many as ``family.widths``.
        out_features: names of stages to return, of ``stem`` and ``res2`` .. ``res5``.
        freeze_at: as detectron2's ``MODEL.BACKBONE.FREEZE_AT``.

    Raises:
        ValueError: the architecture is partial.
    """
    if not architecture.is_complete:
        raise ValueError(f"architecture {architecture}: every block needs its digit")
    stem = family.stem(in_channels, stem_channels, norm)
    stages: dict[str, list[CNNBlockBase]] = {name: [] for name in family.stages}
    groups = architecture.digits_by_stage()
    channels = stem.out_channels
    for (name, chain), width in zip(family.chains(), widths):
        blocks = make_chain(family, chain, channels, width, norm, groups[chain.position])
        stages[name] += blocks
        channels = blocks[-1].out_channels
    return ResNet(stem, list(stages.values()), out_features=list(out_features), freeze_at=freeze_at)
