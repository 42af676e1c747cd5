"""A detector with a supernet, along several paths at once.

Each path has BatchNorm statistics of its own, recomputed on archtrain images. What the paths of a group
have in common is computed once, in recalibration and in detection (shared_forward.py); results are
bit-exact those of each path alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.batches import FixedBatches, gather_in_order
from crnas_d2.evaluation.recalibration import BackboneNorms, Statistics
from crnas_d2.evaluation.shared_forward import Members, walk
from crnas_d2.modeling.backbone.supernet import Segment, find_supernet
from crnas_d2.space import StageSpace
from detectron2.structures import Instances

Group = Sequence[Architecture]


class PathDetector:
    """Detects along the paths of whole and partial architectures.

    Args:
        detector: with a supernet; set to eval mode.
        recalibration: batches of archtrain for the BatchNorm statistics.
        seed: of the draws that complete partial codes.
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
        self.detector, self.supernet = detector.eval().to(memory_format=self._format), supernet
        self._recalibration, self._seed, self._amp = recalibration, seed, amp
        self.norms = BackboneNorms(detector.backbone, supernet)

    def path(self, architecture: Architecture, number: int, evenly: bool = False) -> Architecture:
        """The path that a batch takes; partial dilation codes draw a completion (paper, Sec. 3.3.2).

        Candidates of one greedy step meet the same draws.

        Args:
            number: of the batch.
            evenly: as for recalibration, so that every alternative gets its statistics.
        """
        space = self.supernet.space
        if isinstance(space, StageSpace) or architecture.is_complete:
            return architecture
        complete = space.complete_evenly if evenly else space.complete
        return complete(architecture, self._seed, number)

    @torch.no_grad()
    def statistics(self, group: Group) -> list[Statistics]:
        """BatchNorm statistics of each architecture, on every rank."""
        mine = []
        with self._precision(), self.norms.recording() as seen:

            def run(segment: Segment, members: Members, x: torch.Tensor) -> torch.Tensor:
                y = self._run(segment, x)
                of_members.extend((members, *layer) for layer in seen)
                seen.clear()
                return y

            for number, inputs in self._recalibration.mine():
                of_members: list[Any] = []
                paths = [self.path(architecture, number, evenly=True) for architecture in group]
                x = self.detector.preprocess_image(inputs).tensor
                for member, features in walk(list(map(self.supernet.segments, paths)), x, run):
                    if self.norms.above:
                        with self.supernet.using_path(paths[member], features):
                            self.detector.backbone(x)
                        of_members.extend(([member], *layer) for layer in seen)
                        seen.clear()
                # In one piece, so that a GPU is waited for once a batch.
                flat = [of.flatten() for *_, of in of_members]
                values = torch.cat(flat).cpu().numpy() if flat else np.zeros(0)
                pieces = np.split(values, np.cumsum([len(piece) for piece in flat])[:-1])
                layers = zip(of_members, pieces)
                mine.append((number, [(*o[:-1], piece.reshape(2, -1)) for o, piece in layers]))
        batches: list[dict[str, list[tuple[int, np.ndarray]]]] = [{} for _ in group]
        for found in gather_in_order(mine):
            for members, name, count, of in found:
                for member in members:
                    batches[member].setdefault(name, []).append((count, of))
        return [{n: self.norms.pooled(n, found) for n, found in path.items()} for path in batches]

    @torch.no_grad()
    def detect(
        self,
        group: Group,
        statistics: Sequence[Statistics],
        number: int,
        inputs: Sequence[dict[str, Any]],
    ) -> list[list[Instances]]:
        """What each architecture detects on each image of batch ``number``.

        Raises:
            ValueError: partial codes of different lengths.
        """
        lengths = {len(architecture.dilation_code) for architecture in group}
        if len(lengths) > 1 and not all(architecture.is_complete for architecture in group):
            # Their draws could meet where their statistics are not the same.
            raise ValueError("partial dilation codes of one group need to have the same length")
        # Members preprocess the batch anew: the images are on the device before that.
        inputs = [{**r, "image": r["image"].to(self.detector.device)} for r in inputs]
        paths = [self.path(architecture, number) for architecture in group]
        found: list[list[Instances]] = [[] for _ in group]

        def run(segment: Segment, members: Members, x: torch.Tensor) -> torch.Tensor:
            # What members share has the same statistics for all of them.
            self.norms.use(self.norms.of(segment), statistics[members[0]])
            return self._run(segment, x)

        try:
            with self._precision():
                x = self.detector.preprocess_image(inputs).tensor
                for member, features in walk(list(map(self.supernet.segments, paths)), x, run):
                    self.norms.use(self.norms.above, statistics[member])
                    with self.supernet.using_path(paths[member], features):
                        found[member] = [out["instances"] for out in self.detector(inputs)]
        finally:
            self.norms.use_for_all({})
        return found

    def _run(self, segment: Segment, x: torch.Tensor) -> torch.Tensor:
        return segment(x.contiguous(memory_format=self._format))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Mixed precision, if it is asked for, but for what boxes and masks are cut out of.

        detectron2 gives coordinates the precision of what they point into: in bf16, 1100 is 1104.
        """
        with ExitStack() as stack:
            if self._amp is not None:
                stack.enter_context(torch.autocast(self.detector.device.type, dtype=self._amp))
                backbone, heads = self.detector.backbone, getattr(self.detector, "roi_heads", None)
                stack.enter_context(backbone.register_forward_hook(_features_in_float))
                if heads is not None:
                    stack.enter_context(heads.register_forward_hook(_masks_in_float))
            yield


def _features_in_float(_: nn.Module, __: Any, features: dict[str, torch.Tensor]) -> Any:
    return {name: feature.float() for name, feature in features.items()}


def _masks_in_float(_: nn.Module, __: Any, output: tuple[list[Instances], Any]) -> None:
    for instances in output[0]:
        if instances.has("pred_masks"):
            instances.pred_masks = instances.pred_masks.float()
