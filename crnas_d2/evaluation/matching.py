"""Detections matched to objects by COCOeval's rule, on arrays: all images and categories at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from crnas_d2.evaluation.ground_truth import GroundTruth, thresholds_of
from crnas_d2.evaluation.matches import Matches
from detectron2.structures import Instances


@dataclass(frozen=True, eq=False)
class Detections:
    """N detections."""

    row: np.ndarray  # (N,), the ground truth's number of the image
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

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """One after another; at least one part."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def match(truth: GroundTruth, detections: Detections, rows: Sequence[int]) -> Matches:
    """What was hit on the images of these rows, ascending; all but the ids as COCOeval.evaluateImg.

    Raises:
        FloatingPointError: a score is NaN.
        ValueError: a class that the ground truth does not have.
    """
    columns = len(truth.category_ids)
    if np.isnan(detections.score).any():
        raise FloatingPointError("the score of a detection is NaN")
    if (detections.column >= columns).any():
        raise ValueError(f"a detection of class {detections.column.max()}; archval has {columns}")
    group = detections.row * columns + detections.column
    order = np.lexsort((-detections.score, group))  # by the last key first; stable
    group = group[order]
    rank = np.arange(len(order)) - np.searchsorted(group, group)  # in the group, best score first
    kept = rank < truth.max_detections
    order, group, rank = order[kept], group[kept], rank[kept]
    detection, obj = _pairs(group, truth.group)
    if truth.task == "bbox":
        boxes = detections.shapes[order].astype(float)
        areas = boxes[:, 2] * boxes[:, 3]
        iou = box_ious(boxes[detection], truth.shapes[obj], truth.crowd[obj])
    else:
        masks = detections.shapes[order].tolist()
        areas = np.asarray(coco_mask.area(masks) if masks else [], dtype=float)
        iou = _mask_ious(masks, detection, obj, truth)
    least = np.minimum(thresholds_of(truth.metric), 1 - 1e-10)
    near = iou >= least[0]
    hit, ignored = _matched(detection[near], obj[near], iou[near], rank, truth, least)
    # Ignored are those on ignored objects, and those on none whose own area is outside the range.
    counted = hit | ~(ignored | truth.outside(areas))
    bits = 1 << np.arange(len(least))
    image: Any = np.searchsorted(np.asarray(rows), group // columns)
    return Matches(
        task=truth.task,
        metric=truth.metric,
        image_ids=np.asarray(truth.image_ids)[rows],
        category_ids=np.asarray(truth.category_ids),
        objects=truth.counts()[rows].astype(np.int32),
        image=image,
        category=group % columns,
        score=detections.score[order],
        hit=bits @ hit,
        counted=bits @ counted,
    ).in_order()


def _pairs(group: np.ndarray, of_objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(detection, object) for all of the same group; the groups ascend."""
    first: Any = np.searchsorted(of_objects, group, side="left")
    counts = np.searchsorted(of_objects, group, side="right") - first
    detection = np.repeat(np.arange(len(group)), counts)
    of_pairs = np.arange(len(detection)) - np.repeat(np.cumsum(counts) - counts, counts)
    return detection, of_pairs + first[detection]


def box_ious(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of P pairs of boxes (P, 4), XYWH; on a crowd (P,), intersection over the detection's area."""
    low = np.maximum(boxes[:, :2], objects[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], objects[:, :2] + objects[:, 2:])
    width, height = np.maximum(high - low, 0).T
    common = width * height
    area, of_object = boxes[:, 2] * boxes[:, 3], objects[:, 2] * objects[:, 3]
    union = np.where(crowd, area, area + of_object - common)
    return np.divide(common, union, out=np.zeros(len(common)), where=common > 0)


def _mask_ious(
    masks: Sequence[Any], detection: np.ndarray, obj: np.ndarray, truth: GroundTruth
) -> np.ndarray:
    iou = np.zeros(len(detection))
    starts = np.flatnonzero(np.diff(truth.group[obj], prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(obj)]):
        mine = masks[detection[start] : detection[end - 1] + 1]
        objects = slice(obj[start], obj[end - 1] + 1)
        crowd = truth.crowd[objects].astype(np.uint8)
        iou[start:end] = coco_mask.iou(mine, truth.shapes[objects], crowd).ravel()
    return iou


def _matched(
    detection: np.ndarray,
    obj: np.ndarray,
    iou: np.ndarray,
    rank: np.ndarray,
    truth: GroundTruth,
    thresholds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections get an object that counts, and which an ignored one: (T, N) each.

    In each image and category the detections choose in turn, so all that have one rank choose at once.
    The first free object wins: one that counts, then the best IoU, then the last in the JSON.
    """
    order = np.lexsort((-obj, -iou, truth.ignored[obj], detection, rank[detection]))
    detection, obj, iou = detection[order], obj[order], iou[order]
    reaches = iou >= thresholds[:, None]
    hit, ignored = np.zeros((2, len(thresholds), len(rank)), dtype=bool)
    taken = np.zeros((len(thresholds), len(truth.group)), dtype=bool)
    turns: Any = np.searchsorted(rank[detection], np.arange(rank.max(initial=-1) + 2))
    for start, end in zip(turns, turns[1:]):
        if start == end:
            continue
        objects, who = obj[start:end], detection[start:end]
        free = reaches[:, start:end] & ~taken[:, objects]
        pair = np.where(free, np.arange(end - start), end - start)
        begins = np.flatnonzero(np.diff(who, prepend=-1))
        best = np.minimum.reduceat(pair, begins, axis=1)  # (T, detections of this rank)
        threshold, place = np.nonzero(best < end - start)
        chosen, who = objects[best[threshold, place]], who[begins][place]
        taken[threshold, chosen] = ~truth.crowd[chosen]  # crowds match again and again
        hit[threshold, who] = ~truth.ignored[chosen]
        ignored[threshold, who] = truth.ignored[chosen]
    return hit, ignored
