"""The ResNet families, of detectron2's own blocks and stem.

resnet_basic (ResNet18, 34): two 3x3 convolutions, the second takes the rate (paper, Sec. 3.2.2).
resnet (ResNet50, 101, 152) and resnext: 1x1, 3x3, 1x1; the 3x3 takes the rate, and out = 4 * width.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from crnas_d2.modeling.backbone.family import Block, Chain, Family
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock

EXPANSION = 4  # a Bottleneck's output over its width (He et al. 2016, Table 1)
WIDTHS = (64, 128, 256, 512)  # He et al. 2016, Table 1
STRIDES = {"res2": 1, "res3": 2, "res4": 2, "res5": 2}  # the stem has stride 4


def bottleneck(
    in_channels: int, width: int, *, num_groups: int, width_per_group: int, **others: Any
) -> BottleneckBlock:
    """(N, in_channels, H, W) to (N, 4 * width, H/stride, W/stride); a ValueError for empty groups."""
    # ``width_per_group`` is at width 64 (Xie et al. 2017), and in proportion at others.
    channels = width * width_per_group // WIDTHS[0] * num_groups
    if channels < 1:
        raise ValueError(f"width {width}: {num_groups} groups of the 3x3 convolution have no channel")
    options = {"bottleneck_channels": channels, "num_groups": num_groups, **others}
    return BottleneckBlock(in_channels, EXPANSION * width, **options)


def _family(name: str, block: Block) -> Family:
    stages = {stage: (Chain(i, block, stride),) for i, (stage, stride) in enumerate(STRIDES.items())}
    return Family(
        name, BasicStem, stages, "conv2", stem_channels=64, widths=WIDTHS, projects_by_width=True
    )


def resnext(num_groups: int = 32, width_per_group: int = 4, stride_in_1x1: bool = False) -> Family:
    """ResNeXt; 32 groups of 4 channels make ResNeXt50-32x4d (Xie et al. 2017, Table 1)."""
    options = {"num_groups": num_groups, "width_per_group": width_per_group}
    block = functools.partial(bottleneck, stride_in_1x1=stride_in_1x1, **options)
    return _family("resnext", block)


def resnet(stride_in_1x1: bool = False) -> Family:
    """ResNet50, 101, 152: one group as wide as the block."""
    return replace(resnext(1, WIDTHS[0], stride_in_1x1), name="resnet")


RESNET_BASIC = _family("resnet_basic", BasicBlock)
