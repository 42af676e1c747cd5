"""COCO's AP of a test set, over as many detections as an image may have; and the matches behind it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crnas_d2.errors import InputError
from crnas_d2.evaluation.matches import Matches
from crnas_d2.evaluation.matching import Detections, GroundTruth, match
from crnas_d2.files import write_bytes
from detectron2.evaluation import COCOEvaluator

MATCHES = "matches.npz"  # in output_dir, of the last test set that was evaluated


class DetectionEvaluator(COCOEvaluator):
    """detectron2's evaluator, but above 100 ``max_detections`` of an image and category count.

    Main has an option for that, 0.5 has none; this works with both, at the cost of a second evaluation.
    It also writes the matches of ``task`` and ``metric``, from which two networks can be compared.
    """

    def __init__(
        self, dataset_name: str, output_dir: str, max_detections: int, task: str, metric: str
    ) -> None:
        super().__init__(dataset_name, output_dir=output_dir)
        self._max_detections, self._task, self._metric = max_detections, task, metric

    def _eval_predictions(
        self, predictions: Sequence[dict[str, Any]], *args: Any, **kwargs: Any
    ) -> None:
        """On rank 0, of all ranks' predictions; detectron2's changes them in place."""
        if self._do_evaluation:
            path = Path(self._output_dir, MATCHES)
            path.unlink(missing_ok=True)
            try:
                matches = self._matches(predictions)
            except (InputError, KeyError) as error:  # no object that counts, or no masks
                text = "%s: none: the test set or its predictions do not give %s %s (%s)"
                logging.getLogger(__name__).info(text, path, self._task, self._metric, error)
            else:
                write_bytes(path, matches.to_bytes())
        super()._eval_predictions(predictions, *args, **kwargs)

    def _matches(self, predictions: Sequence[dict[str, Any]]) -> Matches:
        content = self._coco_api.dataset
        truth = GroundTruth(content, self._task, self._metric, max(100, self._max_detections))
        found = [(truth.row_of[p["image_id"]], of) for p in predictions for of in p["instances"]]
        shapes = [of["bbox" if self._task == "bbox" else "segmentation"] for _, of in found]
        detections = Detections(
            np.array([row for row, _ in found], dtype=int),
            np.array([of["category_id"] for _, of in found], dtype=int),
            np.array([of["score"] for _, of in found], dtype=np.float32),
            np.array(shapes, np.float32).reshape(-1, 4) if self._task == "bbox" else np.array(shapes),
        )
        return match(truth, detections, list(range(len(truth.image_ids))))

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, *args: Any, **kwargs: Any) -> Any:
        if coco_eval is not None and iou_type != "keypoints" and self._max_detections > 100:
            coco_eval.params.maxDets = [10, 100, self._max_detections]
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
            # pycocotools takes the last limit for all numbers but AP, for which it takes 100.
            precision = coco_eval.eval["precision"][:, :, :, 0, -1]
            if (precision > -1).any():
                coco_eval.stats[0] = precision[precision > -1].mean()
        return super()._derive_coco_results(coco_eval, iou_type, *args, **kwargs)
