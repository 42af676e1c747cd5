"""Top-1 and top-5 of an image classifier, as a detectron2 evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

TOP = (1, 5)


class TopKEvaluator(DatasetEvaluator):
    """Per cent of the images whose label is among the k highest scores; over all processes.

    With fewer than five classes, top-5 is over all of them.
    """

    def reset(self) -> None:
        self._images = 0
        self._hits = dict.fromkeys(TOP, 0)

    def process(
        self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, torch.Tensor]]
    ) -> None:
        """Count a batch: ``label`` of each input, ``scores`` (num_classes,) of each output."""
        for record, output in zip(inputs, outputs):
            scores = output["scores"]
            ranked = scores.topk(min(max(TOP), len(scores))).indices.tolist()
            self._images += 1
            for k in TOP:
                self._hits[k] += record["label"] in ranked[:k]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"classification": {"top1": 0..100, "top5": 0..100}}``; empty but on rank 0."""
        everyone = comm.gather((self._images, self._hits), dst=0)
        if not comm.is_main_process():
            return {}
        images = sum(count for count, _ in everyone)
        return {
            "classification": {
                f"top{k}": 100.0 * sum(hits[k] for _, hits in everyone) / images for k in TOP
            }
        }
