"""The score of a candidate: one COCO metric, unrounded, by pycocotools in memory."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crnas_d2.errors import InputError

TASKS = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in the order of COCOeval.stats


class CocoMetric:
    """A metric over a fixed set of annotated images.

    Args:
        content: a COCO JSON's content, the ground truth.
        task: one of ``TASKS``.
        metric: one of ``METRICS``.

    Attributes:
        task: as given.

    Raises:
        InputError: an unknown task or metric, or one that this ground truth cannot give.
    """

    def __init__(self, content: dict[str, Any], task: str, metric: str) -> None:
        if task not in TASKS:
            raise InputError(f"SEARCH.TASK: {task!r}: allowed are {', '.join(TASKS)}")
        if metric not in METRICS:
            raise InputError(f"SEARCH.METRIC: {metric!r}: allowed are {', '.join(METRICS)}")
        self.task = task
        self._index = METRICS.index(metric)
        with _silence():
            self._truth = COCO()
            self._truth.dataset = copy.deepcopy(content)  # COCOeval writes into annotations
            self._truth.createIndex()
        if self._evaluate(self._perfect()) < 0:  # COCOeval's -1: nothing to measure
            raise InputError(
                f"SEARCH.METRIC: {task} {metric}: archval of {len(content['images'])} images "
                "has no object that counts for it"
            )

    def _perfect(self) -> list[dict[str, Any]]:
        """The ground truth as detections."""
        detections = []
        for annotation in self._truth.dataset["annotations"]:
            detection = {k: annotation[k] for k in ("image_id", "category_id")}
            detection["score"] = 1.0
            if self.task == "bbox":
                detection["bbox"] = list(annotation["bbox"])
            elif "segmentation" in annotation:
                detection["segmentation"] = self._truth.annToRLE(annotation)
            else:
                raise InputError("SEARCH.TASK: 'segm': archval has annotations without masks")
            detections.append(detection)
        return detections

    def _evaluate(self, detections: list[dict[str, Any]]) -> float:
        with _silence():
            evaluation = COCOeval(self._truth, self._truth.loadRes(detections), self.task)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[self._index])

    def __call__(self, detections: list[dict[str, Any]]) -> float:
        """The metric in 0..100, unrounded; no detections at all: 0.

        Args:
            detections: COCO results: image_id, category_id (the JSON's), score, and bbox (XYWH,
                pixels) or segmentation (RLE).
        """
        return 100.0 * self._evaluate(detections) if detections else 0.0


def _silence() -> contextlib.AbstractContextManager[Any]:
    """pycocotools prints."""
    return contextlib.redirect_stdout(io.StringIO())
