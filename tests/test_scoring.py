"""Scores against the plain way: exact statistics by a loop, then detectron2's own evaluation."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import tiny_config
from networks import randomise
from torch import nn
from torch.testing import assert_close

from crnas_d2.data.datasets import read_coco_json
from crnas_d2.engine.scoring import Split, build_scorer, recalibration_images
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.errors import InputError
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.coco import METRICS, TASKS, CocoMetric
from crnas_d2.evaluation.recalibration import recalibrated
from crnas_d2.modeling.supernet import find_supernet
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances


def trained(tmp_path: Path, kind: str, *overrides: Any) -> tuple[CfgNode, Split, nn.Module]:
    """A supernet trained so far that its detections score above 0; archval is the test set."""
    options = ["MODEL.CRNAS.SUPERNET", kind, "SOLVER.MAX_ITER", 60, "SOLVER.IMS_PER_BATCH", 4]
    options += ["SOLVER.BASE_LR", 0.02, "SOLVER.CHECKPOINT_PERIOD", 1000]
    cfg = tiny_config(tmp_path / "data", tmp_path / kind, *options, *overrides)
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    content = read_coco_json(cfg.DATASETS.TEST_JSON, "DATASETS.TEST_JSON")
    trainer = SupernetTrainer(cfg)
    trainer.train()
    return cfg, Split(train, test, content), trainer.model


def norms_of(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_recalibration_is_the_plain_loops(kind: str, tmp_path: Path) -> None:
    """Against population statistics collected by hooks in float64; state is back afterwards."""
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", "MODEL.CRNAS.SUPERNET", kind)
    detector = SupernetTrainer(cfg).model.eval()
    randomise(detector.backbone.bottom_up, seed=6)
    supernet = find_supernet(detector)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    batches = FixedBatches(dicts, DatasetMapper(cfg, is_train=False), batch_size=5)
    path = supernet.space.sample(0, 0)

    inputs: dict[str, list[torch.Tensor]] = {}
    norms = norms_of(detector.backbone)
    handles = [
        norm.register_forward_pre_hook(
            lambda _, x, name=name: inputs.setdefault(name, []).append(x[0].double())
        )
        for name, norm in norms.items()
    ]
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    with torch.no_grad(), supernet.using_path(path):
        for norm in norms.values():
            norm.train()
        for _, batch in batches.mine():
            detector.backbone(detector.preprocess_image(batch).tensor)
    for handle in handles:
        handle.remove()
    detector.eval()
    detector.load_state_dict(before)

    with recalibrated(detector, supernet, batches, lambda _: path):
        assert 0 < len(inputs) < len(norms)  # on the path, and not all
        for name, norm in norms.items():
            if name in inputs:
                x = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs[name]], dim=1)
                assert_close(norm.running_mean.double(), x.mean(1), rtol=1e-5, atol=1e-5)
                assert_close(norm.running_var.double(), x.var(1), rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(norm.running_mean, before[f"backbone.{name}.running_mean"])
    after = detector.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any("forward" in vars(norm) for norm in norms.values())


def plain_score(cfg: CfgNode, split: Split, detector: nn.Module) -> float:
    """detectron2's own loop: one image at a time, COCOEvaluator."""
    with contextlib.redirect_stdout(io.StringIO()):
        results = inference_on_dataset(
            detector,
            build_detection_test_loader(cfg, split.archval),
            COCOEvaluator(split.archval, distributed=False, output_dir=cfg.OUTPUT_DIR),
        )
    return results["bbox"]["AP"]


def test_a_score_is_the_plain_loops(tmp_path: Path) -> None:
    """Without recalibration, whole codes: set the path, then detectron2's own evaluation."""
    cfg, split, detector = trained(tmp_path, "stage", "SEARCH.RECALIBRATION_IMAGES", 0)
    score = build_scorer(cfg, split, detector)
    supernet = find_supernet(detector)
    paths = [supernet.space.sample(0, i) for i in range(3)]
    scores = score(paths)
    for path, found in zip(paths, scores):
        with supernet.using_path(path):
            assert found == pytest.approx(plain_score(cfg, split, detector), abs=1e-3)
    assert max(scores) > 0.05
    assert score(paths) == scores


def test_recalibration_changes_the_score_and_nothing_else(tmp_path: Path) -> None:
    cfg, split, detector = trained(tmp_path, "stage")
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    path = find_supernet(detector).space.sample(0, 0)
    with_it = build_scorer(cfg, split, detector)([path])
    cfg.SEARCH.RECALIBRATION_IMAGES = 0
    assert build_scorer(cfg, split, detector)([path]) != with_it
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())


def test_partial_codes_meet_the_same_draws(tmp_path: Path) -> None:
    """The same partial code scores the same; a later step of the search draws anew."""
    cfg, split, detector = trained(tmp_path, "dilation")
    score = build_scorer(cfg, split, detector)
    space = find_supernet(detector).space
    first = score([space.root])
    assert score([space.root]) == first
    drawn = []

    def noting(name: str) -> Any:
        original = getattr(type(space), name)

        def complete(self: Any, partial: Any, seed: int, batch: int) -> Any:
            drawn.append((name, len(partial.dilation_code), batch))
            return original(self, partial, seed, batch)

        return complete

    with pytest.MonkeyPatch.context() as patch:
        for name in ("complete", "complete_evenly"):
            patch.setattr(type(space), name, noting(name))
        score([space.root.extended([2])])
    assert drawn == [(n, 1, batch) for n in ("complete_evenly", "complete") for batch in range(2)]


def test_segmentation_goes_by_the_masks_area() -> None:
    """Thin masks in large boxes: small by their masks, medium by their boxes."""
    size = {"height": 64, "width": 64}
    thin = [[4, 4, 60, 4, 60, 6, 4, 6, 4, 60, 4, 4]]
    content = {
        "images": [{"id": 1, "file_name": "x.jpg", **size}],
        "categories": [{"id": 1, "name": "thin"}],
        "annotations": [
            {
                **{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 112.0},
                **{"bbox": [4, 4, 56, 56], "segmentation": thin},
            }
        ],
    }
    metric = CocoMetric(content, "segm", "APs")
    scorer = object.__new__(ArchvalScorer)
    scorer._metric, scorer._category_ids = metric, [1]
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 4:6, 4:60] = True
    far = torch.zeros(1, 64, 64, dtype=torch.bool)
    far[0, 30:32, 8:60] = True
    instances = Instances((64, 64))
    instances.pred_boxes = Boxes(torch.tensor([[8.0, 30.0, 60.0, 62.0], [4.0, 4.0, 60.0, 60.0]]))
    instances.pred_classes = torch.tensor([0, 0])
    instances.scores = torch.tensor([0.9, 0.8])
    instances.pred_masks = torch.cat([far, mask])
    found = scorer._as_coco([{"image_id": 1}], [{"instances": instances}])
    assert all("bbox" not in result for result in found)
    assert 0 < metric(found) < 100  # the false one counts: it is small, whatever its box


def test_recalibration_images_do_not_depend_on_order() -> None:
    dicts = [{"image_id": i} for i in range(20)]
    chosen = recalibration_images(dicts, 5, seed=1)
    assert recalibration_images(dicts[::-1], 5, seed=1) == chosen
    assert recalibration_images(dicts, 5, seed=2) != chosen
    assert len(recalibration_images(dicts, 50, seed=1)) == 20


def test_images_are_mapped_once(tmp_path: Path) -> None:
    dicts = [{"image_id": i, "height": 10 + i % 3, "width": 10} for i in range(7)]
    mapped = []

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        mapped.append(record["image_id"])
        return record

    batches = FixedBatches(dicts, mapper, batch_size=3)
    assert [[r["image_id"] for r in batch] for _, batch in batches.mine()] == [
        [0, 3, 6],
        [1, 4, 2],
        [5],
    ]
    list(batches.mine())
    assert sorted(mapped) == list(range(7))


@pytest.mark.parametrize("metric", METRICS)
def test_the_metric_of_the_truth_is_100(metric: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "data", tmp_path / "out")
    content = read_coco_json(cfg.DATASETS.TRAIN_JSON, "")
    if metric == "APl":  # nothing is 96 pixels large in a picture of 96 pixels
        with pytest.raises(InputError, match=r"SEARCH\.METRIC: bbox APl: archval of 12 images"):
            CocoMetric(content, "bbox", metric)
        return
    measure = CocoMetric(content, "bbox", metric)
    perfect = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in content["annotations"]
    ]
    assert measure(perfect) == pytest.approx(100)
    assert measure([]) == 0.0
    assert measure(perfect[:1]) < 100


@pytest.mark.parametrize("task", TASKS)
def test_the_metric_leaves_the_json_as_it_is(task: str, tmp_path: Path) -> None:
    """pycocotools writes into annotations; archval.json is written after the metric was checked."""
    cfg = tiny_config(tmp_path / "data", tmp_path / "out")
    content = read_coco_json(cfg.DATASETS.TRAIN_JSON, "")
    before = json.dumps(content)
    CocoMetric(content, task, "AP")
    assert json.dumps(content) == before


def test_unknown_task_and_metric() -> None:
    with pytest.raises(InputError, match=r"SEARCH\.TASK: 'mask': allowed are bbox, segm"):
        CocoMetric({}, "mask", "AP")
    with pytest.raises(InputError, match=r"SEARCH\.METRIC: 'mAP': allowed are AP, AP50"):
        CocoMetric({}, "bbox", "mAP")
