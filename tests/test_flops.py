"""Costs of whole networks: the paper's figures, hooks on the parts, and tools/flops.py."""

from __future__ import annotations

import functools
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bench import script
from conftest import SHARED_DATA
from detectors import FAMILIES, HEADS, ROOT, TINY
from networks import by_hooks
from torch import nn

from crnas_d2.analysis import flops
from crnas_d2.analysis.costs import backbone_costs, input_size
from crnas_d2.analysis.flops import DETECTIONS, PROPOSALS, Cost
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import architecture_of
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

TABLES = SHARED_DATA.parent / "paper" / "tables.json"
SIZE = (64, 128)  # height, width of the pictures of small networks
TABLE_1 = [f"{cr}{n}" for n in ("MNV2", "R_18", "R_50", "R_101") for cr in ("", "CR_")]
TABLE_3 = [f"{cr}{n}" for n in ("MNV2", "R_50", "R_101") for cr in ("", "CR_")]
DETECTION = [f"COCO-Detection/faster_rcnn_{name}_FPN_1x.yaml" for name in TABLE_1]
SEGMENTATION = [f"COCO-InstanceSegmentation/mask_rcnn_{name}_FPN_1x.yaml" for name in TABLE_3]


@functools.cache
def tool() -> ModuleType:
    return script("tools/flops.py")


@functools.cache
def report(name: str) -> dict[str, Any]:
    return tool().report(str(ROOT / "configs" / name))


def config(name: str, *options: Any) -> CfgNode:
    return read_config(str(ROOT / "configs" / name), list(options))


def small(*options: Any) -> nn.Module:
    """A network of a few thousand weights, on the CPU."""
    return build_model(read_config("", [*TINY, *options])).eval()


def parts_of(model: nn.Module) -> dict[str, Cost]:
    return flops.parts(flops.count(model, SIZE))


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, device="meta")


@pytest.mark.parametrize("name", [*DETECTION, *SEGMENTATION])
def test_the_papers_rows(name: str) -> None:
    """The paper's convention is a fit: 0.3 % is what it leaves in the worst row, MobileNetV2's."""
    found = report(name)
    assert found["size"] == [800, 1088]
    assert found["flops_g"] == pytest.approx(found["paper_flops_g"], rel=0.003)
    assert found["macs_g"] < found["flops_g"]


@pytest.mark.parametrize("name", [name for name in [*DETECTION, *SEGMENTATION] if "CR_" not in name])
def test_reallocation_keeps_the_cost(name: str) -> None:
    """Paper, Sec. 4.2.1; in both conventions."""
    baseline, found = report(name), report(name.replace("rcnn_", "rcnn_CR_"))
    for cost in ("macs_g", "flops_g"):
        assert found[cost] == pytest.approx(baseline[cost], rel=0.003)
    assert found["stages"] != baseline["stages"]


def test_the_figures_are_the_papers() -> None:
    """Every figure of Tables 1, 3 and 7, by the config of its row, 2x schedules included."""
    if not TABLES.is_file():
        pytest.skip(f"no {TABLES}")
    tables = json.loads(TABLES.read_text())
    names = {"MobileNetV2": "MNV2", "ResNet18": "R_18", "ResNet50": "R_50", "ResNet101": "R_101"}
    for table, form in (
        ("table1_faster_rcnn_fpn_coco_minival_1x", "COCO-Detection/faster_rcnn_{}_FPN_1x.yaml"),
        ("table7_2x", "COCO-Detection/faster_rcnn_{}_FPN_2x.yaml"),
        ("table3_mask_rcnn_coco_minival", "COCO-InstanceSegmentation/mask_rcnn_{}_FPN_1x.yaml"),
    ):
        rows = {name: row for name, row in tables[table].items() if name != "columns"}
        for name, row in rows.items():
            cr, plain = name.startswith("CR-"), name.removeprefix("CR-")
            file = form.format(("CR_" if cr else "") + names[plain])
            assert tool().paper_gflops(config(file)) == row[0], file
        printed = [row["mask" in table] for row in tool().PAPER_GFLOPS.values()]
        assert table == "table7_2x" or sum(row is not None for row in printed) == len(rows)


@pytest.mark.parametrize(
    "options",
    [
        ["MODEL.CRNAS.STAGE_CODE", [3, 4, 5, 4]],
        ["MODEL.CRNAS.DILATION_CODE", [0] * 15 + [1]],
        ["MODEL.CRNAS.WIDTH_MULTIPLIER", 0.5],
        ["MODEL.ROI_HEADS.NUM_CLASSES", 20],
        ["MODEL.FPN.OUT_CHANNELS", 128],
        ["INPUT.MIN_SIZE_TEST", 600],
        ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"],
        ["MODEL.META_ARCHITECTURE", "RetinaNet"],
    ],
    ids=str,
)
def test_no_figure_for_what_the_paper_has_not(options: list[Any]) -> None:
    name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    assert tool().paper_gflops(config(name)) == 192.5
    assert tool().paper_gflops(config(name, *options)) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_backbones_against_hooks(family: str) -> None:
    """And their stages and blocks add up to the whole."""
    model = small(*FAMILIES[family])
    costs = flops.count(model, SIZE)
    body, backbone = model.to("meta").backbone.bottom_up, flops.parts(costs)["backbone"]
    params = Cost(params=sum(p.numel() for p in body.parameters()))
    assert backbone == by_hooks(body, zeros(1, 3, *SIZE)) + params
    found = flops.blocks(costs)
    stages = {name: cost for name, cost in found.items() if "." not in name}
    assert list(stages) == ["stem", "res2", "res3", "res4", "res5"]
    blocks = {name: cost for name, cost in found.items() if "." in name}
    assert sum(stages.values(), Cost()) == sum(blocks.values(), stages["stem"]) == backbone
    assert len(blocks) == sum(len(getattr(body, f"res{i}")) for i in range(2, 6))


@pytest.mark.parametrize("head", HEADS)
def test_necks_and_heads_against_hooks(head: str) -> None:
    """Every part of every kind of detector; together they have all of its parameters."""
    model = small(*HEADS[head])
    found = parts_of(model)
    params = [part.pop("params") for part in found.values()]
    assert sum(params) == sum(p.numel() for p in model.to("meta").parameters())
    image = zeros(1, 3, 128 if head == "NASFPN" else 64, 128)  # NAS-FPN pads to multiples of 128
    assert found["backbone"] == by_hooks(model.backbone.bottom_up, image)
    assert found["backbone"] + found["neck"] == by_hooks(model.backbone, image)
    features = model.backbone(image)
    if head == "RetinaNet":
        name, over, levels = "head", model.head, model.head_in_features
    else:
        rpn = model.proposal_generator
        name, over, levels = "proposal head", rpn.rpn_head, rpn.in_features
    assert found[name] == by_hooks(over, [features[level] for level in levels])
    assert all(part["flops"] > part["macs"] > 0 for part in found.values())


@pytest.mark.parametrize("head", [head for head in HEADS if head != "RetinaNet"])
def test_heads_on_regions_against_hooks(head: str) -> None:
    """Each of a cascade's three box heads sees every proposal."""
    model = small(*HEADS[head])
    found, heads = parts_of(model), model.to("meta").roi_heads
    pairs = [(heads.box_head, heads.box_predictor)]
    if head.startswith("Cascade"):
        pairs = list(zip(heads.box_head, heads.box_predictor))
        assert len(pairs) == 3
    regions = zeros(PROPOSALS, 8, *heads.box_pooler.output_size)
    of_pairs = [by_hooks(nn.Sequential(*pair), regions) for pair in pairs]
    assert found["box head"] - Cost(params=found["box head"]["params"]) == sum(of_pairs, Cost())
    assert ("mask head" in found) == heads.mask_on
    if heads.mask_on:
        regions = zeros(DETECTIONS, 8, *heads.mask_pooler.output_size)
        mask_head = by_hooks(nn.Sequential(*heads.mask_head), regions)
        assert found["mask head"] - Cost(params=found["mask head"]["params"]) == mask_head


def test_biases_and_batch_norm_are_what_the_conventions_differ_by() -> None:
    """Counted by hand: 2 channels of 8 x 8, with a bias, then with BatchNorm instead."""
    for layer, macs, more in (
        (nn.Conv2d(3, 2, 3, padding=1), 27, 1),
        (nn.Conv2d(4, 2, 3, padding=1, groups=2, bias=False), 18, 0),
        (nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU()), 27, 4),
        (nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), FrozenBatchNorm2d(2)), 3, 4),
        (nn.ConvTranspose2d(3, 2, 3, padding=1), 27, 1),
        (nn.ConvTranspose2d(4, 2, 3, padding=1, groups=2, bias=False), 18, 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 128)), 192, 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 128, bias=False)), 192, 0),
    ):
        channels = getattr(layer, "in_channels", 3)
        cost = flops.count_modules(layer.eval(), (channels, 8, 8))[""]
        assert (cost["macs"], cost["flops"] - cost["macs"]) == (macs * 2 * 64, more * 2 * 64), layer
        assert cost["params"] == sum(p.numel() for p in layer.parameters())


def test_codes_and_widths_change_the_figures_and_rates_do_not() -> None:
    def costs(*options: Any) -> Cost:
        return parts_of(small(*options))["backbone"]

    plain = costs()
    assert costs("MODEL.CRNAS.DILATION_CODE", [1, 2, 0, 1, 2]) == plain
    for options in (
        ["MODEL.CRNAS.STAGE_CODE", [1, 1, 2, 1]],
        ["MODEL.CRNAS.WIDTHS", [4, 6, 8, 14]],
        ["MODEL.CRNAS.STEM_CHANNELS", 8],
        ["MODEL.CRNAS.WIDTH_MULTIPLIER", 0.5],
    ):
        changed = costs(*options)
        assert changed["flops"] != plain["flops"] and changed["params"] != plain["params"]


def test_the_backbone_costs_what_the_search_says() -> None:
    cfg = config("COCO-Detection/faster_rcnn_CR_MNV2_FPN_1x.yaml")
    expected = backbone_costs(cfg)(architecture_of(cfg))
    found = report("COCO-Detection/faster_rcnn_CR_MNV2_FPN_1x.yaml")["parts"]["backbone"]
    assert input_size(cfg) == (800, 1088)
    assert found["macs_g"] == expected["macs"] / 1e9
    assert found["params_m"] == expected["params"] / 1e6


def test_a_classifier_at_its_crop() -> None:
    """ResNet50 has 4.09 GMACs and 25.557 M parameters (torchvision's documentation)."""
    found = report("ImageNet-Classification/R_50.yaml")
    assert found["size"] == [224, 224] and found["paper_flops_g"] is None
    assert list(found["parts"]) == ["backbone", "head"]
    assert found["params_m"] == 25.557032
    assert found["macs_g"] == pytest.approx(4.09, abs=0.005)
    assert found["parts"]["head"]["macs_g"] == 2048 * 1000 / 1e9


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["flops.py", *arguments])
        runpy.run_path(str(ROOT / "tools" / "flops.py"), run_name="__main__")

    return call


def test_what_the_tool_prints(run: Callable[..., None], capsys: Any) -> None:
    files = [str(ROOT / "configs" / name) for name in (DETECTION[2], "BCCD/faster_rcnn_R_50.yaml")]
    run("--json", "--config-file", *files)
    paper, own = json.loads(capsys.readouterr().out)
    assert [found["config"] for found in (paper, own)] == files
    assert (paper["paper_flops_g"], own["paper_flops_g"]) == (147.7, None)
    assert own["size"] == [256, 320]
    for cost in ("macs_g", "flops_g", "params_m"):
        assert paper[cost] == pytest.approx(sum(part[cost] for part in paper["parts"].values()))
    run("--blocks", "--config-file", *files)
    table = capsys.readouterr().out
    assert f"{paper['flops_g']:.2f} |  147.70" in table and "res5.1" in table


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ("CRNAS: {SUPERNET: stage}", "CRNAS.SUPERNET: 'stage': allowed is a fixed network"),
        ("CRNAS: {STAGE_CODE: [1, 2]}", "CRNAS.STAGE_CODE: stage code [1, 2]: resnet_basic takes 4"),
        ("META_ARCHITECTURE: PanopticFPN", "META_ARCHITECTURE: 'PanopticFPN': allowed are ("),
        ("ROI_HEADS: {NAME: Res5ROIHeads}", "ROI_HEADS.NAME: 'Res5ROIHeads': allowed are ("),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., None], changes: str, error: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: {ROOT / 'configs' / DETECTION[2]}\nMODEL: {{{changes}}}\n")
    with pytest.raises(SystemExit) as left:
        run("--json", "--config-file", str(path))
    printed = capsys.readouterr()
    assert left.value.code == 2 and not printed.out
    assert printed.err.startswith(f"error: MODEL.{error}") and printed.err.count("\n") == 1
    with pytest.raises(InputError):
        tool().report(str(path))
