"""What the benchmarks share: data to train and to score on, a clock, and how a result is shown."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.data.datasets import register_coco, use_own_data
from crnas_d2.data.shapes import make_shapes
from crnas_d2.evaluation.scorer import ArchvalScorer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog


def parser_of(doc: str, config_file: str = "configs/BCCD/search.yaml") -> argparse.ArgumentParser:
    """The options that all have: a config with KEY VALUE pairs, and where the result goes."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--config-file", default=config_file)
    parser.add_argument("--json", help="write the result there")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ...")
    return parser


def config_of(
    args: argparse.Namespace, before: Sequence[str], after: Sequence[str] = (), test: bool = True
) -> CfgNode:
    """Of a stage supernet, with the KEY VALUE pairs between others; its data sets are registered."""
    cfg = read_config(args.config_file, [*before, *args.opts, *after])
    use_own_data(cfg, test=test)
    cfg.MODEL.CRNAS.SUPERNET = "stage"
    return cfg


def generated_data(folder: str, size: tuple[int, int]) -> list[str]:
    """Sixteen pictures of height and width ``size``; the KEY VALUE pairs that train on them there."""
    make_shapes(Path(folder) / "data", 16, 2, size=size)
    return [
        *("DATASETS.TRAIN_JSON", f"{folder}/data/train.json"),
        *("DATASETS.TRAIN_IMAGES", f"{folder}/data/images"),
        *("OUTPUT_DIR", folder),
    ]


def first_images(name: str, images: int, folder: Path) -> tuple[str, dict[str, Any]]:
    """The first images of a data set, registered: their name, and the content of their JSON."""
    content = read_coco_json(MetadataCatalog.get(name).json_file, "DATASETS.TRAIN")
    kept = content["images"][:images]
    ids = {image["id"] for image in kept}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    content = {**content, "images": kept, "annotations": annotations}
    path = folder / "archval.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    register_coco(str(path), str(path), MetadataCatalog.get(name).image_root)
    return str(path), content


def scores_of(scorer: ArchvalScorer, group: Sequence[Architecture]) -> list[float]:
    """Of a group on all of archval, detected here and now."""
    scorer._statistics.clear()
    scorer.detect(group, 0)
    return [scores[0] for scores in scorer.scores(group, 0)]


def timed(run: Any, *args: Any) -> tuple[float, Any]:
    """Wall seconds, and what the call returns."""
    start = time.perf_counter()
    found = run(*args)
    return time.perf_counter() - start, found


def show(result: dict[str, Any], path: str | None) -> None:
    """Print a result, a line a value, and write it to ``path``, if there is one, as JSON."""
    for key, value in result.items():
        print(f"{key}: {round(value, 5) if isinstance(value, float) else value}")
    if path:
        Path(path).write_text(json.dumps(result), encoding="utf-8")
