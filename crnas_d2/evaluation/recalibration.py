"""BatchNorm statistics of paths, recomputed over fixed images; nothing of the network changes.

In a supernet the running statistics of a layer mix all paths that led to it, so a path's own are
recomputed before it is scored. Statistics are exact and pooled: each batch is normalised by its own
mean and variance, as in training, and mean and variance of the whole population are taken. They are
taken per batch and put together in batch order in float64: the same to the bit for any number of
processes. Paths of a group share what they have in common: statistics before the first segment that
differs do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.batches import FixedBatches, gather_in_order
from crnas_d2.evaluation.shared_forward import Members, walk
from crnas_d2.modeling.backbone.supernet import Segment, Supernet

# Of one layer and one batch: number of values a channel; mean and biased variance, (C,) in float64.
Moments = tuple[int, np.ndarray, np.ndarray]
# The same where it was computed: number of values a channel; mean and 1 / sqrt(variance + eps), (C,).
Seen = dict[str, tuple[int, torch.Tensor, torch.Tensor]]
# Of one batch, layer by layer: who reached it, its name, number of values a channel, channels.
Layout = list[tuple[Members, str, int, int]]
# Of one path, by the layer's name in the detector's backbone: mean and unbiased variance, (C,).
Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
PathOf = Callable[[int], Architecture]  # the path that a batch takes, by the batch's number


@contextmanager
def recording(norms: Mapping[str, _BatchNorm]) -> Iterator[Seen]:
    """Inside, the layers normalise by their batch's own statistics and leave them in the dict.

    Layers that are not reached leave nothing; nothing is synchronised between processes and no
    running statistics change.
    """
    seen: Seen = {}

    def forward_of(name: str, norm: _BatchNorm) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            output, mean, invstd = torch.native_batch_norm(
                x, norm.weight, norm.bias, None, None, True, 0.0, norm.eps
            )
            seen[name] = (x.numel() // x.shape[1], mean, invstd)
            return output

        return forward

    for name, norm in norms.items():
        norm.forward = forward_of(name, norm)  # hides the class's, until it is deleted
    try:
        yield seen
    finally:
        for norm in norms.values():
            del norm.forward


def pooled(moments: Sequence[Moments]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance over the batches together, each (C,) in float64."""
    total = sum(count for count, _, _ in moments)
    mean = sum(count * mean for count, mean, _ in moments) / total
    square = sum(count * (variance + (m - mean) ** 2) for count, m, variance in moments)
    return mean, square / max(total - 1, 1)


class BackboneNorms:
    """The BatchNorm layers of a detector's backbone, those of its supernet by segment.

    Args:
        backbone: a detector's, the supernet itself or with a neck above it.
        supernet: inside it.

    Attributes:
        every: all layers, by their names in the backbone.
        above: those of the neck, if it has any.
    """

    def __init__(self, backbone: nn.Module, supernet: Supernet) -> None:
        self.every = {n: m for n, m in backbone.named_modules() if isinstance(m, _BatchNorm)}
        self._names = {id(norm): name for name, norm in self.every.items()}
        inside = {id(module) for module in supernet.modules()}
        self.above = {n: m for n, m in self.every.items() if id(m) not in inside}
        self._of_segments: dict[str, dict[str, _BatchNorm]] = {}
        self._before = {n: (m.running_mean, m.running_var) for n, m in self.every.items()}

    def of(self, segment: Segment) -> dict[str, _BatchNorm]:
        """The layers that a segment runs through."""
        if segment.name not in self._of_segments:
            found = [module for _, module in segment.modules() if id(module) in self._names]
            self._of_segments[segment.name] = {self._names[id(norm)]: norm for norm in found}
        return self._of_segments[segment.name]

    def use(self, norms: Mapping[str, _BatchNorm], statistics: Statistics) -> None:
        """Let these layers normalise by the statistics, or by their own where there are none."""
        for name, norm in norms.items():
            norm.running_mean, norm.running_var = statistics.get(name, self._before[name])

    def put_back(self) -> None:
        """Let every layer normalise by its own running statistics again."""
        self.use(self.every, {})


def statistics_of(
    detector: nn.Module,
    supernet: Supernet,
    norms: BackboneNorms,
    batches: FixedBatches,
    paths: Sequence[PathOf],
    run: Callable[[Segment, Members, torch.Tensor], torch.Tensor],
) -> list[Statistics]:
    """Statistics of each path's layers, on every process.

    Args:
        detector: in eval mode; detectron2's, with ``preprocess_image`` and ``backbone``.
        norms: of its backbone.
        batches: images of archtrain.
        paths: for each, the path that a batch takes: one path, or a completion of a partial code a
            batch.
        run: runs a segment.
    """
    mine = []
    with torch.no_grad(), recording(norms.every) as seen:

        def recorded(segment: Segment, members: Members, x: torch.Tensor) -> torch.Tensor:
            seen.clear()
            y = run(segment, members, x)
            shares.append((members, dict(seen)))
            return y

        for number, inputs in batches.mine():
            shares: list[tuple[Members, Seen]] = []
            x = detector.preprocess_image(inputs).tensor
            taken = [path(number) for path in paths]
            segments = [supernet.segments(architecture) for architecture in taken]
            for member, features in walk(segments, x, recorded):
                if norms.above:
                    seen.clear()
                    with supernet.replaying(taken[member], features):
                        detector.backbone(x)
                    shares.append(((member,), dict(seen)))
            mine.append((number, _on_cpu(shares)))
    moments: list[dict[str, list[Moments]]] = [{} for _ in paths]
    for layout, values in gather_in_order(mine):
        for members, name, found in _moments(layout, values, norms.every):
            for member in members:
                moments[member].setdefault(name, []).append(found)
    return _pooled_by_path(moments, norms.every)


def _on_cpu(shares: Sequence[tuple[Members, Seen]]) -> tuple[Layout, np.ndarray]:
    """One array for all, since a GPU is waited for, and a message made, once and not for each layer."""
    layout = [
        (members, name, count, len(mean))
        for members, seen in shares
        for name, (count, mean, _) in seen.items()
    ]
    values = [part for _, seen in shares for found in seen.values() for part in found[1:]]
    return layout, torch.cat(values).cpu().numpy() if values else np.zeros(0)


def _moments(
    layout: Layout, values: np.ndarray, norms: Mapping[str, _BatchNorm]
) -> Iterator[tuple[Members, str, Moments]]:
    values = values.astype(np.float64)
    start = 0
    for members, name, count, channels in layout:
        mean, invstd = values[start : start + 2 * channels].reshape(2, channels)
        yield members, name, (count, mean, 1 / invstd**2 - norms[name].eps)
        start += 2 * channels


def _pooled_by_path(
    moments: Sequence[dict[str, list[Moments]]], norms: Mapping[str, _BatchNorm]
) -> list[Statistics]:
    """Paths that share a segment share its moments, which are pooled once."""
    different = {tuple(map(id, found)): found for path in moments for found in path.values()}
    if not different:
        return [{} for _ in moments]
    parts = [part for found in different.values() for part in pooled(found)]
    any_norm = next(iter(norms.values()))
    values = torch.from_numpy(np.concatenate(parts)).to(any_norm.running_mean)
    pairs = iter(values.split([len(part) for part in parts]))
    known = dict(zip(different, zip(pairs, pairs)))
    return [{name: known[tuple(map(id, found))] for name, found in path.items()} for path in moments]
