"""The objects of archval as arrays, and which of them a metric counts, as COCOeval has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from crnas_d2.errors import InputError

# Name: IoU threshold (None: the mean over all ten) and area range; in the order of COCOeval.stats.
METRICS = {
    **{"AP": (None, "all"), "AP50": (0.5, "all"), "AP75": (0.75, "all")},
    **{"APs": (None, "small"), "APm": (None, "medium"), "APl": (None, "large")},
}
PARAMS = Params("bbox")  # COCOeval's: ten IoU thresholds, 101 recalls, area ranges in square pixels


def thresholds_of(metric: str) -> np.ndarray:
    """IoU thresholds (T,) that a metric is the mean over, ascending."""
    only = METRICS[metric][0]
    return PARAMS.iouThrs if only is None else np.array([only])


class GroundTruth:
    """G objects of I images and C categories; ids of annotations play no part.

    Args:
        content: a COCO JSON's content.
        task, metric: "bbox" or "segm", and of ``METRICS``.
        max_detections: the best of an image and category, which alone count; COCOeval has 100.

    Attributes:
        image_ids, category_ids: (I,) and (C,), ascending; ``row_of`` and ``column_of`` find an id.
        group: (G,), row * C + column of an object's image and category; ascending, equal ones in the
            order of the JSON.
        shapes: boxes (G, 4), XYWH in pixels, or a list of G masks as pycocotools' RLE.
        crowd, ignored: (G,); ignored are crowds and objects outside ``area_range``, square pixels.

    Raises:
        InputError: an object without a mask where masks are compared, or none that counts.
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
        rows = [self.row_of[a["image_id"]] for a in annotations]
        columns = [self.column_of[a["category_id"]] for a in annotations]
        group = np.array(rows, dtype=int) * len(self.category_ids) + np.array(columns, dtype=int)
        order = np.argsort(group, kind="stable")
        self.group = group[order]
        if task == "bbox":
            boxes = [a["bbox"] for a in annotations]
            self.shapes: Any = np.array(boxes, dtype=float).reshape(-1, 4)[order]
        else:
            masks = _masks(content)
            self.shapes = [masks[number] for number in order]
        self.crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)[order]
        self.area_range = PARAMS.areaRng[PARAMS.areaRngLbl.index(METRICS[metric][1])]
        areas = np.array([a["area"] for a in annotations], dtype=float)[order]
        self.ignored = self.crowd | self.outside(areas)
        if self.ignored.all():
            raise InputError(
                f"SEARCH.EVAL.METRIC: {task} {metric}: archval of {len(self.image_ids)} images "
                "has no object that counts for it"
            )

    def outside(self, areas: np.ndarray) -> np.ndarray:
        """Whether areas are outside the range."""
        return (areas < self.area_range[0]) | (areas > self.area_range[1])

    def counts(self) -> np.ndarray:
        """Objects that are not ignored, (I, C)."""
        cells = (len(self.image_ids), len(self.category_ids))
        return np.bincount(self.group[~self.ignored], minlength=np.prod(cells)).reshape(cells)


def _masks(content: dict[str, Any]) -> list[dict[str, Any]]:
    """RLEs of all annotations."""
    coco = COCO()
    coco.imgs = {image["id"]: image for image in content["images"]}
    masks = []
    for number, annotation in enumerate(content["annotations"]):
        try:
            masks.append(coco.annToRLE(annotation))
        except Exception as error:  # pycocotools raises whatever comes
            raise InputError(
                f"SEARCH.EVAL.TASK: 'segm': annotations[{number}] of archval: its segmentation is "
                f"neither polygons nor RLE ({error!r})"
            ) from error
    return masks
