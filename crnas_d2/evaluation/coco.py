"""The score of a candidate: one COCO metric, unrounded.

hotcoco computes it where it is installed, pycocotools otherwise: the same numbers, in a small part of
the time. hotcoco lets other threads run while it matches and accumulates, not while it takes over the
detections, about a microsecond each (docs/BENCHMARKS.md).
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crnas_d2.errors import InputError
from detectron2.utils.logger import log_first_n

try:
    import hotcoco
except ImportError:  # no part of a person's own environment; it needs Python 3.10
    hotcoco = None  # type: ignore[assignment]

BACKENDS = ("hotcoco", "pycocotools")
OLDEST_HOTCOCO = (1, 3)  # the numbers of earlier ones were not compared with pycocotools'
TASKS = ("bbox", "segm")
# Name: IoU threshold (None: the mean over all ten) and area range; in the order of COCOeval.stats.
METRICS = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}
# All that an evaluation reads of a COCO JSON. hotcoco is strict about the types of what it does not
# need, too.
READ = {
    "images": ("id", "height", "width"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
}


class CocoMetric:
    """A metric over a fixed set of annotated images; may be called from several threads.

    With pycocotools one call waits for the other, and what other threads print meanwhile is lost.

    Args:
        content: a COCO JSON's content, the ground truth; it is copied.
        task: one of ``TASKS``.
        metric: one of ``METRICS``.
        backend: one of ``BACKENDS``; by default hotcoco if it is installed and reads this ground
            truth (it wants ids that are integers from 0 on), else pycocotools.

    Attributes:
        task, metric: as given.
        backend: what computes it.
        image_ids, category_ids: of the ground truth, ascending.

    Raises:
        InputError: an unknown task or metric, or one that this ground truth cannot give.
    """

    def __init__(
        self, content: dict[str, Any], task: str, metric: str, backend: str | None = None
    ) -> None:
        if task not in TASKS:
            raise InputError(f"SEARCH.EVAL.TASK: {task!r}: allowed are {', '.join(TASKS)}")
        if metric not in METRICS:
            raise InputError(f"SEARCH.EVAL.METRIC: {metric!r}: allowed are {', '.join(METRICS)}")
        self.task = task
        self.metric = metric
        truth = _copy(content, task)
        self.image_ids = sorted(record["id"] for record in truth["images"])
        self.category_ids = sorted(record["id"] for record in truth["categories"])
        self._known = set(self.image_ids)
        self.backend = backend or _choose(truth)
        log_first_n(logging.INFO, f"COCO metrics are computed by {self.backend}", key="message")
        with self._calm():
            self._truth = _load(self.backend, truth)
            self._nothing = _load(self.backend, {**truth, "annotations": []})
        if self(_perfect(truth, task)) < 0:  # COCOeval's -1: nothing to measure
            raise InputError(
                f"SEARCH.EVAL.METRIC: {task} {metric}: archval of {len(truth['images'])} images "
                "has no object that counts for it"
            )

    def __call__(self, detections: Sequence[dict[str, Any]]) -> float:
        """The metric in 0..100, unrounded; no detections at all: 0.

        Args:
            detections: COCO results: image_id, category_id (the JSON's), score, and bbox (XYWH,
                pixels) or segmentation (RLE).

        Raises:
            ValueError: a detection on an image that is not in the ground truth, or a score of NaN.
        """
        return 100.0 * self.all_numbers(detections)[list(METRICS).index(self.metric)]

    def all_numbers(self, detections: Sequence[dict[str, Any]]) -> list[float]:
        """COCOeval's twelve: six of AP as in ``METRICS``, six of AR; in 0..1, -1 for undefined."""
        with self._calm():
            evaluation = self._evaluation(detections)
            evaluation.evaluate()
            evaluation.accumulate()
            if self.backend == "hotcoco":
                evaluation.summary_lines()  # summarize() without printing
            else:
                evaluation.summarize()
        return [float(number) for number in evaluation.stats]

    def matched(
        self, detections: Sequence[dict[str, Any]], image_ids: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """COCOeval.evalImgs over some of the images, for this metric's IoU thresholds and areas alone.

        An entry is of one image and category that has objects or detections: image_id, category_id,
        dtScores (D,) best first, dtMatches and dtIgnore (T, D), gtIgnore (G,).
        """
        if not image_ids:
            return []  # which hotcoco would read as all
        threshold, area = METRICS[self.metric]
        with self._calm():
            evaluation = self._evaluation(detections)
            params = evaluation.params
            params.imgIds = list(image_ids)
            ranges = dict(zip(params.areaRngLbl, params.areaRng))
            params.areaRng, params.areaRngLbl = [ranges[area]], [area]
            if threshold is not None:
                params.iouThrs = [threshold]
            evaluation.evaluate()
        return [entry for entry in evaluation.evalImgs if entry is not None]

    def _evaluation(self, detections: Sequence[dict[str, Any]]) -> Any:
        """COCOeval of the detections, before evaluate()."""
        for detection in detections:
            if detection["image_id"] not in self._known:
                raise ValueError(f"a detection on image {detection['image_id']!r}, which is not here")
            if detection["score"] != detection["score"]:
                raise ValueError(f"a detection on image {detection['image_id']!r} with a score of NaN")
        if self.backend == "hotcoco":
            return hotcoco.COCOeval(self._truth, self._results(list(detections)), self.task)
        # Copies: pycocotools writes into them, and a mask with a box is given the box's area.
        return COCOeval(self._truth, self._results([dict(d) for d in detections]), self.task)

    def _results(self, detections: list[dict[str, Any]]) -> Any:
        # pycocotools cannot load an empty list.
        return self._truth.loadRes(detections) if detections else self._nothing

    def _calm(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.backend == "hotcoco" else _alone_and_silent()


_pycocotools = threading.Lock()


@contextlib.contextmanager
def _alone_and_silent() -> Iterator[None]:
    """pycocotools prints, and writes into the ground truth while it evaluates."""
    with _pycocotools, contextlib.redirect_stdout(io.StringIO()):
        yield


def _load(backend: str, content: dict[str, Any]) -> Any:
    """The COCO object of either backend."""
    if backend == "hotcoco":
        return hotcoco.COCO(content)
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    return truth


def _choose(truth: dict[str, Any]) -> str:
    """hotcoco where it can be had; the log says why where it is there and cannot be used."""
    if hotcoco is None:
        return "pycocotools"
    problem = None
    if tuple(int(part) for part in re.findall(r"\d+", hotcoco.__version__)[:2]) < OLDEST_HOTCOCO:
        oldest = ".".join(str(part) for part in OLDEST_HOTCOCO)
        problem = f"version {hotcoco.__version__} is older than {oldest}"
    else:
        try:
            hotcoco.COCO(truth)
        except (ValueError, OverflowError) as error:
            problem = str(error)
    if problem:
        log_first_n(logging.WARNING, f"hotcoco is not used: {problem}", key="message")
    return "pycocotools" if problem else "hotcoco"


def _copy(content: dict[str, Any], task: str) -> dict[str, Any]:
    """What an evaluation reads, as records of its own; masks as pycocotools' RLE."""
    truth = {
        part: [{key: record[key] for key in keys} for record in content[part]]
        for part, keys in READ.items()
    }
    for category in truth["categories"]:
        category["name"] = str(category["id"])  # hotcoco warns without it
    if task == "segm":
        with _alone_and_silent():
            whole = _load("pycocotools", content)
        for mine, annotation in zip(truth["annotations"], content["annotations"]):
            if "segmentation" not in annotation:
                raise InputError("SEARCH.EVAL.TASK: 'segm': archval has annotations without masks")
            try:
                mine["segmentation"] = whole.annToRLE(annotation)
            except Exception as error:  # pycocotools raises whatever comes
                raise InputError(
                    f"SEARCH.EVAL.TASK: 'segm': annotation {annotation['id']} of archval: its "
                    f"segmentation is neither polygons nor RLE ({error})"
                ) from error
    return truth


def _perfect(truth: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """The ground truth as detections."""
    shape = "bbox" if task == "bbox" else "segmentation"
    keys = ("image_id", "category_id", shape)
    return [{**{k: a[k] for k in keys}, "score": 1.0} for a in truth["annotations"]]
