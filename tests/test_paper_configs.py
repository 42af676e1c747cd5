"""The paper's configs: the list is complete, and codes, schedules and sizes are those of its tables.

That each of them builds, trains a step and answers is tested with all others in test_configs.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHARED_DATA
from detectors import ROOT

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.engine.schedule import resolve_schedule
from crnas_d2.engine.setup import check_network
from crnas_d2.modeling.backbone.norm import resolve_norm
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import architecture_of, family_of, stage_space_of
from crnas_d2.pipeline.configs import base_paths, differing_keys, pretrain_config, supernet_config
from crnas_d2.space import block_costs
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.utils import comm

CONFIGS = ROOT / "configs"
TABLES = SHARED_DATA.parent / "paper" / "tables.json"

# Name in file names: family, and names in the paper's Tables 5 and 6.
NETWORKS = {
    "MNV2": ("mobilenetv2", "MV2", "CR-MobileNetV2"),
    "R_18": ("resnet_basic", "Res18", "CR-ResNet18"),
    "R_50": ("resnet", "Res50", "CR-ResNet50"),
    "R_101": ("resnet", "Res101", "CR-ResNet101"),
    "X_50_32x4d": ("resnext", "ReX50", ""),
    "X_101_32x4d": ("resnext", "ReX101", ""),
}
WITH_RATES = [name for name, (_, _, cr) in NETWORKS.items() if cr]
ALL = [*NETWORKS, *(f"SCR_{name}" for name in NETWORKS), *(f"CR_{name}" for name in WITH_RATES)]


def both(*names: str) -> list[str]:
    """Baselines and what was found."""
    return [f"{cr}{name}" for name in names for cr in ("", "CR_")]


# File name without .yaml: the network in it, "" for a whole series; and the schedule in tables.json.
FILES: dict[str, tuple[str, str]] = {
    **{f"COCO-Detection/faster_rcnn_{n}_FPN_1x": (n, "detector_1x") for n in ALL},
    **{
        f"COCO-Detection/faster_rcnn_{n}_FPN_2x": (n, "detector_2x_and_supernet_finetune")
        for n in both("R_50", "R_101")
    },
    **{f"COCO-Detection/faster_rcnn_{n}_NASFPN_1x": (n, "detector_1x") for n in both("R_50")},
    **{f"COCO-Detection/retinanet_{n}_FPN_1x": (n, "detector_1x") for n in both("R_50")},
    **{
        f"COCO-InstanceSegmentation/mask_rcnn_{n}_FPN_1x": (n, "detector_1x")
        for n in both("MNV2", "R_50", "R_101")
    },
    **{
        f"COCO-InstanceSegmentation/cascade_mask_rcnn_{n}_FPN_20ep": (n, "cascade_mask")
        for n in both("R_101")
    },
    **{f"PascalVOC-Detection/faster_rcnn_{n}_FPN_18ep": (n, "voc") for n in both("R_50", "R_101")},
    **{f"ImageNet-Classification/{n}": (n, "imagenet_pretrain_of_supernets") for n in ALL},
    **{
        f"Search/{family}": ("", "detector_2x_and_supernet_finetune")
        for family in ("resnet_basic", "resnet", "resnext", "mobilenetv2")
    },
}
SEARCHES = [name for name in FILES if name.startswith("Search/")]
of_all = pytest.mark.parametrize("name", FILES)


def config(name: str, *options: Any) -> CfgNode:
    return read_config(str(CONFIGS / f"{name}.yaml"), list(options))


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    if not TABLES.is_file():
        pytest.skip(f"no {TABLES}; CRNAS_SHARED_DATA names the folder beside it")
    return json.loads(TABLES.read_text(encoding="utf-8"))


def test_the_list_is_complete() -> None:
    found = {
        str(path.relative_to(CONFIGS).with_suffix(""))
        for folder in {Path(name).parent for name in FILES}
        for path in (CONFIGS / folder).glob("*.yaml")
        if not path.name.startswith("Base")
    }
    assert found == set(FILES)


@of_all
def test_codes_and_widths(name: str, tables: dict[str, Any]) -> None:
    cfg, (network, _) = config(name), FILES[name]
    node = cfg.MODEL.CRNAS
    assert node.SUPERNET == ""
    if network:
        prefix, _, plain = network.rpartition("CR_")
        family, of_stages, of_rates = NETWORKS[plain if "CR_" in network else network]
        kind = "stage_cr" if "CR_" in network else "baseline"
        stages = tables["stage_codes"][of_stages][kind]
        rates = tables["dilation_operation_codes"][of_rates] if network.startswith("CR_") else []
        assert prefix in ("", "S")
        assert (node.FAMILY, node.STAGE_CODE, node.DILATION_CODE) == (family, stages, rates)
    else:
        assert name.endswith(node.FAMILY)
    halved = name in SEARCHES and node.FAMILY != "mobilenetv2"
    widths = [width * node.WIDTH_MULTIPLIER for width in node.WIDTHS or family_of(cfg).widths]
    if halved:
        assert widths == tables["supernet_channels_resnet_resnext"]
    else:
        assert widths == list(family_of(cfg).widths)


@of_all
def test_the_detector_is_the_one_in_the_name(name: str) -> None:
    """Searches are Faster R-CNN with FPN (paper, Sec. 3.1); NAS-FPN is 7 @ 384 (Table 9)."""
    model = config(name).MODEL
    expected = ("GeneralizedRCNN", "build_crnas_fpn_backbone")
    if name.startswith("ImageNet"):
        expected = ("ImageClassifier", "build_crnas_backbone")
    elif "retinanet" in name:
        expected = ("RetinaNet", "build_crnas_retinanet_fpn_backbone")
    elif "NASFPN" in name:
        expected = ("GeneralizedRCNN", "build_crnas_nas_fpn_backbone")
        assert (model.NAS_FPN.NUM_CELLS, model.FPN.OUT_CHANNELS) == (7, 384)
    assert (model.META_ARCHITECTURE, model.BACKBONE.NAME) == expected
    if expected[0] == "GeneralizedRCNN":
        cascade = "cascade" in name
        assert model.MASK_ON == ("mask" in name)
        assert model.ROI_HEADS.NAME == ("CascadeROIHeads" if cascade else "StandardROIHeads")
        assert model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG == cascade


@of_all
def test_schedule_and_data(name: str, tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {**tables["schedules"]["detector_1x"], **tables["schedules"][FILES[name][1]]}
    cfg = config(name)
    batch, epochs = expected["batch"], expected["epochs"]
    images = 1000 * batch
    solver = resolve_schedule(cfg, images).SOLVER
    assert solver.IMS_PER_BATCH == batch
    assert solver.MAX_ITER == 1000 * epochs
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY) == (expected["momentum"], expected["weight_decay"])
    assert 0 < solver.WARMUP_ITERS < solver.MAX_ITER
    classifies = name.startswith("ImageNet")
    if classifies:
        assert solver.BASE_LR == expected["initial_lr"]
        assert solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and expected["decay"] == "cosine"
    else:
        # RetinaNet, which is not in the paper, has the rate of its own.
        share = 0.5 if "retinanet" in name else 1
        assert math.isclose(solver.BASE_LR, share * expected["lr_per_image"] * batch)
        assert solver.STEPS == tuple(1000 * step for step in expected["divide_by_10_at_epochs"])
        assert (solver.LR_SCHEDULER_NAME, solver.GAMMA) == ("WarmupMultiStepLR", 0.1)
        sides = (expected["short_side"], expected["long_side"])
        assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN) == (sides[:1], sides[1])
        assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == sides
    data = {"ImageNet": "imagenet", "PascalVOC": "voc"}.get(name.split("-")[0], "coco")
    assert {dataset.split("_")[0] for dataset in cfg.DATASETS.TRAIN} == {data}
    assert bool(cfg.DATASETS.TEST) == (name not in SEARCHES)
    classes = {"imagenet": 1000, "voc": 20, "coco": 80}[data]
    model = cfg.MODEL
    head = {"RetinaNet": model.RETINANET, "ImageClassifier": model.CLASSIFIER}
    assert head.get(model.META_ARCHITECTURE, model.ROI_HEADS).NUM_CLASSES == classes
    assert model.BACKBONE.FREEZE_AT == 0 and model.WEIGHTS == ""
    assert (cfg.INPUT.FORMAT, model.PIXEL_MEAN[0], model.PIXEL_STD[0]) == ("RGB", 123.675, 58.395)
    monkeypatch.setattr(comm, "get_world_size", lambda: 8)
    assert resolve_norm(model.CRNAS.NORM, "cuda") == expected["norm"]


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name: str, tables: dict[str, Any]) -> None:
    """The full space of each series, its budgets from one supernet, and how it is pre-trained."""
    cfg = config(name)
    family = cfg.MODEL.CRNAS.FAMILY
    space, spaces = stage_space_of(cfg), tables["stage_spaces"]
    if family == "mobilenetv2":
        given = spaces["mobilenetv2"]
        expected = [given.get(entry.upper(), [1]) for entry in given["code"]]
    else:
        expected = list(spaces["resnet"].values())
    assert [list(depths) for depths in space.depths] == expected
    counts = tables["derived_here"]["eligible_stage_candidates"]
    for budget in cfg.SEARCH.BUDGETS:
        key = "mobilenetv2_cost16" if family == "mobilenetv2" else f"resnet_N{budget}"
        assert len(space.eligible(budget)) == counts[key]
    budgets = {"resnet_basic": [8], "mobilenetv2": [16]}.get(family, [16, 33])
    assert list(cfg.SEARCH.BUDGETS) == budgets
    assert (cfg.SEARCH.STAGE.SAMPLING, cfg.SEARCH.STAGE.ONLY_ELIGIBLE) == ("uniform", False)
    assert (cfg.SEARCH.ARCHVAL.SIZE, cfg.SEARCH.DILATION.TOP_K) == (5000, tables["greedy"]["top_K"])
    assert tuple(cfg.DATASETS.TRAIN) == ("coco_2017_train",)
    path = str(CONFIGS / "Search" / cfg.SEARCH.PRETRAIN)
    for supernet in ("stage", "dilation"):
        run = pretrain_config(supernet_config(cfg, supernet), path)
        check_network(run)
        assert run.MODEL.CRNAS.SUPERNET == supernet
        for key in ("FAMILY", "WIDTHS", "WIDTH_MULTIPLIER", "STAGE_SPACE"):
            assert run.MODEL.CRNAS[key] == cfg.MODEL.CRNAS[key]
        expected = tables["schedules"]["imagenet_pretrain_of_supernets"]
        solver = resolve_schedule(run, 1000 * expected["batch"]).SOLVER
        assert (solver.MAX_ITER, solver.BASE_LR) == (1000 * expected["epochs"], expected["initial_lr"])
    for budget, base in base_paths(cfg, str(CONFIGS / f"{name}.yaml")).items():
        network = read_config(base)
        assert budget.meets(block_costs(architecture_of(network)))
        assert differing_keys(cfg, network) == []


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("supernet", ["stage", "dilation"])
def test_supernets_at_full_size(name: str, supernet: str) -> None:
    """With shapes and no values: parameters of all, and of the largest and the smallest path."""
    cfg = config(name, "MODEL.DEVICE", "meta", "MODEL.CRNAS.SUPERNET", supernet)
    with torch.device("meta"):
        backbone = find_supernet(build_backbone(cfg))
    assert backbone is not None
    parameters = dict(backbone.named_parameters())
    whole = sum(p.numel() for p in parameters.values())
    paths = [architecture_of(cfg)]
    if supernet == "stage":
        depths = stage_space_of(cfg).depths
        family = cfg.MODEL.CRNAS.FAMILY
        paths = [Architecture.undilated(family, map(end, depths)) for end in (max, min)]
    costs = backbone_costs(cfg)
    found = []
    for path in paths:
        backbone.set_path(path)
        on_path = [parameters[key].numel() for key in backbone.subnet_keys(path) if key in parameters]
        assert sum(on_path) == costs(path)["params"]
        found.append(sum(on_path))
    largest, smallest = max(found), min(found)
    print(f"{name}, {supernet}: {whole:,} parameters, paths of {smallest:,} to {largest:,}")
    assert 0 < smallest <= largest < whole
