"""Multiply-accumulates, the paper's FLOPs, and parameters of a network, counted by fvcore.

    macs    one for each product in a convolution or linear layer
    flops   macs, and for each output element 1 where a layer has a bias and 4 of a BatchNorm

The second is what the paper counts, as far as its figures tell (all 14 rows of Tables 1 and 3 within
0.3 %). In both a transposed convolution counts as a dense convolution over its output pixels, and
ROIAlign is left out. fvcore traces networks that run: here on a batch of no images, at no cost.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from crnas_d2.modeling.meta_arch.classifier import LAST

# What the heads of a two-stage detector are given. The paper does not say; these give its figures.
PROPOSALS, DETECTIONS = 2000, 100

Cost = Counter[str]  # macs, flops, params


def _cost(outputs: list[Any], macs: int, more: int) -> Cost:
    """An operation of so many multiply-accumulates, and additions, for each output element."""
    elements = math.prod(get_shape(outputs[0])[1:])  # of one image: the batch is empty
    return Counter(macs=macs * elements, flops=(macs + more) * elements)


def _convolution(inputs: list[Any], outputs: list[Any]) -> Cost:
    transposed, groups = inputs[6].toIValue(), inputs[8].toIValue()
    first, second, *kernel = get_shape(inputs[1])  # the weight's
    macs = (first // groups if transposed else second) * math.prod(kernel)
    return _cost(outputs, macs, inputs[2].isCompleteTensor())


HANDLES = {  # of (inputs, outputs) in the trace; the third input of a layer is its bias
    "aten::_convolution": _convolution,
    "aten::linear": lambda i, o: _cost(o, get_shape(i[1])[1], i[2].isCompleteTensor()),
    "aten::batch_norm": lambda _, o: _cost(o, 0, 4),
}


class _Parts(nn.Module):
    """The backbone and all heads of a model; regions are as large as ROIAlign makes them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> list[Any]:
        model, features = self.model, self.model.backbone(images)
        if hasattr(model, "fc"):  # a classifier
            return [features, model.fc(features[LAST].mean(dim=(2, 3)))]
        if hasattr(model, "head"):  # RetinaNet
            return [features, model.head([features[name] for name in model.head_in_features])]
        rpn, heads = model.proposal_generator, model.roi_heads
        outputs = [features, rpn.rpn_head([features[name] for name in rpn.in_features])]
        channels = features[heads.box_in_features[0]].shape[1]
        regions = images.new_zeros(0, channels, *heads.box_pooler.output_size)
        pairs: Iterable[Any] = [(heads.box_head, heads.box_predictor)]
        if isinstance(heads.box_head, nn.ModuleList):  # a cascade
            pairs = zip(heads.box_head, heads.box_predictor)
        outputs += [predict(head(regions)) for head, predict in pairs]
        if heads.mask_on:
            regions = images.new_zeros(0, channels, *heads.mask_pooler.output_size)
            outputs.append(heads.mask_head.layers(regions))
        return outputs


def count_modules(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, Cost]:
    """By name, the cost of every module and all inside it for one image of ``shape`` (C, H, W).

    ``network`` is on the CPU, in eval mode; its weights do not matter.
    """
    counter = FlopCountAnalysis(network, torch.zeros(0, *shape))
    counter.clear_op_handles().set_op_handle(**HANDLES)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        ops = counter.by_module_and_operator()
    params = {name: sum(p.numel() for p in m.parameters()) for name, m in network.named_modules()}
    return {name: ops[name] + Counter(params=n) for name, n in params.items()}


def count(model: Any, size: tuple[int, int]) -> dict[str, Cost]:
    """As ``count_modules``, of a two-stage detector, RetinaNet or ImageClassifier over a fixed network.

    Box and mask heads: for one region. ``size``: (height, width) in pixels, before the network pads.
    """
    divisor = max(model.backbone.size_divisibility, 1)
    height, width = (divisor * math.ceil(side / divisor) for side in size)
    costs = count_modules(_Parts(model), (len(model.pixel_mean), height, width))
    return {name.removeprefix("model."): cost for name, cost in costs.items()}


def parts(costs: Mapping[str, Cost]) -> dict[str, Cost]:
    """Backbone, neck, and heads for an image, of ``count``'s costs."""
    body = costs.get("backbone.bottom_up", costs["backbone"])
    found = {"backbone": body, "neck": costs["backbone"] - body}
    for part, times, names in (
        ("proposal head", 1, ["proposal_generator"]),
        ("box head", PROPOSALS, ["roi_heads.box_head", "roi_heads.box_predictor"]),
        ("mask head", DETECTIONS, ["roi_heads.mask_head"]),
        ("head", 1, ["head", "fc"]),
    ):
        once = sum((costs[name] for name in names if name in costs), Counter())
        found[part] = Counter({k: n if k == "params" else n * times for k, n in once.items()})
    return {part: cost for part, cost in found.items() if cost}


def blocks(costs: Mapping[str, Cost]) -> dict[str, Cost]:
    """The backbone's stem and stages, each before its blocks: ``res2``, ``res2.0``, ``res2.1`` ..."""
    body = "backbone.bottom_up" if "backbone.bottom_up" in costs else "backbone"
    wanted = re.compile(rf"{body}\.(\w+(\.\d+)?)")
    return {found[1]: cost for name, cost in costs.items() if (found := wanted.fullmatch(name))}
