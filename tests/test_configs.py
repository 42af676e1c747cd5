"""Every file under configs/: it loads, what it describes builds, trains a step and detects.

A new config is tested by existing. Networks are shrunk, all by the same overrides; pictures are made
here, so that no data set is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import ROOT

from crnas_d2.engine.chain import plan_search
from crnas_d2.engine.setup import check_network, read_config
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.modeling.supernet import find_supernet
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SMALL = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.WEIGHTS", ""),
    *("MODEL.CRNAS.STEM_CHANNELS", 4),
    *("MODEL.CRNAS.WIDTHS", [4, 6, 8, 12]),
    *("MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
]
SIZE = (96, 128)  # height, width


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def kind(path: Path) -> str:
    """A Base-*.yaml is read by others; a search config says where its found network is based."""
    if path.name.startswith("Base"):
        return "base"
    return "search" if "FOUND_BASE:" in path.read_text() else "network"


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    chosen = [path for path in CONFIGS if kind(path) in kinds]
    return pytest.mark.parametrize("path", chosen, ids=name_of)


def shrunk(path: Path, *options: Any) -> CfgNode:
    cfg = read_config(str(path), [*SMALL, *options])
    check_network(cfg)
    return cfg


def pictures(cfg: CfgNode) -> list[dict[str, Any]]:
    """Two training samples as detectron2's mapper gives them: two objects on noise."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        boxes = torch.tensor([[8.0, 8.0, 40.0, 48.0], [30.0, 20.0, 120.0, 90.0]])
        masks = torch.zeros(2, *SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = True
        objects = Instances(SIZE)
        objects.gt_boxes = Boxes(boxes)
        objects.gt_classes = torch.tensor([0, 1])
        if cfg.MODEL.MASK_ON:
            objects.gt_masks = BitMasks(masks)
        image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
        samples.append({"image": image, "instances": objects, "height": SIZE[0], "width": SIZE[1]})
    return samples


def trains_and_detects(cfg: CfgNode, model: torch.nn.Module) -> None:
    """One training step moves weights of the backbone; then the detector answers."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: p.clone() for name, p in model.backbone.named_parameters()}
    with EventStorage(0):
        losses = model.train()(pictures(cfg))
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    optimizer.step()
    moved = [name for name, p in model.backbone.named_parameters() if not torch.equal(p, before[name])]
    assert any("res2" in name for name in moved) and any("res5" in name for name in moved)
    with torch.no_grad():
        outputs = model.eval()([{"image": sample["image"]} for sample in pictures(cfg)])
    assert [output["instances"].image_size for output in outputs] == [SIZE, SIZE]


def test_there_are_configs_of_each_kind() -> None:
    assert {kind(path) for path in CONFIGS} == {"base", "network", "search"}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_it_loads_and_names_a_backbone_of_ours_and_data(path: Path) -> None:
    cfg = read_config(str(path), [])
    assert "crnas" in cfg.MODEL.BACKBONE.NAME
    if kind(path) != "base":
        assert cfg.DATASETS.TRAIN or cfg.DATASETS.TRAIN_JSON
        assert [*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER] == sorted(
            {*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER}
        )


@of_kind("network")
def test_a_network_trains_a_step_and_detects(path: Path) -> None:
    cfg = shrunk(path)
    model = build_model(cfg)
    stages = [len(getattr(model.backbone.bottom_up, f"res{i}")) for i in range(2, 6)]
    assert stages == list(architecture_of(cfg).stage_code)
    trains_and_detects(cfg, model)


@of_kind("search")
def test_a_search_has_codes_for_its_budgets_and_a_base(path: Path) -> None:
    cfg = read_config(str(path), [])
    for budget in cfg.SEARCH.BUDGETS:
        assert stage_space_of(cfg).eligible(budget)
    named = [path.parent / cfg.SEARCH.FOUND_BASE, ROOT / cfg.SEARCH.FOUND_BASE]
    base = read_config(str(next(file for file in named if file.is_file())), [])
    assert base.MODEL.CRNAS.FAMILY == cfg.MODEL.CRNAS.FAMILY
    # The baseline that the found networks are compared with costs what they may cost.
    assert stage_space_of(cfg).cost(architecture_of(base)) in cfg.SEARCH.BUDGETS


@of_kind("search")
@pytest.mark.parametrize("supernet", ["stage", "dilation"])
def test_a_supernet_trains_a_step_and_detects(path: Path, supernet: str) -> None:
    cfg = shrunk(path, "MODEL.CRNAS.SUPERNET", supernet)
    model = build_model(cfg)
    found = find_supernet(model)
    assert found is not None
    with found.using_path(found.space.sample(seed=0, iteration=0)):
        trains_and_detects(cfg, model)


@of_kind("search")
def test_a_search_is_planned(path: Path, shared_data: Path, tmp_path: Path) -> None:
    """All of the checks of search_net.py pass, where the data set is at hand."""
    cfg = read_config(str(path), [])
    if cfg.DATASETS.TRAIN_JSON and not Path(cfg.DATASETS.TRAIN_JSON).is_file():
        pytest.skip("its data is generated by make demo")
    arguments = ["--config-file", str(path), "OUTPUT_DIR", str(tmp_path / "out")]
    plan = plan_search(default_argument_parser().parse_args(arguments))
    assert len(plan.parts[0]["images"]) > len(plan.parts[1]["images"]) > 0
    assert not (tmp_path / "out").exists()
