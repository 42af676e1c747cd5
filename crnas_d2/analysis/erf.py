"""Effective receptive fields: how much each pixel of the input moves a unit of a feature level.

Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks (2016):
a gradient of 1 at a unit in the middle of the output, 0 at all others, is propagated back to the input
and averaged over inputs. A pixel's *energy* is here the magnitude of that gradient, not its square:
the absolute value, summed over the input's channels. A unit is the sum of its channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from crnas_d2.errors import InputError

PLATE = 512  # pixels of the side of what is shown around a unit (paper, Figure 1)
CENTRE = PLATE // 2  # the row and the column of the unit on its plate
# Pixels of an input's side: units within 64 pixels of its middle have a whole plate around them. P7's
# stride and NAS-FPN need a multiple of 128.
INPUT = PLATE + 128
BOX_STRIDES = 8  # an anchor's side in strides of its level: 64, 128, 256 at p3, p4, p5 (Figure 1)
SHARE = 0.95  # of the energy on the plate


def noise(count: int, channels: int) -> Iterator[torch.Tensor]:
    """Standard normal inputs (channels, INPUT, INPUT), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(channels, INPUT, INPUT, generator=generator)


def receptive_fields(
    backbone: nn.Module, images: Iterable[torch.Tensor], levels: Mapping[str, int], positions: int
) -> dict[str, np.ndarray]:
    """The mean energy around the units of each level: (PLATE, PLATE), which sums to 1.

    Args:
        backbone: in eval mode, from (1, C, INPUT, INPUT) to (1, c, INPUT / stride, INPUT / stride) by
            level. The unit of row i is taken to be at row i * stride of the input, where strided 3x3
            convolutions with a padding of 1 put it; columns alike.
        images: normalised, each (C, INPUT, INPUT), on the backbone's device.
        levels: their strides in pixels, powers of 2 from 1 to 128.
        positions: how many units of each image and level, drawn at random from those with a whole
            plate around them, the same at every call. Neighbours differ: a unit of a coarser level is
            upsampled to several of them.

    Raises InputError: naming the level, if its gradient is 0 everywhere or not finite.
    """
    generator = torch.Generator().manual_seed(0)
    fields = {level: np.zeros((PLATE, PLATE)) for level in levels}
    for image in images:
        inputs = image[None].requires_grad_()
        features = backbone(inputs)
        for level, stride in levels.items():
            first, last = -(-CENTRE // stride), (INPUT - CENTRE) // stride
            drawn = torch.randint(first, last + 1, (positions, 2), generator=generator)
            for row, column in drawn.tolist():
                unit = features[level][0, :, row, column].sum()
                (gradient,) = torch.autograd.grad(unit, inputs, retain_graph=True)
                top, left = row * stride - CENTRE, column * stride - CENTRE
                plate = gradient[0, :, top : top + PLATE, left : left + PLATE]
                fields[level] += plate.abs().sum(dim=0).double().cpu().numpy()
    for level, field in fields.items():
        if not 0 < field.sum() < np.inf:
            raise InputError(
                f"{level}: the gradient's sum is {field.sum()}: above 0 and finite is needed"
            )
        field /= field.sum()
    return fields


def side_of(field: np.ndarray) -> int:
    """Pixels of the side of the smallest square around the unit with SHARE of the energy: 1, 3, .. 511.

    ``field``: (PLATE, PLATE). What lies beyond the plate does not count, so a field that is the same
    everywhere has 501; PLATE: the square is the whole plate.
    """
    distance = abs(np.arange(PLATE) - CENTRE)
    ring = np.maximum.outer(distance, distance)  # by which the square grows
    held = np.cumsum(np.bincount(ring.ravel(), weights=field.ravel()))
    return min(PLATE, 2 * int(np.searchsorted(held, SHARE * held[-1])) + 1)


def draw(fields: np.ndarray, names: Sequence[str], levels: Mapping[str, int]) -> Figure:
    """A row of plates for each name; each level's anchor box in orange, the square of side_of in blue.

    ``fields``: (names, levels, PLATE, PLATE); ``levels``: their strides in pixels. Brightness is the
    square root of the energy, from 0 to the plate's own maximum, so that tails show beside the peak.
    """
    rows, columns = fields.shape[:2]
    figure = Figure(figsize=(2.8 * columns + 0.4, 3.1 * rows), layout="constrained")
    for line, name, of in zip(figure.subplots(rows, columns, squeeze=False), names, fields):
        line[0].set_ylabel(name, fontsize=8)
        for axes, (level, stride), field in zip(line, levels.items(), of):
            axes.imshow(field, cmap="gray", norm=PowerNorm(0.5, vmin=0))
            box, side = BOX_STRIDES * stride, side_of(field)
            for width, colour, style in ((box, "tab:orange", "-"), (side, "tab:blue", "--")):
                corner = (CENTRE - width / 2,) * 2
                axes.add_patch(Rectangle(corner, width, width, fill=False, ec=colour, ls=style))
            axes.set_title(f"{level}: {SHARE:.0%} in {side} pixels, box {box}", fontsize=8)
            axes.set(xticks=[], yticks=[])
    return figure
