"""What the benchmarks share: data to train and to score on, a clock, and how a result is shown."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.data.datasets import register_coco, use_own_data
from crnas_d2.data.shapes import make_shapes
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.pipeline.scorer import Split
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

logging.getLogger("detectron2").setLevel(logging.INFO)  # else trainers print the whole model


def parser_of(doc: str, config_file: str = "configs/BCCD/search.yaml") -> argparse.ArgumentParser:
    """Where the result goes and, unless ``config_file`` is empty, a config with KEY VALUE pairs."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", help="write the result there")
    if config_file:
        parser.add_argument("--config-file", default=config_file)
        parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ...")
    return parser


def config_of(
    args: argparse.Namespace, before: Sequence[str], after: Sequence[str] = (), test: bool = True
) -> CfgNode:
    """Of a stage supernet, with the KEY VALUE pairs between others; its data sets are registered."""
    cfg = read_config(args.config_file, [*before, *args.opts, *after])
    use_own_data(cfg, test=test)
    cfg.MODEL.CRNAS.SUPERNET = "stage"
    if cfg.NUM_THREADS:
        torch.set_num_threads(cfg.NUM_THREADS)
    return cfg


def coco_content(side: int, images: int, classes: int, rows: Iterable[Any]) -> dict[str, Any]:
    """A COCO JSON of square images; each row is (image id, category id, box, iscrowd)."""
    keys = ("image_id", "category_id", "bbox", "iscrowd")
    named = [
        {"id": i, **dict(zip(keys, row)), "area": row[2][2] * row[2][3]}
        for i, row in enumerate(rows, 1)
    ]
    sides = {"height": side, "width": side}
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", **sides} for i in range(images)],
        "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(classes)],
        "annotations": named,
    }


def generated_data(folder: str, size: tuple[int, int]) -> list[str]:
    """Sixteen pictures of height and width ``size``; the KEY VALUE pairs that train on them there."""
    make_shapes(Path(folder) / "data", 16, 2, size=size)
    return [
        *("DATASETS.TRAIN_JSON", f"{folder}/data/train.json"),
        *("DATASETS.TRAIN_IMAGES", f"{folder}/data/images"),
        *("OUTPUT_DIR", folder),
    ]


def split_of(cfg: CfgNode, images: int) -> Split:
    """The training set for recalibration; its first images, registered in OUTPUT_DIR, as archval."""
    name, path = cfg.DATASETS.TRAIN[0], Path(cfg.OUTPUT_DIR, "archval.json")
    content = read_coco_json(MetadataCatalog.get(name).json_file, "DATASETS.TRAIN")
    kept = content["images"][:images]
    ids = {image["id"] for image in kept}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    content = {**content, "images": kept, "annotations": annotations}
    path.write_text(json.dumps(content), encoding="utf-8")
    register_coco(str(path), str(path), MetadataCatalog.get(name).image_root)
    return Split(name, str(path), content)


def scores_of(scorer: ArchvalScorer, group: Sequence[Architecture]) -> list[float]:
    """Of a group on all of archval, detected here and now."""
    scorer._statistics.clear()
    scorer.detect(group, 0)
    return [scores[0] for scores in scorer.scores(group, 0)]


def timed(
    run: Callable[..., Any], *args: Any, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Any]:
    """Seconds by a clock, wall time by default, and what the call returns."""
    start = clock()
    found = run(*args)
    return clock() - start, found


def show(file: str | None, baseline: float, ours: float, setting: Any, **more: Any) -> None:
    """Print a result, a line a value, and write it to ``file``, if there is one, as JSON.

    ``ratio`` is ours over the baseline, unless another one is given.
    """
    result = {"ratio": ours / baseline, "baseline": baseline, "ours": ours, **more, "setting": setting}
    for key, value in result.items():
        print(f"{key}: {round(value, 5) if isinstance(value, float) else value}")
    if file:
        Path(file).write_text(json.dumps(result), encoding="utf-8")
