"""The builders in BACKBONE_REGISTRY: every family, fixed and supernets, in both meta architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import FAMILIES, HEADS, TINY

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.modeling import build
from crnas_d2.modeling.backbone.family import build_network
from crnas_d2.modeling.backbone.resnet import RESNET_BASIC
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import architecture_of
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage


def config(*overrides: Any) -> CfgNode:
    return read_config("", [*TINY, *overrides])


def picture(seed: int) -> dict[str, Any]:
    """A detector's training input with two boxes."""
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 40.0], [30.0, 8.0, 90.0, 60.0]]))
    instances.gt_classes = torch.tensor([0, 2])
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 4:40, 4:40] = masks[1, 8:60, 30:90] = True
    instances.gt_masks = BitMasks(masks)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 64, "width": 96, "image_id": seed}


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) == set(build.FAMILIES)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("supernet", ["", "stage", "dilation"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_trains_and_detects(family: str, supernet: str, head: str) -> None:
    options = [*FAMILIES[family], "MODEL.CRNAS.SUPERNET", supernet, *HEADS[head]]
    torch.manual_seed(0)
    model = build_model(config(*options))
    inner = find_supernet(model)
    assert (inner is None) == (supernet == "")
    if inner is not None:
        inner.set_path(inner.space.sample(0, 0))
    batch = [picture(1), picture(2)]
    with EventStorage(0):
        losses = model(batch)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("backbone.bottom_up.res5") for name in trained)
    model.eval()
    with torch.no_grad():
        assert all("instances" in output for output in model(batch))


def test_pyramids_have_their_levels() -> None:
    levels = {"FasterRCNN": ["p2", "p3", "p4", "p5", "p6"], "RetinaNet": ["p3", "p4", "p5", "p6", "p7"]}
    for head, names in levels.items():
        shapes = build_backbone(config(*HEADS[head])).output_shape()
        assert list(shapes) == names
        assert [shapes[n].stride for n in names] == [2 ** int(n[1:]) for n in names]


def test_a_partial_architecture_is_refused() -> None:
    family, partial = RESNET_BASIC, Architecture("resnet_basic", (1, 1, 1, 1), (0, 1))
    options = {"in_channels": 3, "widths": (4, 4, 6, 8, 12), "norm": "BN", "out_features": ("res5",)}
    with pytest.raises(ValueError, match=r"resnet_basic/1-1-1-1/0-1-_-_.*needs its digit"):
        build_network(family, partial, **options)


def test_the_bare_backbone() -> None:
    options = ["MODEL.BACKBONE.NAME", "build_crnas_backbone"]
    cfg = config(*options, "MODEL.CRNAS.OUT_FEATURES", ["res3", "res5"])
    shapes = build_backbone(cfg).output_shape()
    assert {n: (s.channels, s.stride) for n, s in shapes.items()} == {"res3": (24, 8), "res5": (48, 32)}


def test_no_dilation_code_is_rate_one() -> None:
    assert str(architecture_of(config())) == "resnet/1-2-1-1/0-00-0-0"
    code = ["MODEL.CRNAS.DILATION_CODE", [0, 1, 2, 0, 1]]
    assert str(architecture_of(config(*code))) == "resnet/1-2-1-1/0-12-0-1"
