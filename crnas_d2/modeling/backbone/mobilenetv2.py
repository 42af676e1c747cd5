"""MobileNetV2 (Sandler et al. 2018, Table 2): inverted residuals; the depthwise 3x3 takes the rate.

Its stage code has ten entries (paper, A.2): stem, first block, m1 .. m5, last block, 1x1 tail, pooling.
FPN takes res2 (24 channels, after m1), res3 (32, after m2), res4 (96, after m4) and res5 (1,280, after
the tail, as the paper's FLOPs imply), at strides 4, 8, 16, 32. Pooling is part of a classifier's head.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from crnas_d2.modeling.backbone.family import Chain, Family, Norm
from detectron2.layers import CNNBlockBase, Conv2d, get_norm

EXPANSION = 6  # inner over input channels (Sandler et al. 2018, Table 2); 1 in the first block


def _conv(in_channels: int, out_channels: int, size: int, norm: Norm, **kwargs: Any) -> Conv2d:
    """Padded convolution, its norm, and ReLU6 unless ``activation`` is given."""
    kwargs = {"activation": nn.functional.relu6, "norm": get_norm(norm, out_channels), **kwargs}
    conv = Conv2d(in_channels, out_channels, size, padding=size // 2, bias=not norm, **kwargs)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")  # as torchvision's MobileNetV2
    return conv


class ConvBlock(CNNBlockBase):
    """One convolution, of stem or tail: (N, in_channels, H, W) to (N, width, H/stride, W/stride)."""

    def __init__(
        self, in_channels: int, width: int, norm: Norm, *, stride: int, size: int, name: str
    ) -> None:
        super().__init__(in_channels, width, stride)
        self.add_module(name, _conv(in_channels, width, size, norm, stride=stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (conv,) = self.children()
        return conv(x)


class InvertedResidual(CNNBlockBase):
    """(N, in_channels, H, W) to (N, width, H/stride, W/stride); no first 1x1 for expansion 1."""

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm, expansion: int) -> None:
        super().__init__(in_channels, width, stride)
        inner = expansion * in_channels
        self.expand = _conv(in_channels, inner, 1, norm) if expansion > 1 else None
        self.depthwise = _conv(inner, inner, 3, norm, stride=stride, groups=inner)
        self.project = _conv(inner, width, 1, norm, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x if self.expand is None else self.expand(x)
        out = self.project(self.depthwise(inner))
        return x + out if self.stride == 1 and self.in_channels == self.out_channels else out


_stem = functools.partial(ConvBlock, stride=2, size=3, name="conv1")
_first = functools.partial(InvertedResidual, expansion=1)
_later = functools.partial(InvertedResidual, expansion=EXPANSION)
_tail = functools.partial(ConvBlock, size=1, name="conv")

MOBILENETV2 = Family(
    "mobilenetv2",
    _stem,
    {
        "res2": (Chain(1, _first, 1), Chain(2, _later, 2)),
        "res3": (Chain(3, _later, 2),),
        "res4": (Chain(4, _later, 2), Chain(5, _later, 1)),
        "res5": (Chain(6, _later, 2), Chain(7, _later, 1), Chain(8, _tail, 1)),
    },
    choice="depthwise",
    stem_channels=32,
    widths=(16, 24, 32, 64, 96, 160, 320, 1280),  # Sandler et al. 2018, Table 2
    projects_by_width=False,
)
