"""The ResNet family: detectron2's own blocks and stem, with the stride in the 3x3 convolution.

resnet_basic (ResNet18, 34): two 3x3 convolutions, the second takes the rate (paper, Sec. 3.2.2).
resnet (ResNet50, 101, 152): 1x1, 3x3, 1x1; the 3x3 takes the rate, and out = 4 * width.
"""

from __future__ import annotations

from crnas_d2.modeling.family import Family, Norm
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock

EXPANSION = 4  # a Bottleneck's output over its width (He et al. 2016, Table 1)


def basic_block(in_channels: int, width: int, stride: int, norm: Norm) -> BasicBlock:
    """(N, in_channels, H, W) to (N, width, H/stride, W/stride)."""
    return BasicBlock(in_channels, width, stride=stride, norm=norm)


def bottleneck(in_channels: int, width: int, stride: int, norm: Norm) -> BottleneckBlock:
    """(N, in_channels, H, W) to (N, 4 * width, H/stride, W/stride)."""
    return BottleneckBlock(
        in_channels,
        EXPANSION * width,
        bottleneck_channels=width,
        stride=stride,
        norm=norm,
        stride_in_1x1=False,
    )


RESNET_BASIC = Family("resnet_basic", basic_block, BasicStem, choice="conv2")
RESNET = Family("resnet", bottleneck, BasicStem, choice="conv2")
