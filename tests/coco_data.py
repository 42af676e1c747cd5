"""Annotations and detections with all that is special, and pycocotools on them, the reference."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crnas_d2.evaluation.matches import METRICS, Matches
from crnas_d2.evaluation.matching import Detections, GroundTruth, match

HEIGHT, WIDTH = 260, 300
IMAGES = 20
TASKS = ("bbox", "segm")
Content, Found = dict[str, Any], list[dict[str, Any]]


def outline(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An irregular polygon (P, 2) that nearly fills a box (XYWH)."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x, y = np.cos(angle), np.sin(angle)
    radius = rng.uniform(0.45, 0.5, 12) / np.maximum(abs(x), abs(y))
    return box[:2] + box[2:] * (0.5 + radius[:, None] * np.stack([x, y], axis=1))


def rle_of(polygon: np.ndarray, as_text: bool = True) -> dict[str, Any]:
    rle = coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist()], HEIGHT, WIDTH))
    return {**rle, "counts": rle["counts"].decode()} if as_text else rle


def random_data(seed: int, task: str, ties: bool = True) -> tuple[Content, Found]:
    """A COCO JSON's content, and COCO results with scores and boxes in float32.

    Crowds, objects of all sizes, two objects in one place (and of them crowds), images without objects
    and without detections, a category without objects, more than 100 detections of one category in an
    image, and (``ties``) equal scores.
    """
    rng = np.random.default_rng(seed)
    content: Content = {
        "info": {"year": "2026"},
        "images": [
            {"id": 7 * i + 3, "file_name": i, "height": HEIGHT, "width": WIDTH}
            for i in rng.permutation(IMAGES).tolist()
        ],
        "categories": [{"id": i, "name": i} for i in (9, 2, 4, 5)],
        "annotations": [],
    }
    detections: Found = []

    def detect(image: int, category: int, polygon: np.ndarray) -> None:
        score = rng.random()
        score = float(np.float32(round(score, 1) if ties else score))
        detection = {"image_id": image, "category_id": category, "score": score}
        if task == "bbox":
            box = np.concatenate([polygon.min(0), np.ptp(polygon, axis=0)])
            detection["bbox"] = box.astype(np.float32).tolist()
        else:
            detection["segmentation"] = rle_of(polygon)
        detections.append(detection)

    def annotate(image: int, category: int, box: np.ndarray, polygon: np.ndarray) -> None:
        annotation = {"id": len(content["annotations"]) + 1, "image_id": image}
        annotation |= {"category_id": category, "bbox": box.tolist()}
        annotation |= {"area": float(coco_mask.area(rle_of(polygon, as_text=False)))}
        crowd = bool(rng.random() < 0.15)
        shape = rle_of(polygon) if crowd else [polygon.ravel().tolist()]
        content["annotations"].append({**annotation, "iscrowd": int(crowd), "segmentation": shape})

    for number, image in enumerate(record["id"] for record in content["images"]):
        for _ in range(0 if number % 5 == 0 else rng.integers(2, 8)):
            low, high = [(10, 28), (40, 85), (115, 200)][rng.integers(3)]
            size = rng.uniform(low, high, 2)
            box = np.concatenate([rng.uniform(0, 1, 2) * ([WIDTH, HEIGHT] - size), size])
            polygon, category = outline(box, rng), int(rng.choice([9, 2, 4]))
            for _ in range(1 + (rng.random() < 0.2)):
                annotate(image, category, box, polygon)
            for _ in range(0 if number % 4 == 1 else rng.integers(0, 5)):
                moved = polygon + rng.normal(0, rng.choice([0.0, 0.02, 0.1]), 2) * size
                detect(image, category, moved)
    places = [record["id"] for record in content["images"][:3]] + [content["images"][2]["id"]] * 110
    for image in places:
        detect(image, 5 if image == places[0] else 2, outline(np.array([5.0, 5, 50, 40]), rng))
    return content, detections


def as_arrays(truth: GroundTruth, found: Found) -> Detections:
    shapes: Any = [d["bbox"] if truth.task == "bbox" else d["segmentation"] for d in found]
    kind, form = (np.float32, (-1, 4)) if truth.task == "bbox" else (object, -1)
    shapes = np.array(shapes, dtype=kind).reshape(form)
    return Detections(
        np.array([truth.row_of[d["image_id"]] for d in found], dtype=int),
        np.array([truth.column_of[d["category_id"]] for d in found], dtype=int),
        np.array([d["score"] for d in found], dtype=np.float32),
        shapes,
    )


def matched(
    content: Content,
    found: Found,
    task: str,
    metric: str = "AP",
    images: Sequence[Any] | None = None,
    max_detections: int = 100,
) -> Matches:
    """Matches on some of the images; by default on all."""
    truth = GroundTruth(content, task, metric, max_detections)
    some = truth.image_ids if images is None else images
    rows = sorted(truth.row_of[image] for image in some)
    return match(truth, as_arrays(truth, [d for d in found if d["image_id"] in some]), rows)


def reference(content: Content, found: Sequence[Any], task: str, max_detections: int = 100) -> COCOeval:
    """pycocotools' evaluation, with annotation ids from 1; on copies, and with nothing printed."""
    truth, content = COCO(), copy.deepcopy(content)
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        # It cannot load an empty list.
        nothing = COCO()
        nothing.dataset = {**content, "annotations": []}
        nothing.createIndex()
        results = truth.loadRes(copy.deepcopy(list(found))) if found else nothing
        evaluation = COCOeval(truth, results, task)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections == 100:
            evaluation.summarize()
    return evaluation


def reference_score(content: Content, found: Sequence[Any], task: str, metric: str) -> float:
    """pycocotools' number, 0..100."""
    return 100 * float(reference(content, found, task).stats[list(METRICS).index(metric)])
