"""Family: what the networks of a series have in common, and the fixed network built from it.

A family is one block, one stem and the name of the convolution in the block that takes a dilation
rate, the choice block (paper, Sec. 3.2.2). A new family is one file that makes one Family value.
Shapes: the stem turns (N, 3, H, W) into (N, stem, H/4, W/4); stage i = 2..5 gives resi, of shape
(N, out_i, H/2**i, W/2**i).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

from torch import nn

from crnas_d2.architecture import Architecture
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone.resnet import ResNet

Norm = Union[str, Callable[[int], nn.Module]]  # as detectron2.layers.get_norm takes it
STAGE_STRIDES = (1, 2, 2, 2)  # of the first block of each stage; the stem has stride 4


@dataclass(frozen=True)
class Family:
    """A series of networks.

    Attributes:
        name: as in ``Architecture.family``.
        block: ``block(in_channels, width, stride, norm)`` makes one block with rate 1.
        stem: ``stem(in_channels, out_channels, norm)``.
        choice: the block's attribute that holds the 3x3 convolution with alternatives.
    """

    name: str
    block: Callable[[int, int, int, Norm], CNNBlockBase]
    stem: Callable[[int, int, Norm], CNNBlockBase]
    choice: str


def dilate(conv: nn.Conv2d, digit: int) -> None:
    """Give a 3x3 convolution the rate of a dilation digit (0, 1, 2: rates 1, 2, 3).

    Padding equals the rate, so that the output keeps its size and the weights keep their shape.
    """
    rate = digit + 1
    conv.dilation = (rate, rate)
    conv.padding = (rate, rate)


def make_chain(
    family: Family,
    in_channels: int,
    width: int,
    stride: int,
    digits: Sequence[int],
    norm: Norm,
) -> list[CNNBlockBase]:
    """The blocks of one stage in a row; the first one has the stride.

    Args:
        digits: dilation digit of each block; as many as there are blocks.
    """
    blocks = []
    for digit in digits:
        block = family.block(in_channels, width, stride, norm)
        dilate(getattr(block, family.choice), digit)
        blocks.append(block)
        in_channels, stride = block.out_channels, 1
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
        widths: width of each stage (of the 3x3 convolution).
        out_features: names of stages to return, of ``stem`` and ``res2`` .. ``res5``.
        freeze_at: as detectron2's ``MODEL.BACKBONE.FREEZE_AT``.

    Raises:
        ValueError: the architecture is partial.
    """
    if not architecture.is_complete:
        raise ValueError(f"architecture {architecture}: every block needs its digit")
    stem = family.stem(in_channels, stem_channels, norm)
    stages = []
    channels = stem.out_channels
    for width, stride, digits in zip(widths, STAGE_STRIDES, architecture.digits_by_stage()):
        stages.append(make_chain(family, channels, width, stride, digits, norm))
        channels = stages[-1][-1].out_channels
    return ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)
