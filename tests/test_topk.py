"""Top-1 and top-5 of classifiers, alone and over two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import tiny_config
from image_folders import make_image_folder, tiny_classifier

from crnas_d2.data import loader
from crnas_d2.engine.trainer import DetectionTrainer
from crnas_d2.evaluation import topk as classification
from crnas_d2.evaluation.coco import MATCHES, DetectionEvaluator
from crnas_d2.evaluation.topk import TopKEvaluator
from detectron2.evaluation import PascalVOCDetectionEvaluator, inference_on_dataset
from detectron2.modeling import build_model


def scored(
    count: int, classes: int, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator).tolist()
    return [{"label": label} for label in labels], [{"scores": s} for s in scores]


def counted(records: list[dict[str, Any]], outputs: list[dict[str, torch.Tensor]], k: int) -> float:
    """Per cent of those where fewer than k classes have a higher score than the label."""
    higher = [sum(o["scores"] > o["scores"][r["label"]]) for r, o in zip(records, outputs)]
    return 100 * sum(int(count) < k for count in higher) / len(records)


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 40])
def test_top_k_is_what_a_loop_counts(classes: int) -> None:
    records, outputs = scored(200, classes)
    evaluator = TopKEvaluator()
    for _ in range(2):  # what was counted before is forgotten
        evaluator.reset()
        for start in range(0, 200, 7):
            evaluator.process(records[start : start + 7], outputs[start : start + 7])
        found = evaluator.evaluate()
    assert found == {"classification": {f"top{k}": counted(records, outputs, k) for k in (1, 5)}}
    assert (found["classification"]["top5"] == 100) == (classes <= 5)


def test_top_k_of_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of 7 and 6 images: the per cent of all of them, on rank 0 alone."""
    make_image_folder(tmp_path / "data" / "train", 4)
    make_image_folder(tmp_path / "data" / "val", 4, seed=1)
    (tmp_path / "data" / "val" / "n03" / "n03_3.JPEG").unlink()
    extra = make_image_folder(tmp_path / "extra", 2, seed=5, names=["n01"])
    for path in (extra / "n01").iterdir():
        path.rename(tmp_path / "data" / "val" / "n01" / f"more_{path.name}")
    cfg = tiny_classifier(tmp_path / "data", tmp_path / "out")

    def model(batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        """Nine scores that depend on the image alone."""
        seeds = [int(x["image"].sum()) for x in batch]
        return [{"scores": torch.rand(9, generator=torch.Generator().manual_seed(s))} for s in seeds]

    def share(rank: int, world: int, gathered: list[Any]) -> Any:
        monkeypatch.setattr(loader.comm, "get_world_size", lambda: world)
        monkeypatch.setattr(loader.comm, "get_rank", lambda: rank)

        def gather(mine: Any, dst: int) -> list[Any]:
            assert dst == 0
            gathered.append(mine)
            return gathered if rank == 0 else []

        monkeypatch.setattr(classification.comm, "gather", gather)
        (name,) = cfg.DATASETS.TEST
        data = DetectionTrainer.build_test_loader(cfg, name)
        return inference_on_dataset(model, data, DetectionTrainer.build_evaluator(cfg, name))

    alone = share(0, 1, [])
    assert 0 < alone["classification"]["top1"] < alone["classification"]["top5"] < 100
    gathered: list[Any] = []
    assert share(1, 2, gathered) == {}
    assert share(0, 2, gathered) == alone
    assert list(map(len, gathered)) == [6, 7]


@pytest.mark.parametrize(
    ("name", "evaluator"),
    [
        ("imagenet_val", TopKEvaluator),
        ("voc_2007_test", PascalVOCDetectionEvaluator),
        ("bccd_val", DetectionEvaluator),
    ],
)
@pytest.mark.usefixtures("shared_data")
def test_the_evaluator_goes_by_the_data_set(name: str, evaluator: type, tmp_path: Path) -> None:
    """None of them reads images; COCO's reads the JSON."""
    cfg = tiny_classifier(tmp_path / "data", tmp_path / "out")
    assert type(DetectionTrainer.build_evaluator(cfg, name)) is evaluator


def test_several_test_sets(tmp_path: Path) -> None:
    cfg = tiny_classifier(tmp_path / "data", tmp_path / "out")
    cfg.DATASETS.TEST = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    results = DetectionTrainer.test(cfg, build_model(cfg))
    assert list(results) == list(cfg.DATASETS.TEST)
    assert all(list(r["classification"]) == ["top1", "top5"] for r in results.values())


@pytest.mark.parametrize(("metric", "known"), [("AP", True), ("APl", False)])
def test_matches_are_written_where_the_metric_counts_an_object(
    metric: str, known: bool, tmp_path: Path
) -> None:
    """Nothing is large on pictures of 96 pixels; what is reported stays as it is."""
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", "SEARCH.EVAL.METRIC", metric)
    stale = tmp_path / "out" / "inference" / MATCHES
    stale.parent.mkdir()
    stale.touch()
    results = DetectionTrainer.test(cfg, build_model(cfg))
    assert {"AP", "APl"} <= set(results["bbox"])
    assert (stale.is_file() and stale.stat().st_size > 0) == known
