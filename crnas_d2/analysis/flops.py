"""What a whole network computes: multiply-accumulates, the paper's FLOPs, and parameters.

Counted by hooks on the modules of a network that runs; on the meta device, where tensors have shapes
and no values, that takes a second at any size. ROIAlign is left out, as in the paper (Table 1). Two
conventions:

    macs    one for each product in a convolution or linear layer
    flops   macs, and for each output element 1 where a layer has a bias and 4 of a BatchNorm

The second is what the paper counts, as far as its figures tell: it gives all 14 rows of Tables 1 and 3
within 0.3 %, where macs lie 0.1 to 0.7 % below. In both a transposed convolution counts as a dense
convolution over its output pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.architecture import Architecture
from detectron2.layers import FrozenBatchNorm2d

# What the heads of a two-stage detector are given. The paper does not say; these give its figures.
PROPOSALS = 2000
DETECTIONS = 100
OF_BATCH_NORM = 4  # operations an element, in the paper's convention

# GFLOPs as published, by detector (with FPN, on COCO, at 800 x 1088): Tables 1 and 7, and Table 3. An
# architecture is written without its digits where all of them are 0.
PAPER_GFLOPS = {
    "Faster R-CNN": {
        "mobilenetv2/1-1-2-3-4-3-3-1-1-1": 121.1,
        "mobilenetv2/1-1-2-2-3-4-4-1-1-1/0-1-01-02-011-0011-0110-2-0-0": 121.4,
        "resnet_basic/2-2-2-2": 147.7,
        "resnet_basic/1-1-2-4/0-0-10-1021": 147.6,
        "resnet/3-4-6-3": 192.5,
        "resnet/1-3-5-7/0-010-00120-0102112": 192.7,
        "resnet/3-4-23-3": 257.3,
        "resnet/2-3-17-11/00-000-01010002000101010-11001012011": 257.5,
    },
    "Mask R-CNN": {
        "mobilenetv2/1-1-2-3-4-3-3-1-1-1": 189.5,
        "mobilenetv2/1-1-2-2-3-4-4-1-1-1/0-1-01-02-011-0011-0110-2-0-0": 189.8,
        "resnet/3-4-6-3": 261.2,
        "resnet/1-3-5-7/0-010-00120-0102112": 261.0,
        "resnet/3-4-23-3": 325.9,
        "resnet/2-3-17-11/00-000-01010002000101010-11001012011": 325.8,
    },
}


def paper_gflops(detector: str, architecture: Architecture) -> float | None:
    """What the paper prints for an architecture in a detector, or None where it prints nothing."""
    text = str(architecture)
    if not any(architecture.dilation_code):
        text = text.rsplit("/", 1)[0]
    return PAPER_GFLOPS[detector].get(text)


@dataclass(frozen=True)
class Cost:
    """What a module or a network costs; ``flops`` in the paper's convention."""

    macs: int = 0
    flops: int = 0
    params: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.flops + other.flops, self.params + other.params)


def _of_call(module: nn.Module, output: torch.Tensor) -> Cost:
    """One call of a module, without what the modules inside it do."""
    elements = output.numel()
    if isinstance(module, (_BatchNorm, FrozenBatchNorm2d)):
        return Cost(flops=OF_BATCH_NORM * elements)
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        macs = elements * module.in_channels // module.groups * math.prod(module.kernel_size)
    elif isinstance(module, nn.Linear):
        macs = elements * module.in_features
    else:
        return Cost()
    return Cost(macs, macs + (0 if module.bias is None else elements))


@contextmanager
def counting(model: nn.Module) -> Iterator[dict[str, Cost]]:
    """What runs inside the ``with`` block, by module name; parameters whether they run or not."""
    costs = {
        name: Cost(params=sum(p.numel() for p in module.parameters(recurse=False)))
        for name, module in model.named_modules()
    }

    def add(name: str, module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            costs[name] += _of_call(module, output)

    hooks = [
        module.register_forward_hook(functools.partial(add, name))
        for name, module in model.named_modules()
    ]
    try:
        yield costs
    finally:
        for hook in hooks:
            hook.remove()


def count(model: nn.Module, size: tuple[int, int]) -> dict[str, Cost]:
    """The cost of every module, by its name, for one image.

    Args:
        model: with a fixed network as its backbone, in eval mode, on any device: detectron2's
            GeneralizedRCNN with StandardROIHeads or CascadeROIHeads, its RetinaNet, or our
            ImageClassifier.
        size: (height, width) of the image in pixels; padded as the network pads it.
    """
    device = next(model.parameters()).device
    divisor = max(model.backbone.size_divisibility, 1)
    padded = (divisor * math.ceil(side / divisor) for side in size)
    with torch.no_grad(), counting(model) as costs:
        features = model.backbone(torch.zeros(1, len(model.pixel_mean), *padded, device=device))
        if hasattr(model, "roi_heads"):
            _two_stages(model, features)
        elif hasattr(model, "head_in_features"):  # RetinaNet
            model.head([features[name] for name in model.head_in_features])
        else:
            model.fc(features[model.in_feature].mean(dim=(2, 3)))
    return costs


def _two_stages(model: nn.Module, features: Mapping[str, torch.Tensor]) -> None:
    """Run the heads of a two-stage detector over regions as large as ROIAlign makes them."""
    proposals, heads = model.proposal_generator, model.roi_heads
    proposals.rpn_head([features[name] for name in proposals.in_features])
    like = features[heads.box_in_features[0]]

    def regions(number: int, pooler: nn.Module) -> torch.Tensor:
        return like.new_zeros(number, like.shape[1], *pooler.output_size)

    pairs = [(heads.box_head, heads.box_predictor)]
    if isinstance(heads.box_head, nn.ModuleList):  # Cascade R-CNN
        pairs = list(zip(heads.box_head, heads.box_predictor))
    for box_head, predictor in pairs:
        predictor(box_head(regions(PROPOSALS, heads.box_pooler)))
    if heads.mask_on:
        heads.mask_head.layers(regions(DETECTIONS, heads.mask_pooler))


# Beginnings of a module's name, the first that fits counts.
PARTS = {
    "backbone.bottom_up.": "backbone",
    "backbone.": "neck",
    "proposal_generator.": "proposal head",
    "roi_heads.box_": "box head",
    "roi_heads.mask_": "mask head",
    "head.": "head",
    "fc": "head",
}


def parts(model: nn.Module, costs: Mapping[str, Cost]) -> dict[str, Cost]:
    """Backbone, neck, proposal head, box head and mask head; backbone and head of a classifier."""
    starts = PARTS if hasattr(model.backbone, "bottom_up") else {**PARTS, "backbone.": "backbone"}

    def group(name: str) -> str:
        return next((part for start, part in starts.items() if name.startswith(start)), "")

    sums = _grouped(costs, group)
    return {part: sums[part] for part in dict.fromkeys(starts.values()) if part in sums}


def blocks(model: nn.Module, costs: Mapping[str, Cost], *, stages: bool = False) -> dict[str, Cost]:
    """The backbone's stem and blocks, ``stem``, ``res2.0``, ``res2.1`` ...; or its whole stages."""
    start = "backbone.bottom_up." if hasattr(model.backbone, "bottom_up") else "backbone."

    def group(name: str) -> str:
        stage, number = [*name[len(start) :].split("."), ""][:2]
        if not name.startswith(start):
            return ""
        return f"{stage}.{number}" if number.isdigit() and not stages else stage

    return _grouped(costs, group)


def _grouped(costs: Mapping[str, Cost], group: Callable[[str], str]) -> dict[str, Cost]:
    """Sums over the modules of each group; without the group named "", and without empty ones."""
    sums: dict[str, Cost] = {}
    for name, cost in costs.items():
        sums[group(name)] = sums.get(group(name), Cost()) + cost
    return {name: cost for name, cost in sums.items() if name and cost != Cost()}
