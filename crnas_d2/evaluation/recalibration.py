"""BatchNorm layers of a detector's backbone, and their statistics recomputed over fixed images.

In a supernet the running statistics of a layer mix all paths that led to it. A path's own are exact and
pooled: each batch is normalised by its own mean and variance, as in training, and mean and variance of
the whole population are taken, in batch order in float64: bit-exact for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.modeling.backbone.supernet import Segment, Supernet

# Of a path, by the layer's name in the detector's backbone: mean and unbiased variance, (C,).
Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
# Of a layer in a batch: name; number of values a channel; mean and 1 / sqrt(variance + eps), (2, C).
Seen = tuple[str, int, torch.Tensor]


class BackboneNorms:
    """The layers, those of the supernet by segment; ``above`` are those of the neck, if it has any."""

    def __init__(self, backbone: nn.Module, supernet: Supernet) -> None:
        self._every = {n: m for n, m in backbone.named_modules() if isinstance(m, _BatchNorm)}
        inside = set(supernet.modules())
        self.above = {n: m for n, m in self._every.items() if m not in inside}
        self._names = {norm: name for name, norm in self._every.items()}
        self._of_segments: dict[str, dict[str, _BatchNorm]] = {}
        self._before = {n: (m.running_mean, m.running_var) for n, m in self._every.items()}

    def of(self, segment: Segment) -> dict[str, _BatchNorm]:
        """The layers that a segment runs through."""
        if segment.name not in self._of_segments:
            norms = [module for _, module in segment.modules() if isinstance(module, _BatchNorm)]
            self._of_segments[segment.name] = {self._names[norm]: norm for norm in norms}
        return self._of_segments[segment.name]

    def use(self, norms: Mapping[str, _BatchNorm], statistics: Statistics) -> None:
        """Let these layers normalise by the statistics, or by their own where there are none."""
        for name, norm in norms.items():
            norm.running_mean, norm.running_var = statistics.get(name, self._before[name])

    def use_for_all(self, statistics: Statistics) -> None:
        """The same for every layer; with no statistics all are as they were."""
        self.use(self._every, statistics)

    @contextmanager
    def recording(self) -> Iterator[list[Seen]]:
        """Inside, the layers normalise by their batch's own statistics and append them to the list.

        Nothing is synchronised between ranks, and no running statistics change.
        """
        seen: list[Seen] = []

        def forward_of(name: str, norm: _BatchNorm) -> Callable[[torch.Tensor], torch.Tensor]:
            def forward(x: torch.Tensor) -> torch.Tensor:
                output, mean, invstd = torch.native_batch_norm(
                    x, norm.weight, norm.bias, None, None, True, 0.0, norm.eps
                )
                seen.append((name, x.numel() // x.shape[1], torch.stack([mean, invstd])))
                return output

            return forward

        for name, norm in self._every.items():
            norm.forward = forward_of(name, norm)  # hides the class's, until it is deleted
        try:
            yield seen
        finally:
            for norm in self._every.values():
                del norm.forward

    def pooled(
        self, name: str, batches: Sequence[tuple[int, np.ndarray]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Statistics of a layer over its batches together, given what was seen of each."""
        norm = self._every[name]
        counts = np.array([[count] for count, _ in batches])
        means, invstds = np.stack([of for _, of in batches], axis=1).astype(np.float64)
        total, variances = counts.sum(), 1 / invstds**2 - norm.eps
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / max(total - 1, 1)
        to = norm.running_mean
        return torch.from_numpy(mean).to(to), torch.from_numpy(variance).to(to)
