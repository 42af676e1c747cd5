"""Top-1 and top-5 of an image classifier, as a detectron2 evaluator."""

from __future__ import annotations

from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class TopKEvaluator(DatasetEvaluator):
    """Per cent of the images, of all processes, whose label is among the k highest scores.

    With fewer than five classes, top-5 is over all of them.
    """

    def reset(self) -> None:
        self._ranks: list[int] = []  # of each image: its label's among the scores, 0 the highest

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
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
        found = {f"top{k}": 100.0 * sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5)}
        return {"classification": found}
