"""The scorer: a path's BatchNorm statistics are recomputed, then it detects on archval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.batches import FixedBatches, gather_in_order
from crnas_d2.evaluation.coco import CocoMetric
from crnas_d2.evaluation.recalibration import recalibrated
from crnas_d2.modeling.supernet import find_supernet
from crnas_d2.space import StageSpace
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm


class ArchvalScorer:
    """Scores architectures by the supernet's weights; the same on every process.

    A partial dilation code draws a completion of its own for every mini-batch of archval (paper, Sec.
    3.3.2), and evenly for those of recalibration, so that every alternative gets its statistics; the
    candidates of one greedy step meet the same draws.

    Args:
        detector: with a supernet; set to eval mode.
        archval: batches to detect on.
        recalibration: batches of archtrain for the BatchNorm statistics.
        metric: of all detections together.
        category_ids: the JSON's category id of each class.
        seed: of the draws.
    """

    def __init__(
        self,
        detector: nn.Module,
        archval: FixedBatches,
        recalibration: FixedBatches,
        metric: CocoMetric,
        category_ids: Sequence[int],
        seed: int,
    ) -> None:
        supernet = find_supernet(detector)
        if supernet is None:
            raise ValueError("the detector has no supernet, so it has no paths to score")
        self._detector = detector.eval()
        self._supernet = supernet
        self._archval = archval
        self._recalibration = recalibration
        self._metric = metric
        self._category_ids = list(category_ids)
        self._seed = seed

    def __call__(self, group: Sequence[Architecture]) -> list[float]:
        """The scores of the architectures, in 0..100, unrounded and finite."""
        return [self._score(architecture) for architecture in group]

    def _completions(
        self, architecture: Architecture
    ) -> tuple[Callable[[int], Architecture], Callable[[int], Architecture]]:
        """The path of a batch of recalibration, and that of a batch of archval."""
        space = self._supernet.space
        if isinstance(space, StageSpace) or architecture.is_complete:
            return lambda _: architecture, lambda _: architecture
        return (
            lambda number: space.complete_evenly(architecture, self._seed, number),
            lambda number: space.complete(architecture, self._seed, number),
        )

    @torch.no_grad()
    def _score(self, architecture: Architecture) -> float:
        mine = []
        of_recalibration, of_archval = self._completions(architecture)
        with recalibrated(self._detector, self._supernet, self._recalibration, of_recalibration):
            for number, inputs in self._archval.mine():
                with self._supernet.using_path(of_archval(number)):
                    outputs = self._detector(inputs)
                mine.append((number, self._as_coco(inputs, outputs)))
        detections = [d for batch in gather_in_order(mine) for d in batch]
        score = self._metric(detections) if comm.is_main_process() else math.nan
        score = comm.all_gather(score)[0]
        if not math.isfinite(score):
            raise FloatingPointError(f"{architecture}: score {score} is not finite")
        return score

    def _as_coco(
        self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        results = []
        for image, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            results.extend(instances_to_coco_json(instances, image["image_id"]))
        for result in results:
            result["category_id"] = self._category_ids[result["category_id"]]
            if self._metric.task == "segm":
                del result["bbox"]  # else pycocotools takes the box's area for the mask's
        return results
