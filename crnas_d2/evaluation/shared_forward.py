"""Several paths forwarded together: what they have in common is computed once.

Paths are walked as a tree of segments (crnas_d2/modeling/backbone/supernet.py), depth first, so that
only the features along one branch are in memory. Each segment sees the input that it would see if its
path were forwarded alone, so results are bit-exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from crnas_d2.modeling.backbone.supernet import Segment

Members = Sequence[int]  # numbers, in the sequence of paths, of those that share a segment
Run = Callable[[Segment, Members, torch.Tensor], torch.Tensor]
Features = dict[str, torch.Tensor]  # by stage name


def walk(
    paths: Sequence[Sequence[Segment]], x: torch.Tensor, run: Run
) -> Iterator[tuple[int, Features]]:
    """Forward every path over images (N, C, H, W); (number of the path, its features).

    Args:
        run: called once for each segment that one or several paths share.
    """

    def below(
        members: Members, depth: int, x: torch.Tensor, features: Features
    ) -> Iterator[tuple[int, Features]]:
        shared: dict[str, list[int]] = {}
        for member in members:
            if depth == len(paths[member]):
                yield member, features
            else:
                shared.setdefault(paths[member][depth].name, []).append(member)
        for sharing in shared.values():
            segment = paths[sharing[0]][depth]
            y = run(segment, sharing, x)
            completed = {segment.output: y} if segment.output else {}
            yield from below(sharing, depth + 1, y, {**features, **completed})

    yield from below(range(len(paths)), 0, x, {})
