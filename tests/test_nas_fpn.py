"""NAS-FPN against the same graph written out line by line, and what depends on what in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import randomise
from torch import nn
from torch.testing import assert_close

from crnas_d2.modeling.neck.nas_fpn import NASFPN, Cell
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

LEVELS = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
IN_FEATURES = ["res3", "res4", "res5"]
RESNET50 = (256, 512, 1024, 2048)
SMALL = (3, 4, 6, 5)
MOBILENET_V2 = (24, 32, 96, 320)


class Toy(Backbone):
    """res2 .. res5, each one convolution over the image, of any number of channels."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        strides = (4, 8, 16, 32)
        self.shapes = {
            f"res{i}": ShapeSpec(channels=c, stride=s)
            for i, (c, s) in enumerate(zip(channels, strides), 2)
        }
        for name, shape in self.shapes.items():
            self.add_module(name, nn.Conv2d(3, shape.channels, shape.stride, shape.stride))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name)(x) for name in self.shapes}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.shapes


def build(channels: tuple[int, ...] = SMALL, **changed: Any) -> NASFPN:
    options = {"in_features": IN_FEATURES, "out_channels": 8, "num_cells": 2, "norm": "BN"}
    torch.manual_seed(0)
    return NASFPN(bottom_up=Toy(channels), **{**options, **changed})


def images(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


def pyramid(channels: int) -> dict[str, torch.Tensor]:
    """Random P3 .. P7 for two images of 256 x 128."""
    return {p: images(2, channels, 256 // s, 128 // s).requires_grad_() for p, s in LEVELS.items()}


def up(x: torch.Tensor, times: int) -> torch.Tensor:
    return x.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)


def down(x: torch.Tensor, times: int) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // times, times, w // times, times).amax(dim=(3, 5))


def weigh(of: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Channels of x, weighed by the sigmoid of the greatest value of the same channel of the other."""
    return x * torch.sigmoid(of.flatten(2).max(dim=2).values)[:, :, None, None]


def written_out(cell: Cell, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The nodes of the figure in NAS-FPN's paper, a line each, with the module's own convolutions."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return cell.convs[name](x.clamp(min=0))

    p3, p4, p5, p6, p7 = (features[p] for p in LEVELS)
    p6_at_4 = up(p6, 4)
    p4_a = conv("p4_a", p6_at_4 + weigh(p6_at_4, p4))
    p4_b = conv("p4_b", p4 + p4_a)
    p3_out = conv("p3_out", p3 + up(p4_b, 2))
    p4_out = conv("p4_out", p4_b + down(p3_out, 2))
    p4_at_5 = down(p4_out, 2)
    p5_out = conv("p5_out", p4_at_5 + weigh(p4_at_5, down(p3_out, 4)) + p5)
    p5_at_7 = down(p5_out, 4)
    p7_out = conv("p7_out", p5_at_7 + weigh(p5_at_7, down(p4_b, 8)) + p7)
    p7_at_6 = up(p7_out, 2)
    p6_out = conv("p6_out", p7_at_6 + weigh(p7_at_6, down(p5_out, 2)))
    return {"p3": p3_out, "p4": p4_out, "p5": p5_out, "p6": p6_out, "p7": p7_out}


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", ""])
def test_a_cell_is_the_graph_written_out(norm: str) -> None:
    cell = Cell(channels=8, norm=norm).eval()
    randomise(cell, seed=2)
    features = pyramid(8)
    before = {p: x.clone() for p, x in features.items()}
    assert_close(cell(features), written_out(cell, features), rtol=1e-5, atol=1e-5)
    assert_close(features, before, rtol=0, atol=0)  # the input is left as it was


def test_the_whole_is_laterals_pooling_and_stacked_cells() -> None:
    network = build(num_cells=3).eval()
    randomise(network, seed=3)
    x = images(2, 3, 256, 128)
    below = network.bottom_up(x)
    p3, p4, p5 = (conv(below[f]) for conv, f in zip(network.laterals, ("res3", "res4", "res5")))
    expected = {"p3": p3, "p4": p4, "p5": p5, "p6": down(p5, 2), "p7": down(p5, 4)}
    for cell in network.cells:
        expected = written_out(cell, expected)
    assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


# The inputs of a cell that each of its outputs depends on: what the arrows of the figure reach.
REACHED_FROM = {
    "p3": {"p3", "p4", "p6"},
    "p4": {"p3", "p4", "p6"},
    "p5": {"p3", "p4", "p5", "p6"},
    "p6": {"p3", "p4", "p5", "p6", "p7"},
    "p7": {"p3", "p4", "p5", "p6", "p7"},
}


@pytest.mark.parametrize("output", LEVELS)
def test_what_an_output_depends_on(output: str) -> None:
    cell = Cell(channels=8, norm="BN").eval()
    randomise(cell, seed=4)
    features = pyramid(8)
    gradients = torch.autograd.grad(
        cell(features)[output].square().sum(), list(features.values()), allow_unused=True
    )
    reached = {p for p, g in zip(features, gradients) if g is not None and g.abs().sum() > 0}
    assert reached == REACHED_FROM[output]


@pytest.mark.parametrize("channels", [SMALL, MOBILENET_V2], ids=str)
@pytest.mark.parametrize("size", [(128, 128), (128, 384), (512, 256)], ids=str)
def test_shapes(channels: tuple[int, ...], size: tuple[int, int]) -> None:
    network = build(channels).eval()
    outputs = network(images(1, 3, *size))
    assert {p: tuple(x.shape) for p, x in outputs.items()} == {
        p: (1, 8, size[0] // s, size[1] // s) for p, s in LEVELS.items()
    }
    assert {p: (s.channels, s.stride) for p, s in network.output_shape().items()} == {
        p: (8, s) for p, s in LEVELS.items()
    }
    assert list(outputs) == list(network.output_shape()) == list(LEVELS)
    assert network.size_divisibility == 128


def test_seven_at_384_on_the_meta_device() -> None:
    """Its size, and that it builds and runs where nothing is stored."""
    with torch.device("meta"):
        network = build(RESNET50, out_channels=384, num_cells=7)
        outputs = network(torch.empty(2, 3, 896, 1408))
    norm = 2 * 384
    laterals = (512 + 1024 + 2048) * 384 + 3 * norm
    cells = 7 * 7 * (3 * 3 * 384 * 384 + norm)
    pyramid_alone = [p for name, p in network.named_parameters() if not name.startswith("bottom_up.")]
    assert sum(p.numel() for p in pyramid_alone) == laterals + cells == 66_444_288
    assert outputs["p7"].is_meta and outputs["p7"].shape == (2, 384, 7, 11)


@pytest.mark.parametrize("norm", ["BN", ""])
def test_convolutions_have_a_norm_or_a_bias(norm: str) -> None:
    convs = [m for m in build(norm=norm).cells.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 14 and all((conv.bias is None) == (norm == "BN") for conv in convs)


def test_cells_share_nothing() -> None:
    cells = [dict(cell.named_parameters()) for cell in build(num_cells=3).cells]
    assert len({p.data_ptr() for cell in cells for p in cell.values()}) == sum(map(len, cells))
    for name in (n for n in cells[0] if n.endswith("_a.weight")):
        assert not torch.equal(cells[0][name], cells[1][name])


@pytest.mark.parametrize("norm", ["BN", ""])
def test_every_parameter_gets_a_gradient(norm: str) -> None:
    network = build(norm=norm)
    # res2 is not taken by the pyramid.
    unused = {"bottom_up.res2.weight", "bottom_up.res2.bias"}
    outputs = network(images(2, 3, 256, 256))
    # Not the plain sum of squares: after BatchNorm it would hardly depend on the weights.
    sum((x * torch.randn_like(x)).sum() for x in outputs.values()).backward()
    without = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == unused


def test_mixed_precision() -> None:
    network = build().eval()
    randomise(network, seed=5)
    x = images(1, 3, 256, 128)
    exact = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x)
    for p in LEVELS:
        assert rough[p].dtype == torch.bfloat16
        assert (rough[p].float() - exact[p]).norm() < 0.05 * exact[p].norm()  # bfloat16: 8 bits


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"in_features": ["res2", "res3", "res4"]}, r"\['res2', 'res3', 'res4'\].* 8, 16 and 32"),
        ({"in_features": ["res4", "res5"]}, "takes three"),
        ({"in_features": ["res2", "res3", "res4", "res5"]}, "takes three"),
        ({"in_features": ["res3", "res5", "res4"]}, "8, 16 and 32"),
        ({"in_features": ["res3", "res4", "res6"]}, r"'res6'\].*'res5': 32"),
    ],
    ids=str,
)
def test_what_cannot_be_built(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changed)
