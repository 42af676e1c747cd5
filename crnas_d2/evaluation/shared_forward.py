"""Several paths forwarded together: what they have in common is computed once.

Paths are walked as a tree of segments (crnas_d2/modeling/backbone/supernet.py), depth first, one batch
of images at a time, so that only the features along one branch are in memory. Each segment sees the
input that it would see if its path were forwarded alone, so results are bit-exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from crnas_d2.modeling.backbone.supernet import Segment

Members = tuple[int, ...]  # numbers, in the sequence of paths, of those that share a segment
Run = Callable[[Segment, Members, torch.Tensor], torch.Tensor]


def walk(
    paths: Sequence[Sequence[Segment]], x: torch.Tensor, run: Run
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Forward every path over the images; (number of the path, its features by stage name).

    Args:
        paths: the segments of each path.
        x: images, (N, C, H, W).
        run: called once for each segment that one or several paths share, with their numbers.
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
        for sharing in shared.values():
            segment = paths[sharing[0]][depth]
            y = run(segment, tuple(sharing), x)
            completed = {segment.output: y} if segment.output else {}
            yield from below(tuple(sharing), depth + 1, y, {**features, **completed})

    yield from below(tuple(range(len(paths))), 0, x, {})
