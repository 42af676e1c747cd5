"""Several paths forwarded together: what they have in common is computed once.

Paths are walked as a tree of segments (crnas_d2/modeling/backbone/supernet.py), depth first, one batch of images at
a time, so that nothing is stored but the features along the branch at hand. Each segment sees the very
input that it would see if its path were forwarded alone, so results are equal to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from crnas_d2.modeling.backbone.supernet import Segment

Members = tuple[int, ...]  # places, in the sequence of paths, of those that share a segment
Run = Callable[[Segment, Members, torch.Tensor], torch.Tensor]


def walk(
    paths: Sequence[Sequence[Segment]], x: torch.Tensor, run: Run
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Forward every path over the images; (place of the path, its features by stage name).

    Args:
        paths: the segments of each path.
        x: images, (N, C, H, W).
        run: called once for each segment that one or several paths share, with their places.
    """

    def below(
        members: Members, depth: int, x: torch.Tensor, features: dict[str, torch.Tensor]
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        shared: dict[str, list[int]] = {}
        for member in members:
            if depth == len(paths[member]):
                yield member, features
            else:
                shared.setdefault(paths[member][depth].name, []).append(member)
        for places in shared.values():
            segment = paths[places[0]][depth]
            y = run(segment, tuple(places), x)
            completed = {segment.output: y} if segment.output else {}
            yield from below(tuple(places), depth + 1, y, {**features, **completed})

    yield from below(tuple(range(len(paths))), 0, x, {})


class MacCounter:
    """Multiply-accumulates of the backbone's convolutions, as run and as they would be one by one.

    Attributes:
        shared: what was run.
        alone: what each path by itself would have taken.
    """

    def __init__(self) -> None:
        self.shared = 0
        self.alone = 0
        self._known: dict[tuple[str, torch.Size], int] = {}

    def knows(self, segment: Segment, x: torch.Tensor) -> bool:
        """Whether it is known what a segment takes for images of that shape."""
        return (segment.name, x.shape) in self._known

    def learn(self, segment: Segment, x: torch.Tensor) -> torch.Tensor:
        """Run a segment and find out, by hooks, what it takes."""
        y, self._known[segment.name, x.shape] = _counted(segment, x)
        return y

    def run(self, segment: Segment, members: Members, x: torch.Tensor) -> torch.Tensor:
        """Run a segment that ``members`` share and count it."""
        y = segment(x) if self.knows(segment, x) else self.learn(segment, x)
        macs = self._known[segment.name, x.shape]
        self.shared += macs
        self.alone += macs * len(members)
        return y


def _counted(segment: Segment, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    macs = 0

    def count(conv: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += output.numel() * conv.in_channels // conv.groups * math.prod(conv.kernel_size)

    convs = [module for _, module in segment.modules() if isinstance(module, nn.Conv2d)]
    handles = [conv.register_forward_hook(count) for conv in convs]
    try:
        return segment(x), macs
    finally:
        for handle in handles:
            handle.remove()
