"""A detector with a supernet, along several paths at once, each with BatchNorm statistics of its own.

In recalibration and in detection the paths are walked as a tree of the supernet's segments: what they
share is computed once, on the input that each would have, so results are bit-exact those of each alone.

In a supernet the running statistics of a layer mix all paths that led to it. A path's own are exact and
pooled: each batch is normalised by its own mean and variance, as in training, and mean and variance of
the whole population are taken, in batch order in float64: bit-exact for any number of ranks.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.batches import FixedBatches, Record, gather_in_order
from crnas_d2.modeling.backbone.supernet import Supernet, find_supernet, subnet_state
from detectron2.structures import Instances

Group = Sequence[Architecture]
Members = Sequence[int]  # numbers, in a group, of those whose paths share a segment
Features = dict[str, torch.Tensor]  # by stage name
# Of a path, by the layer's name in the detector's backbone: mean and unbiased variance, (C,).
Statistics = dict[str, tuple[torch.Tensor, ...]]
# Of a layer in a batch: members, name, values a channel, and mean and 1 / sqrt(variance + eps), (2, C).
Seen = tuple[Members, str, int, Any]


class PathDetector:
    """Detects along the paths of whole and partial architectures.

    Args:
        detector: with a supernet; set to eval mode.
        recalibration: batches of archtrain for the BatchNorm statistics.
        seed: of the draws that complete partial codes.
        amp: precision of the forward passes; None: as the weights are.
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
        assert supernet is not None
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.detector, self.supernet = detector.eval().to(memory_format=memory_format), supernet
        self._recalibration, self._seed, self._amp = recalibration, seed, amp
        self.norms = BackboneNorms(detector.backbone, supernet)

    def path(self, architecture: Architecture, number: int, evenly: bool = False) -> Architecture:
        """The path of batch ``number``; partial dilation codes draw a completion (paper, Sec. 3.3.2).

        ``evenly``, for recalibration: so that every alternative gets its statistics.
        """
        space: Any = self.supernet.space
        if architecture.is_complete:  # as all of a stage space
            return architecture
        complete = space.complete_evenly if evenly else space.complete
        return complete(architecture, self._seed, number)

    @torch.no_grad()
    def statistics(self, group: Group) -> list[Statistics]:
        """BatchNorm statistics of each architecture, on every rank."""

        def record_for(members: Members) -> None:
            self.norms.members = members

        mine = []
        with self._precision(), self.norms.recording():
            for number, inputs in self._recalibration.mine():
                paths = [self.path(architecture, number, evenly=True) for architecture in group]
                x = self.detector.preprocess_image(inputs).tensor
                for _ in self._walk(paths, x, record_for):
                    if self.norms.in_neck:
                        self.detector.backbone(x)
                mine.append((number, self.norms.taken()))
        layers: list[Any] = [defaultdict(list) for _ in group]
        for found in gather_in_order(mine):
            for members, name, count, of in found:
                for member in members:
                    layers[member][name].append((count, of))
        return [{n: self.norms.pooled(n, found) for n, found in path.items()} for path in layers]

    def subnet_state(self, architecture: Architecture, statistics: Statistics) -> dict[str, Any]:
        """The state dict of this detector with the architecture's fixed network for its supernet."""
        state = dict(self.detector.state_dict())
        for name, values in statistics.items():
            for buffer, value in zip(("running_mean", "running_var"), values):
                state[f"backbone.{name}.{buffer}"] = value
        found = subnet_state(self.detector, state, architecture)
        return {key: value.detach().cpu().clone() for key, value in found.items()}

    @torch.no_grad()
    def detect(
        self,
        group: Group,
        statistics: Sequence[Statistics],
        number: int,
        inputs: Sequence[Record],
        masks: bool,
    ) -> Iterator[tuple[int, list[Instances]]]:
        """Each member's number and what it detects on each image; ``masks``: with masks, if it has any.

        One by one: masks are as large as the images. A ValueError if partial codes differ in length.
        """
        lengths = {len(architecture.dilation_code) for architecture in group}
        if len(lengths) > 1 and not all(architecture.is_complete for architecture in group):
            # Their draws could meet where their statistics are not the same.
            raise ValueError("partial dilation codes of one group need to have the same length")
        # The detector preprocesses them for each member: they are on the device before that.
        inputs = [{**r, "image": r["image"].to(self.detector.device)} for r in inputs]
        paths = [self.path(architecture, number) for architecture in group]
        try:
            with self._precision(), self._masks(masks):
                x = self.detector.preprocess_image(inputs).tensor
                # What members share has the same statistics for all of them.
                for member in self._walk(
                    paths, x, lambda members: self.norms.use(statistics[members[0]])
                ):
                    yield member, [out["instances"] for out in self.detector(inputs)]
        finally:
            self.norms.use({})

    def _walk(
        self, group: Group, images: torch.Tensor, before: Callable[[Members], None]
    ) -> Iterator[int]:
        """The members of a group of whole paths, while the supernet returns that path's features.

        Depth first, so that only one path's features are in memory. ``before`` is called before each
        segment, with the members that share it, and before each yield, with the member yielded.
        """
        paths = [self.supernet.segments(architecture) for architecture in group]

        def below(members: Members, depth: int, x: torch.Tensor, features: Features) -> Iterator[int]:
            shared: dict[str, list[int]] = defaultdict(list)
            for member in members:
                if depth < len(paths[member]):
                    shared[paths[member][depth].name].append(member)
                    continue
                before([member])
                with self.supernet.using_path(group[member], features):
                    yield member
            for sharing in shared.values():
                segment = paths[sharing[0]][depth]
                before(sharing)
                y = segment(x)
                completed = {segment.output: y} if segment.output else {}
                yield from below(sharing, depth + 1, y, {**features, **completed})

        return below(range(len(group)), 0, images, {})

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Mixed precision, if it is asked for, but for what boxes and masks are cut out of.

        detectron2 gives coordinates the precision of what they point into: in bf16, 1100 is 1104.
        """
        if self._amp is None:
            yield
            return
        heads = getattr(self.detector, "roi_heads", nn.Identity())
        features = self.detector.backbone.register_forward_hook(_features_in_float)
        masks = heads.register_forward_hook(_masks_in_float)
        with torch.autocast(self.detector.device.type, self._amp), features, masks:
            yield

    @contextmanager
    def _masks(self, wanted: bool) -> Iterator[None]:
        """Without masks where they are not wanted: the head and pasting them take time and memory."""
        heads: Any = getattr(self.detector, "roi_heads", None)
        if wanted or not getattr(heads, "mask_on", False):
            yield
            return
        heads.mask_on = False
        try:
            yield
        finally:
            heads.mask_on = True


def _features_in_float(_: nn.Module, __: Any, features: dict[str, torch.Tensor]) -> Any:
    return {name: feature.float() for name, feature in features.items()}


def _masks_in_float(_: nn.Module, __: Any, output: tuple[list[Instances], Any]) -> None:
    for instances in output[0]:
        if instances.has("pred_masks"):
            instances.pred_masks = instances.pred_masks.float()


class BackboneNorms:
    """The backbone's BatchNorm layers; what they record is labelled with ``members``, who share it."""

    def __init__(self, backbone: nn.Module, supernet: Supernet) -> None:
        self._norms = {n: m for n, m in backbone.named_modules() if isinstance(m, _BatchNorm)}
        self._own = {n: (m.running_mean, m.running_var) for n, m in self._norms.items()}
        self.in_neck = not set(self._norms.values()) <= set(supernet.modules())
        self.members: Members = ()
        self._used: Statistics = {}
        self._seen: list[Seen] = []

    def use(self, statistics: Statistics) -> None:
        """Let the layers normalise by the statistics, or by their own where there are none."""
        if statistics is not self._used:
            for name in {*self._used, *statistics}:
                norm = self._norms[name]
                norm.running_mean, norm.running_var = statistics.get(name, self._own[name])
            self._used = statistics

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, the layers normalise by their batch's own statistics, and ``taken`` returns these.

        Nothing is synchronised between ranks, and no running statistics change.
        """
        self._seen.clear()
        for name, norm in self._norms.items():
            norm.forward = functools.partial(self._forward, name, norm)  # hides the class's
        try:
            yield
        finally:
            for norm in self._norms.values():
                del norm.forward

    def _forward(self, name: str, norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
        output, mean, invstd = torch.native_batch_norm(
            x, norm.weight, norm.bias, None, None, True, 0.0, norm.eps
        )
        count = x.numel() // x.shape[1]
        self._seen.append((self.members, name, count, torch.stack([mean, invstd])))
        return output

    def taken(self) -> list[Seen]:
        """What was recorded since the last call."""
        if not self._seen:
            return []
        # In one piece, so that a GPU is waited for once.
        values = torch.cat([of for *_, of in self._seen], dim=1).cpu().numpy()
        ends = np.cumsum([of.shape[1] for *_, of in self._seen])
        pieces = np.split(values, ends[:-1], axis=1)
        taken = [(*layer[:-1], piece) for layer, piece in zip(self._seen, pieces)]
        self._seen.clear()
        return taken

    def pooled(self, name: str, batches: list[tuple[int, np.ndarray]]) -> tuple[torch.Tensor, ...]:
        """Statistics of a layer over its batches together, given what was seen of each."""
        norm = self._norms[name]
        counts = np.array([[count] for count, _ in batches])
        means, invstds = np.stack([of for _, of in batches], axis=1).astype(np.float64)
        total, variances = counts.sum(), 1 / invstds**2 - norm.eps
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / max(total - 1, 1)
        return tuple(torch.from_numpy(of).to(norm.running_mean) for of in (mean, variance))
