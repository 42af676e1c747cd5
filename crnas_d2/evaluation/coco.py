"""COCO's AP of a test set, over as many detections as an image may have."""

from __future__ import annotations

from typing import Any

from detectron2.evaluation import COCOEvaluator


class DetectionEvaluator(COCOEvaluator):
    """detectron2's evaluator, but above 100 ``max_detections`` of an image and category count.

    Main has an option for that, 0.5 has none; this works with both, at the cost of a second evaluation.
    """

    def __init__(self, dataset_name: str, output_dir: str, max_detections: int) -> None:
        super().__init__(dataset_name, output_dir=output_dir)
        self._max_detections = max_detections

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
