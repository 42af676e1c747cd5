"""Every file under configs/: it loads, what it describes builds, trains a step and answers.

A new config is tested by existing. Networks that train are shrunk, all by the same overrides; pictures
are made here, so that no data set is needed. What the paper's configs say: test_paper_configs.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import ROOT

from crnas_d2.config import read_config
from crnas_d2.engine.schedule import check_schedule
from crnas_d2.engine.setup import check_network
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import architecture_of, family_of, stage_space_of
from crnas_d2.pipeline.configs import base_paths, differing_keys
from crnas_d2.pipeline.plan import plan_search
from crnas_d2.space import block_costs
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("MODEL.CRNAS.WIDTH_MULTIPLIER", 0.25),
    *("MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.NAS_FPN.NUM_CELLS", 2),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 20),
]
SIZE = (96, 128)  # height, width


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def kinds(path: Path) -> set[str]:
    """A Base*.yaml is read by others; a search may have a network of its own, not another's."""
    if path.name.startswith("Base"):
        return {"base"}
    text = path.read_text()
    is_search, is_own = "BUDGETS:" in text, "FOUND_BASE:" not in text
    return {*(["search"] if is_search else []), *(["network"] if is_own else [])}


def of_kind(kind: str) -> pytest.MarkDecorator:
    chosen = [path for path in CONFIGS if kind in kinds(path)]
    return pytest.mark.parametrize("path", chosen, ids=name_of)


def pictures(cfg: CfgNode) -> list[dict[str, Any]]:
    """Two training samples as the mappers give them: noise with two objects, or with a class."""
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
        sample = {"image": image, "instances": objects, "height": SIZE[0], "width": SIZE[1]}
        samples.append({**sample, "label": 3})
    return samples


def trains_and_answers(cfg: CfgNode, model: torch.nn.Module) -> None:
    """One training step moves weights of the backbone; then the network answers for each picture."""
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
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        assert [tuple(output["scores"].shape) for output in outputs] == 2 * [(1000,)]
    else:
        assert [output["instances"].image_size for output in outputs] == [SIZE, SIZE]
        assert all(output["instances"].has("pred_masks") == cfg.MODEL.MASK_ON for output in outputs)


def test_there_are_configs_of_each_kind() -> None:
    assert set.union(*map(kinds, CONFIGS)) == {"base", "network", "search"}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_it_loads_and_names_a_backbone_of_ours_and_data(path: Path) -> None:
    """At its full size, which check_network builds without values."""
    cfg = read_config(str(path), [])
    assert "crnas" in cfg.MODEL.BACKBONE.NAME
    if "base" not in kinds(path):
        check_network(cfg)
        check_schedule(cfg)
        named = cfg.DATASETS.TRAIN or cfg.DATASETS.TRAIN_JSON
        assert named or path.parent.name == "OwnData"
        assert [*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER] == sorted(
            {*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER}
        )


@of_kind("network")
def test_a_network_trains_a_step_and_answers(path: Path) -> None:
    cfg = read_config(str(path), SMALL)
    model = build_model(cfg)
    body = getattr(model.backbone, "bottom_up", model.backbone)
    code = architecture_of(cfg).stage_code
    for name, chains in family_of(cfg).stages.items():
        assert len(getattr(body, name)) == sum(code[chain.position] for chain in chains)
    trains_and_answers(cfg, model)


@of_kind("search")
def test_a_search_has_codes_for_its_budgets_and_a_base(path: Path) -> None:
    cfg = read_config(str(path), [])
    for budget, base in base_paths(cfg, str(path)).items():
        assert stage_space_of(cfg).eligible(budget)
        network = read_config(base)
        assert network.MODEL.CRNAS.FAMILY == cfg.MODEL.CRNAS.FAMILY
        # The baseline that a found network is compared with costs what that may cost.
        assert budget.meets(block_costs(architecture_of(network)))
        assert differing_keys(cfg, network) == []


@of_kind("search")
@pytest.mark.parametrize("supernet", ["stage", "dilation"])
def test_the_supernets_of_a_search_train_a_step_and_answer(path: Path, supernet: str) -> None:
    """Of each entry's depths only the first two."""
    cfg = read_config(str(path), [*SMALL, "MODEL.CRNAS.SUPERNET", supernet])
    cfg.MODEL.CRNAS.STAGE_SPACE = [list(depths[:2]) for depths in stage_space_of(cfg).depths]
    model = build_model(cfg)
    found = find_supernet(model)
    assert found is not None
    with found.using_path(found.space.sample(seed=0, iteration=0)):
        trains_and_answers(cfg, model)


@of_kind("search")
def test_a_search_is_planned(path: Path, shared_data: Path, tmp_path: Path) -> None:
    """All of the checks of search_net.py pass, where the data set is at hand."""
    cfg, own = read_config(str(path), []), []
    if not (cfg.DATASETS.TRAIN or cfg.DATASETS.TRAIN_JSON):
        folder = shared_data / "fruits_nuts"
        for side, name in (("TRAIN", "train"), ("TEST", "val")):
            own += [f"DATASETS.{side}_JSON", str(folder / f"{name}.json")]
            own += [f"DATASETS.{side}_IMAGES", str(folder / "images")]
    else:
        data = cfg.DATASETS.TRAIN_JSON or MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).json_file
        if not Path(data).is_file():
            pytest.skip(f"no {data}; make demo generates that of Shapes")
    arguments = ["--config-file", str(path), "OUTPUT_DIR", str(tmp_path / "out"), *own]
    plan = plan_search(default_argument_parser().parse_args(arguments))
    assert len(plan.parts["archtrain"]["images"]) > len(plan.parts["archval"]["images"]) > 0
    assert not (tmp_path / "out").exists()
