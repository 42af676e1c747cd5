"""A detector with a supernet, along several paths at once.

Each path has BatchNorm statistics of its own, recomputed on archtrain images. What the paths of a group
have in common is computed once, in recalibration and in detection (shared_forward.py); results are
bit-exact those of each path alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.recalibration import BackboneNorms, PathOf, Statistics, statistics_of
from crnas_d2.evaluation.shared_forward import Members, walk
from crnas_d2.modeling.backbone.supernet import Segment, find_supernet
from crnas_d2.space import StageSpace
from detectron2.structures import Instances

Group = Sequence[Architecture]


class PathDetector:
    """Detects along the paths of whole and partial architectures.

    A partial dilation code draws a completion for each batch of archval (paper, Sec. 3.3.2), and evenly
    for those of recalibration, so that every alternative gets its statistics; the candidates of one
    greedy step meet the same draws.

    Args:
        detector: with a supernet; set to eval mode.
        recalibration: batches of archtrain for the BatchNorm statistics.
        seed: of the draws.
        amp: precision of the forward passes; None: as the weights are.
        channels_last: torch's memory format of weights and images.
    """

    def __init__(
        self,
        detector: nn.Module,
        recalibration: FixedBatches,
        seed: int,
        amp: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        supernet = find_supernet(detector)
        if supernet is None:
            raise ValueError("the detector has no supernet, so it has no paths to score")
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._detector, self._supernet = detector.eval().to(memory_format=self._format), supernet
        self._recalibration, self._seed, self._amp = recalibration, seed, amp
        self._norms = BackboneNorms(detector.backbone, supernet)

    def statistics(self, group: Group) -> list[Statistics]:
        """BatchNorm statistics of each architecture, on every rank."""
        paths = [self.completions(architecture)[0] for architecture in group]
        with self._precision():
            return statistics_of(
                self._detector, self._supernet, self._norms, self._recalibration, paths, self._run
            )

    @torch.no_grad()
    def detect(
        self,
        group: Group,
        statistics: Sequence[Statistics],
        number: int,
        inputs: Sequence[dict[str, Any]],
    ) -> list[list[Instances]]:
        """What each architecture detects on each image of a batch.

        Args:
            statistics: of each.
            number: of the batch, which decides what partial codes draw.
            inputs: as for the detector.

        Raises:
            ValueError: partial codes of different lengths.
        """
        lengths = {len(architecture.dilation_code) for architecture in group}
        if len(lengths) > 1 and not all(architecture.is_complete for architecture in group):
            # Their draws could meet where their statistics are not the same.
            raise ValueError("partial dilation codes of one group need to have the same length")
        # Members preprocess the batch anew: the images are on the device before that.
        inputs = [{**r, "image": r["image"].to(self._detector.device)} for r in inputs]
        paths = [self.completions(architecture)[1](number) for architecture in group]
        found: list[list[Instances]] = [[] for _ in group]

        def run(segment: Segment, members: Members, x: torch.Tensor) -> torch.Tensor:
            # What members share has the same statistics for all of them.
            self._norms.use(self._norms.of(segment), statistics[members[0]])
            return self._run(segment, members, x)

        try:
            with self._precision():
                x = self._detector.preprocess_image(inputs).tensor
                segments = [self._supernet.segments(path) for path in paths]
                for member, features in walk(segments, x, run):
                    self._norms.use(self._norms.above, statistics[member])
                    with self._supernet.using_path(paths[member], features):
                        found[member] = [out["instances"] for out in self._detector(inputs)]
        finally:
            self._norms.put_back()
        return found

    def completions(self, architecture: Architecture) -> tuple[PathOf, PathOf]:
        """Paths by batch number: of recalibration batches, and of batches of archval."""
        space = self._supernet.space
        if isinstance(space, StageSpace) or architecture.is_complete:
            self._supernet.check_path(architecture)
            return lambda _: architecture, lambda _: architecture
        return (
            lambda number: space.complete_evenly(architecture, self._seed, number),
            lambda number: space.complete(architecture, self._seed, number),
        )

    def _run(self, segment: Segment, _: Members, x: torch.Tensor) -> torch.Tensor:
        return segment(x.contiguous(memory_format=self._format))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Mixed precision, if it is asked for, but for what boxes and masks are cut out of.

        detectron2 gives coordinates the precision of what they point into: in bf16, 1100 is 1104.
        """
        if self._amp is None:
            yield
            return
        handles = [self._detector.backbone.register_forward_hook(_features_in_float)]
        if hasattr(self._detector, "roi_heads"):
            handles.append(self._detector.roi_heads.register_forward_hook(_masks_in_float))
        try:
            with torch.autocast(self._detector.device.type, dtype=self._amp):
                yield
        finally:
            for handle in handles:
                handle.remove()


def _features_in_float(_: nn.Module, __: Any, features: dict[str, torch.Tensor]) -> Any:
    return {name: feature.float() for name, feature in features.items()}


def _masks_in_float(_: nn.Module, __: Any, output: tuple[list[Instances], Any]) -> None:
    for instances in output[0]:
        if instances.has("pred_masks"):
            instances.pred_masks = instances.pred_masks.float()
