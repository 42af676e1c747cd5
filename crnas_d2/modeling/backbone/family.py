"""Family: what the networks of a series have in common, and the fixed network built from it.

A stage is one or more chains of equal blocks; each entry of the stage code is the length of one chain.
In each block one 3x3 convolution takes a dilation rate, the choice block (paper, Sec. 3.2.2).
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

# Makes one block with rate 1, called as block(in_channels, width, stride=..., norm=...).
Block = Callable[..., CNNBlockBase]
Norm = Union[str, Callable[[int], nn.Module]]  # as detectron2.layers.get_norm takes it


@dataclass(frozen=True)
class Chain:
    """Equal blocks in a row."""

    position: int  # of the entry of the stage code that says how many
    block: Block
    stride: int  # of the first block; the others have 1


@dataclass(frozen=True)
class Family:
    """A series of networks; ``name`` is as in ``Architecture.family``."""

    name: str
    stem: Callable[[int, int, Norm], CNNBlockBase]  # of in_channels, out_channels, norm
    stages: Mapping[str, tuple[Chain, ...]]  # res2 .. res5
    choice: str  # a block's attribute with the 3x3 convolution; blocks without it have no choice
    stem_channels: int  # at full width
    widths: tuple[int, ...]  # what the blocks of each chain take as ``width``, at full width
    projects_by_width: bool  # a block projects its shortcut only where the width changes

    def chains(self) -> Iterator[tuple[str, Chain]]:
        """(stage name, chain) in the order of ``widths``."""
        return ((name, chain) for name, chains in self.stages.items() for chain in chains)


def make_chain(
    family: Family, chain: Chain, in_channels: int, width: int, norm: Norm, digits: Sequence[int]
) -> list[CNNBlockBase]:
    """The blocks of a chain, one for each dilation digit (0, 1, 2: rates 1, 2, 3)."""
    blocks: list[CNNBlockBase] = []
    for digit in digits:
        block = chain.block(in_channels, width, stride=1 if blocks else chain.stride, norm=norm)
        if hasattr(block, family.choice):
            conv = getattr(block, family.choice)
            conv.dilation = conv.padding = (digit + 1, digit + 1)  # so the output keeps its size
        blocks.append(block)
        in_channels = block.out_channels
    return blocks


def build_network(
    family: Family,
    architecture: Architecture,
    *,
    in_channels: int,
    widths: Sequence[int],  # of the stem and of each chain
    norm: Norm,
    out_features: Sequence[str],
    freeze_at: int = 0,
) -> ResNet:
    """A fixed network of detectron2's own ResNet class; a ValueError if the architecture is partial."""
    if not architecture.is_complete:
        raise ValueError(f"architecture {architecture}: every block needs its digit")
    stem = family.stem(in_channels, widths[0], norm)
    stages: dict[str, list[CNNBlockBase]] = {name: [] for name in family.stages}
    groups = architecture.digits_by_stage()
    channels = stem.out_channels
    for (name, chain), width in zip(family.chains(), widths[1:]):
        blocks = make_chain(family, chain, channels, width, norm, groups[chain.position])
        stages[name] += blocks
        channels = blocks[-1].out_channels
    return ResNet(stem, list(stages.values()), out_features=list(out_features), freeze_at=freeze_at)
