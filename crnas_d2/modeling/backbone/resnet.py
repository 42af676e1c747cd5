"""The ResNet families, of detectron2's own blocks and stem.

resnet_basic (ResNet18, 34): two 3x3 convolutions, the second takes the rate (paper, Sec. 3.2.2).
resnet (ResNet50, 101, 152) and resnext: 1x1, 3x3, 1x1; the 3x3 takes the rate, and out = 4 * width.
"""

from __future__ import annotations

from collections.abc import Callable

from crnas_d2.modeling.backbone.family import Chain, Family, Norm
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock

EXPANSION = 4  # a Bottleneck's output over its width (He et al. 2016, Table 1)
WIDTHS = (64, 128, 256, 512)  # He et al. 2016, Table 1
STRIDES = {"res2": 1, "res3": 2, "res4": 2, "res5": 2}  # the stem has stride 4


def basic_block(in_channels: int, width: int, stride: int, norm: Norm) -> BasicBlock:
    """(N, in_channels, H, W) to (N, width, H/stride, W/stride)."""
    return BasicBlock(in_channels, width, stride=stride, norm=norm)


def bottleneck(
    num_groups: int, width_per_group: int, stride_in_1x1: bool
) -> Callable[[int, int, int, Norm], BottleneckBlock]:
    """A block function; its blocks turn (N, C, H, W) into (N, 4 * width, H/stride, W/stride).

    Args:
        num_groups: groups of the 3x3 convolution (Xie et al. 2017: the cardinality).
        width_per_group: channels of a group at width 64, and in proportion at others.
        stride_in_1x1: the stride is in the first 1x1 convolution, not in the 3x3.

    The block function raises a ValueError for a width at which a group has no channel.
    """

    def block(in_channels: int, width: int, stride: int, norm: Norm) -> BottleneckBlock:
        of_group = width * width_per_group // WIDTHS[0]
        if of_group < 1:
            raise ValueError(
                f"width {width}: a group of the 3x3 convolution has {width_per_group} channels at "
                f"width {WIDTHS[0]}, and none here"
            )
        return BottleneckBlock(
            in_channels,
            EXPANSION * width,
            bottleneck_channels=of_group * num_groups,
            stride=stride,
            num_groups=num_groups,
            norm=norm,
            stride_in_1x1=stride_in_1x1,
        )

    return block


def _family(name: str, block: Callable[[int, int, int, Norm], CNNBlockBase]) -> Family:
    return Family(
        name,
        BasicStem,
        {stage: (Chain(i, block, stride),) for i, (stage, stride) in enumerate(STRIDES.items())},
        choice="conv2",
        stem_channels=64,
        widths=WIDTHS,
        projects_by_width=True,
    )


def resnet(stride_in_1x1: bool = False) -> Family:
    """ResNet50, 101, 152: one group as wide as the block."""
    return _family("resnet", bottleneck(1, WIDTHS[0], stride_in_1x1))


def resnext(num_groups: int = 32, width_per_group: int = 4, stride_in_1x1: bool = False) -> Family:
    """ResNeXt; 32 groups of 4 channels make ResNeXt50-32x4d (Xie et al. 2017, Table 1)."""
    return _family("resnext", bottleneck(num_groups, width_per_group, stride_in_1x1))


RESNET_BASIC = _family("resnet_basic", basic_block)
