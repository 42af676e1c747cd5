"""NAS-FPN: the feature pyramid of Ghiasi et al. (2019), P3 .. P7 above any backbone (paper, Table 9).

Its paper (arXiv 1904.07392, Figures 6 and 7) draws the cell that is stacked; its authors' code
(github.com/tensorflow/tpu, models/official/detection/modeling/architecture/nasfpn.py) settles the rest.
mmdetection's differs in attention, P6 and P7; CR-NAS (A.4) does not say which it used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import nn

from crnas_d2.modeling.backbone.family import Norm
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone

STRIDES = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}


def attention(coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """NAS-FPN's "global pooling": coarse + fine * weight, one weight in 0..1 a channel of coarse."""
    return coarse + fine * coarse.amax(dim=(2, 3), keepdim=True).sigmoid()


class Merge(NamedTuple):
    """A node of the graph: ReLU, 3x3 convolution and norm of two merged features."""

    name: str  # of the feature that it makes; those called ``<level>_out`` leave the cell
    level: str  # of that feature; the inputs are resampled to its size
    operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    inputs: tuple[str, str]  # names of two features made before; attention takes the coarser one first
    leftover: str = ""  # the cell's input of this level, added before the ReLU if no merge takes it


CELL = (
    Merge("p4_a", "p4", attention, ("p6", "p4")),
    Merge("p4_b", "p4", torch.add, ("p4", "p4_a")),
    Merge("p3_out", "p3", torch.add, ("p3", "p4_b")),
    Merge("p4_out", "p4", torch.add, ("p4_b", "p3_out")),
    Merge("p5_out", "p5", attention, ("p4_out", "p3_out"), leftover="p5"),
    Merge("p7_out", "p7", attention, ("p5_out", "p4_b"), leftover="p7"),
    Merge("p6_out", "p6", attention, ("p7_out", "p5_out")),
)


def _resampled(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """To a (height, width) some powers of two smaller (max-pooling) or larger (nearest neighbour)."""
    if x.shape[-1] > size[-1]:
        return F.max_pool2d(x, kernel_size=int(x.shape[-1] // size[-1]))  # torch 2.3 traces tensors
    return F.interpolate(x, size=size, mode="nearest") if x.shape[-1] < size[-1] else x


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: Norm) -> Conv2d:
    options = {"padding": kernel_size // 2, "bias": norm == "", "norm": get_norm(norm, out_channels)}
    conv = Conv2d(in_channels, out_channels, kernel_size, **options)
    weight_init.c2_xavier_fill(conv)  # as in detectron2's FPN
    return conv


class Cell(nn.Module):
    """The graph once: p3 .. p7, each (N, channels, H, W), to features of the same shapes."""

    def __init__(self, *, channels: int, norm: Norm) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({merge.name: _conv(channels, channels, 3, norm) for merge in CELL})

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = dict(features)
        for merge in CELL:
            size = features[merge.level].shape[-2:]
            merged = merge.operation(*(_resampled(features[name], size) for name in merge.inputs))
            if merge.leftover:
                merged = merged + features[merge.leftover]
            features[merge.name] = self.convs[merge.name](F.relu(merged))
        return {level: features[f"{level}_out"] for level in STRIDES}


class NASFPN(Backbone):
    """The pyramid above a backbone's ``in_features`` of strides 8, 16 and 32; else a ValueError."""

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        num_cells: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        strides = {name: shape.stride for name, shape in shapes.items()}
        if [strides.get(name) for name in in_features] != [8, 16, 32]:
            needed = f"NAS-FPN takes three, of strides 8, 16 and 32, among {strides}"
            raise ValueError(f"in_features {list(in_features)}: {needed}")
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.laterals = nn.ModuleList(
            _conv(shapes[name].channels, out_channels, 1, norm) for name in in_features
        )
        self.cells = nn.ModuleList(Cell(channels=out_channels, norm=norm) for _ in range(num_cells))
        self._out_features = list(STRIDES)
        self._out_feature_channels = dict.fromkeys(STRIDES, out_channels)
        self._out_feature_strides = STRIDES

    @property
    def size_divisibility(self) -> int:
        return STRIDES["p7"]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (N, C, H, W), sides multiples of 128, to p3 .. p7, (N, out_channels, H/8, W/8) .."""
        below = self.bottom_up(x)
        p3, p4, p5 = (conv(below[name]) for conv, name in zip(self.laterals, self.in_features))
        p6 = F.max_pool2d(p5, kernel_size=2)
        features = {"p3": p3, "p4": p4, "p5": p5, "p6": p6, "p7": F.max_pool2d(p6, kernel_size=2)}
        for cell in self.cells:
            features = cell(features)
        return features
