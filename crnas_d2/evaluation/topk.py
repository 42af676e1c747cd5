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
        self._ranks: list[int] = []  # of the label among the scores, 0 the highest; of each image

    def process(
        self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, torch.Tensor]]
    ) -> None:
        """Count a batch: ``label`` of each input, ``scores`` (num_classes,) of each output."""
        for record, output in zip(inputs, outputs):
            ranked = output["scores"].argsort(descending=True).tolist()
            self._ranks.append(ranked.index(record["label"]))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"classification": {"top1": 0..100, "top5": 0..100}}``; empty but on rank 0."""
        every = comm.gather(self._ranks, dst=0)
        if not comm.is_main_process():
            return {}
        ranks = [rank for of_process in every for rank in of_process]
        found = {f"top{k}": 100.0 * sum(rank < k for rank in ranks) / len(ranks) for k in TOP}
        return {"classification": found}
