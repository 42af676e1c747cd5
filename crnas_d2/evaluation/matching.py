"""Objects and detections as arrays, matched by COCOeval's rule, all images and categories at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from crnas_d2.errors import InputError
from crnas_d2.evaluation.matches import METRICS, Matches
from detectron2.structures import Instances

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # detection, object, IoU


class GroundTruth:
    """G objects of I images and C categories; ids of annotations play no part.

    Args:
        content: a COCO JSON's content.
        task: "bbox" or "segm".
        max_detections: the best of an image and category, which alone count; COCOeval has 100.

    Attributes:
        image_ids, category_ids: (I,) and (C,), ascending; ``row_of`` and ``column_of`` find an id.
        group: (G,), row * C + column of the object; ascending, equal ones in the order of the JSON.
        shapes: boxes (G, 4), XYWH in pixels, or a list of G masks as pycocotools' RLE.
        crowd, ignored: (G,); ignored are crowds and objects outside the metric's range of areas.
        counts: (I, C), objects that are not ignored.

    Raises InputError: an object without a mask where masks are compared, or none that counts.
    """

    def __init__(
        self, content: dict[str, Any], task: str, metric: str, max_detections: int = 100
    ) -> None:
        self.task, self.metric, self.max_detections = task, metric, max_detections
        self.image_ids = sorted(image["id"] for image in content["images"])
        self.category_ids = sorted(category["id"] for category in content["categories"])
        self.row_of = {image: row for row, image in enumerate(self.image_ids)}
        self.column_of = {category: column for column, category in enumerate(self.category_ids)}
        annotations = content["annotations"]
        rows = np.array([self.row_of[a["image_id"]] for a in annotations], dtype=int)
        columns = np.array([self.column_of[a["category_id"]] for a in annotations], dtype=int)
        group = rows * len(self.category_ids) + columns
        order = np.argsort(group, kind="stable")
        self.group = group[order]
        shapes = _masks(content) if task == "segm" else [a["bbox"] for a in annotations]
        self.shapes: Any = [shapes[number] for number in order]
        if task == "bbox":
            self.shapes = np.array(self.shapes, dtype=float).reshape(-1, 4)
        self.crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)[order]
        self.thresholds, self.area_range = METRICS[metric]
        areas = np.array([a["area"] for a in annotations], dtype=float)[order]
        self.ignored = self.crowd | self.outside(areas)
        self.counts = np.zeros((len(self.image_ids), len(self.category_ids)), dtype=np.int32)
        np.add.at(self.counts, np.divmod(self.group[~self.ignored], len(self.category_ids)), 1)
        if self.ignored.all():
            raise InputError(
                f"SEARCH.EVAL.METRIC: {task} {metric}: {len(self.image_ids)} images have "
                "no object that counts for it"
            )

    def outside(self, areas: np.ndarray) -> np.ndarray:
        return (areas < self.area_range[0]) | (areas > self.area_range[1])


def _masks(content: dict[str, Any]) -> list[dict[str, Any]]:
    coco = COCO()
    coco.imgs = {image["id"]: image for image in content["images"]}
    masks = []
    for number, annotation in enumerate(content["annotations"]):
        try:
            masks.append(coco.annToRLE(annotation))
        except Exception as error:  # pycocotools raises whatever comes
            raise InputError(
                f"SEARCH.EVAL.TASK: 'segm': annotations[{number}]: its segmentation is "
                f"neither polygons nor RLE ({error!r})"
            ) from error
    return masks


class Detections(NamedTuple):
    row: np.ndarray  # (N,), the ground truth's, of the image
    column: np.ndarray  # (N,), and of the category
    score: np.ndarray  # (N,), float32
    shapes: np.ndarray  # boxes (N, 4), XYWH in pixels, float32; or masks (N,) as pycocotools' RLE

    @classmethod
    def of(cls, instances: Sequence[Instances], rows: Sequence[int], task: str) -> Detections:
        """Of images whose rows these are; the classes are taken for columns."""
        found = [of_image.to("cpu") for of_image in instances]
        if task == "segm":
            masks = [np.asfortranarray(i.pred_masks.permute(1, 2, 0).byte().numpy()) for i in found]
            shapes = np.array([rle for m in masks for rle in coco_mask.encode(m)], dtype=object)
        else:
            boxes = torch.cat([i.pred_boxes.tensor for i in found]).float().numpy()
            shapes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        return cls(
            np.repeat(rows, [len(i) for i in found]),
            torch.cat([i.pred_classes for i in found]).numpy(),
            torch.cat([i.scores for i in found]).float().numpy(),
            shapes,
        )


def match(truth: GroundTruth, detections: Detections, rows: Sequence[int]) -> Matches:
    """What was hit on the images of these rows, ascending; all but the ids as COCOeval.evaluateImg.

    Raises FloatingPointError: a score is NaN; ValueError: a class that the ground truth does not have.
    """
    columns = len(truth.category_ids)
    if np.isnan(detections.score).any():
        raise FloatingPointError("the score of a detection is NaN; with SEARCH.EVAL.AMP, try without")
    if (detections.column >= columns).any():
        raise ValueError(f"a detection of class {detections.column.max()}; there are {columns}")
    group = detections.row * columns + detections.column
    order = np.lexsort((-detections.score, group))  # by the last key first; stable
    group = group[order]
    turn = np.arange(len(order)) - np.searchsorted(group, group)  # in the group, best score first
    kept = turn < truth.max_detections
    order, group, turn = order[kept], group[kept], turn[kept]
    if truth.task == "bbox":
        shapes: Any = detections.shapes[order].astype(float)
        areas = shapes[:, 2] * shapes[:, 3]
    else:
        shapes = detections.shapes[order].tolist()
        areas = np.asarray(coco_mask.area(shapes) if shapes else [], dtype=float)
    hit, ignored = _matched(_near(shapes, group, truth), turn, truth)
    # Ignored are those on ignored objects, and those on none whose own area is outside the range.
    counted = hit | ~(ignored | truth.outside(areas))
    bits = 1 << np.arange(len(truth.thresholds))
    return Matches(
        task=truth.task,
        metric=truth.metric,
        image_ids=np.asarray(truth.image_ids)[rows],
        category_ids=np.asarray(truth.category_ids),
        objects=truth.counts[rows],
        image=np.searchsorted(rows, group // columns),  # type: ignore[arg-type]
        category=group % columns,
        score=detections.score[order],
        hit=bits @ hit,
        counted=bits @ counted,
    ).in_order()


def _near(shapes: Any, group: np.ndarray, truth: GroundTruth) -> Pairs:
    """Those of one image and category that overlap enough for the lowest threshold."""
    groups, starts, counts = np.unique(group, return_index=True, return_counts=True)
    firsts = np.searchsorted(truth.group, groups, side="left")
    lasts = np.searchsorted(truth.group, groups, side="right")
    crowd = truth.crowd.astype(np.uint8)
    pairs = [np.zeros((3, 0))]
    spans = np.stack([starts, starts + counts, firsts, lasts], axis=1)[firsts < lasts]
    for start, end, first, last in spans.tolist():
        iou = coco_mask.iou(shapes[start:end], truth.shapes[first:last], crowd[first:last])
        detection, obj = np.nonzero(iou >= truth.thresholds[0])
        if len(obj):
            pairs.append(np.array([detection + start, obj + first, iou[detection, obj]]))
    detection, obj, iou = np.concatenate(pairs, axis=1)
    return detection.astype(int), obj.astype(int), iou


def _matched(pairs: Pairs, turn: np.ndarray, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Which detections get an object that counts, and which an ignored one: (T, N) each.

    In each image and category the detections choose in turn, so all with the same turn choose at once.
    Pairs are sorted by preference (an object that counts, the best IoU, the last in the JSON), so that
    a detection's match is the first of its pairs whose object is free.
    """
    detection, obj, iou = pairs
    order = np.lexsort((-obj, -iou, truth.ignored[obj], detection, turn[detection]))
    detection, obj, iou = detection[order], obj[order], iou[order]
    reaches = iou >= truth.thresholds[:, None]
    hit, ignored = np.zeros((2, len(truth.thresholds), len(turn)), dtype=bool)
    taken = np.zeros((len(truth.thresholds), len(truth.group)), dtype=bool)
    turn_starts: Any = np.searchsorted(turn[detection], np.arange(turn.max(initial=-1) + 2))
    for start, end in zip(turn_starts, turn_starts[1:]):
        objects, detections, none = obj[start:end], detection[start:end], end - start
        free = reaches[:, start:end] & ~taken[:, objects]
        pair = np.where(free, np.arange(end - start), none)
        firsts = np.flatnonzero(np.diff(detections, prepend=-1))  # each detection's first pair
        first_free = np.minimum.reduceat(pair, firsts, axis=1)  # (T, detections of this turn)
        threshold, column = np.nonzero(first_free < none)
        chosen, matched = objects[first_free[threshold, column]], detections[firsts[column]]
        taken[threshold, chosen] = ~truth.crowd[chosen]  # crowds match again and again
        hit[threshold, matched] = ~truth.ignored[chosen]
        ignored[threshold, matched] = truth.ignored[chosen]
    return hit, ignored
