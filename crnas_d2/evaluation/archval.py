"""The scorer: the BatchNorm statistics of paths are recomputed, then they detect on archval.

Candidates are scored in groups, batch by batch: what their paths have in common is computed once, in
recalibration and in detection (crnas_d2/evaluation/shared_forward.py). The scores are those that each would
get alone.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable

import torch
from torch import nn

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.batches import FixedBatches, gather_in_order
from crnas_d2.evaluation.coco import CocoMetric
from crnas_d2.evaluation.compiled import compile_blocks, uncompiled
from crnas_d2.evaluation.matches import Matches, match
from crnas_d2.evaluation.recalibration import BackboneNorms, PathOf, Statistics, statistics_of
from crnas_d2.evaluation.shared_forward import MacCounter, Members, walk
from crnas_d2.modeling.backbone.supernet import Segment, find_supernet
from crnas_d2.space import StageSpace
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm

Group = Sequence[Architecture]
Done = Callable[[Group, list[float]], None]
# (batch number, COCO results of each architecture on it) of each batch.
Detected = list[tuple[int, list[list[dict[str, Any]]]]]


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
        amp: precision of the forward passes; None: as the weights are.
        channels_last: torch's memory format of weights and images.
        compiled: the supernet's blocks are compiled for detection, not for recalibration.

    Attributes:
        archval: as given.
        macs: multiply-accumulates of the backbone so far, of this process.
    """

    def __init__(
        self,
        detector: nn.Module,
        archval: FixedBatches,
        recalibration: FixedBatches,
        metric: CocoMetric,
        category_ids: Sequence[int],
        seed: int,
        amp: torch.dtype | None = None,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        supernet = find_supernet(detector)
        if supernet is None:
            raise ValueError("the detector has no supernet, so it has no paths to score")
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._detector = detector.eval().to(memory_format=self._format)
        self._amp = amp
        self._supernet = supernet
        self._compiled = compiled
        if compiled:
            compile_blocks(supernet)
        self.archval = archval
        self._recalibration = recalibration
        self._metric = metric
        self._category_ids = list(category_ids)
        self._seed = seed
        self._norms = BackboneNorms(detector.backbone, supernet)
        self._stopping = threading.Event()
        self._remembered: dict[Architecture, Statistics] = {}
        self.macs = MacCounter()

    def __call__(self, groups: Iterable[Group], done: Done) -> None:
        """Scores the architectures of one group after another: 0..100, unrounded and finite.

        Detections meet on rank 0, whose metric runs in a thread beside the next group's forward passes.

        Args:
            done: called with each group and its scores, in order, on every process; on rank 0 in that
                thread, as soon as they are known.

        Raises:
            FloatingPointError: a score that is not finite.
        """
        self._stopping.clear()
        with ThreadPoolExecutor(max_workers=1) as beside, self._stopped_by_errors():
            last: tuple[Sequence[Architecture], Future[list[float]] | None] | None = None
            for group in groups:
                found = self._on_main(self._detect(group, self._statistics(group)))
                if last is not None:
                    self._tell(*last, done)
                main = comm.is_main_process()
                last = group, beside.submit(self._measure, group, found, done) if main else None
            if last is not None:
                self._tell(*last, done)

    def scores(self, group: Group) -> list[float]:
        """Those of one group."""
        found: list[float] = []
        self([group], lambda _, scores: found.extend(scores))
        return found

    def _measure(
        self,
        group: Group,
        found: Sequence[list[dict[str, Any]]],
        done: Done,
    ) -> list[float]:
        scores: list[float] = []
        for architecture, detections in zip(group, found):
            if self._stopping.is_set():
                break
            scores.append(self._metric(detections))
            if not math.isfinite(scores[-1]):
                raise FloatingPointError(f"{architecture}: score {scores[-1]} is not finite")
        if scores:
            done(group[: len(scores)], scores)
        return scores

    @contextlib.contextmanager
    def _stopped_by_errors(self) -> Iterator[None]:
        """The metric ends after the candidate at hand: an error need not wait for the whole group."""
        try:
            yield
        except BaseException:
            self._stopping.set()
            raise

    def _tell(
        self,
        group: Group,
        measured: Future[list[float]] | None,
        done: Done,
    ) -> None:
        """Let every process have the scores that rank 0 has measured."""
        scores = comm.all_gather(measured.result() if measured else None)[0]
        if measured is None:
            done(group, scores)

    def matches(self, group: Group, batches: Sequence[int]) -> list[Matches]:
        """What the architectures hit on some of archval's batches; on rank 0, empty on the others.

        Each process matches what it has detected. The BatchNorm statistics of an architecture are
        remembered, since it comes again.
        """
        new = [architecture for architecture in group if architecture not in self._remembered]
        if new:
            self._remembered.update(zip(new, self._statistics(new)))
        mine = self._detect(group, [self._remembered[a] for a in group], batches)
        images = [image for number, _ in mine for image in self.archval.image_ids[number]]
        found = [
            match(self._metric, [d for _, batch in mine for d in batch[member]], images)
            for member in range(len(group))
        ]
        parts = comm.gather(found if images else [])
        return [functools.reduce(Matches.joined, of_one) for of_one in zip(*filter(None, parts))]

    @contextlib.contextmanager
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

    def _statistics(self, group: Group) -> list[Statistics]:
        paths = [self._completions(architecture)[0] for architecture in group]
        with self._precision(), uncompiled() if self._compiled else contextlib.nullcontext():
            return statistics_of(
                self._detector, self._supernet, self._norms, self._recalibration, paths, self._run
            )

    @staticmethod
    def _check_lengths(group: Group) -> None:
        lengths = {len(architecture.dilation_code) for architecture in group}
        if len(lengths) > 1 and not all(architecture.is_complete for architecture in group):
            # Their draws could meet where their statistics are not the same.
            raise ValueError("partial dilation codes of one group need to have the same length")

    def _completions(self, architecture: Architecture) -> tuple[PathOf, PathOf]:
        """The path of a batch of recalibration, and that of a batch of archval."""
        space = self._supernet.space
        if isinstance(space, StageSpace) or architecture.is_complete:
            self._supernet.check_path(architecture)
            return lambda _: architecture, lambda _: architecture
        return (
            lambda number: space.complete_evenly(architecture, self._seed, number),
            lambda number: space.complete(architecture, self._seed, number),
        )

    def _run(self, segment: Segment, members: Members, x: torch.Tensor) -> torch.Tensor:
        return self.macs.run(segment, members, x.contiguous(memory_format=self._format))

    @torch.no_grad()
    def _detect(
        self,
        group: Group,
        statistics: Sequence[Statistics],
        batches: Container[int] | None = None,
    ) -> Detected:
        """What the architectures detect on this process's share of archval.

        Args:
            statistics: of each.
            batches: numbers of those that are looked at; by default all.
        """
        self._check_lengths(group)
        paths = [self._completions(architecture)[1] for architecture in group]
        mine: Detected = []

        def run(segment: Segment, members: Members, x: torch.Tensor) -> torch.Tensor:
            # Whatever is shared has the same statistics for all members.
            self._norms.use(self._norms.of(segment), statistics[members[0]])
            if self._compiled and not self.macs.knows(segment, x):
                with uncompiled():  # a compiled block does not see the counter's hooks
                    self.macs.learn(segment, x)
            return self._run(segment, members, x)

        try:
            with self._precision():
                for number, batch in self.archval.mine(batches):
                    # Members preprocess the batch anew: the images are on the device before that.
                    inputs = [{**r, "image": r["image"].to(self._detector.device)} for r in batch]
                    found: list[list[dict[str, Any]]] = [[] for _ in paths]
                    x = self._detector.preprocess_image(inputs).tensor
                    taken = [path(number) for path in paths]
                    segments = [self._supernet.segments(architecture) for architecture in taken]
                    for member, features in walk(segments, x, run):
                        self._norms.use(self._norms.above, statistics[member])
                        with self._supernet.replaying(taken[member], features):
                            outputs = self._detector(inputs)
                        found[member] = self._as_coco(inputs, outputs)
                    mine.append((number, found))
        finally:
            self._norms.put_back()
        return mine

    @staticmethod
    def _on_main(mine: Detected) -> list[list[dict[str, Any]]]:
        """COCO results of each architecture over archval, in batch order; on rank 0, else none."""
        per_batch = gather_in_order(mine, everywhere=False)
        return [[d for part in of_one for d in part] for of_one in zip(*per_batch)]

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


def _features_in_float(_: nn.Module, __: Any, features: dict[str, torch.Tensor]) -> Any:
    return {name: feature.float() for name, feature in features.items()}


def _masks_in_float(_: nn.Module, __: Any, output: tuple[list[Instances], Any]) -> None:
    for instances in output[0]:
        if instances.has("pred_masks"):
            instances.pred_masks = instances.pred_masks.float()
