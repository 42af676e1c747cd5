"""BatchNorm statistics of paths, recomputed over fixed images; nothing of the network changes.

In a supernet the running statistics of a layer mix all paths that led to it. A path's own are exact and
pooled: each batch is normalised by its own mean and variance, as in training, and mean and variance of
the whole population are taken, in batch order in float64: bit-exact for any number of ranks. Paths of a
group share what they have in common.
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
from crnas_d2.evaluation.shared_forward import Members, Run, walk
from crnas_d2.modeling.backbone.supernet import Segment, Supernet

# Of one layer and one batch: number of values a channel; mean and biased variance, (C,) in float64.
Moments = tuple[int, np.ndarray, np.ndarray]
# By layer, where it was computed: number of values a channel; mean and 1 / sqrt(variance + eps), (C,).
Seen = dict[str, tuple[int, torch.Tensor, torch.Tensor]]
# Of one path, by the layer's name in the detector's backbone: mean and unbiased variance, (C,).
Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
PathOf = Callable[[int], Architecture]  # the path that a batch takes, by the batch's number


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

    @contextmanager
    def recording(self) -> Iterator[Seen]:
        """Inside, the layers normalise by their batch's own statistics and leave them in the dict.

        Nothing is synchronised between ranks, and no running statistics change.
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

        for name, norm in self.every.items():
            norm.forward = forward_of(name, norm)  # hides the class's, until it is deleted
        try:
            yield seen
        finally:
            for norm in self.every.values():
                del norm.forward


@torch.no_grad()
def statistics_of(
    detector: nn.Module,
    supernet: Supernet,
    norms: BackboneNorms,
    batches: FixedBatches,
    paths: Sequence[PathOf],
    run: Run,
) -> list[Statistics]:
    """Statistics of each path's layers, on every rank.

    Args:
        detector: in eval mode; detectron2's, with ``preprocess_image`` and ``backbone``.
        norms: of its backbone.
        batches: images of archtrain.
        paths: for each, the path that a batch takes: one path, or a completion of a partial code a
            batch.
        run: runs a segment.
    """
    mine = []
    with norms.recording() as seen:

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
                    with supernet.using_path(taken[member], features):
                        detector.backbone(x)
                    shares.append(((member,), dict(seen)))
            # One array for all: a GPU is waited for, and a message made, once a batch.
            layers = [(members, name, *of) for members, seen in shares for name, of in seen.items()]
            parts = [part for *_, mean, invstd in layers for part in (mean, invstd)]
            layout = [(members, name, count, len(mean)) for members, name, count, mean, _ in layers]
            mine.append((number, (layout, torch.cat(parts).cpu().numpy() if parts else np.zeros(0))))
    moments: list[dict[str, list[Moments]]] = [{} for _ in paths]
    for layout, values in gather_in_order(mine):
        start = 0
        for members, name, count, channels in layout:
            end = start + 2 * channels
            mean, invstd = values[start:end].astype(np.float64).reshape(2, channels)
            found, start = (count, mean, 1 / invstd**2 - norms.every[name].eps), end
            for member in members:
                moments[member].setdefault(name, []).append(found)
    # Paths that share a segment share its moments, which are pooled once.
    pool: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}
    different = {tuple(map(id, found)): found for path in moments for found in path.values()}
    if different:
        every = torch.from_numpy(np.concatenate([p for of in different.values() for p in pooled(of)]))
        lengths = [len(of[0][1]) for of in different.values() for _ in range(2)]
        pairs = iter(every.to(next(iter(norms.every.values())).running_mean).split(lengths))
        pool = dict(zip(different, zip(pairs, pairs)))
    return [{name: pool[tuple(map(id, found))] for name, found in path.items()} for path in moments]


def pooled(moments: Sequence[Moments]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance over the batches together, each (C,) in float64."""
    total = sum(count for count, _, _ in moments)
    mean = sum(count * mean for count, mean, _ in moments) / total
    square = sum(count * (variance + (m - mean) ** 2) for count, m, variance in moments)
    return mean, square / max(total - 1, 1)
