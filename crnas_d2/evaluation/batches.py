"""Fixed batches of a data set, formed once for all processes and dealt to them.

Any number of processes sees the very same batches, so what is computed per batch and put together in
batch order is the same to the bit. Images are decoded and resized once and kept in host memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable, TypeVar

from detectron2.utils import comm

T = TypeVar("T")
Inputs = list[dict[str, Any]]  # what a detectron2 detector takes


class FixedBatches:
    """Batches of images of similar shape, in a fixed order; batch i belongs to rank i % world.

    Args:
        dicts: detectron2 data set dicts.
        mapper: from such a dict to a detector's input; each image is mapped once.
        batch_size: images in a batch; the last one may have fewer.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        batch_size: int,
    ) -> None:
        order = sorted(dicts, key=lambda d: (d["height"], d["width"], str(d["image_id"])))
        chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.count = len(chunks)
        self._mine = [
            (number, [mapper(record) for record in chunk])
            for number, chunk in enumerate(chunks)
            if number % comm.get_world_size() == comm.get_rank()
        ]

    def mine(self) -> Iterator[tuple[int, Inputs]]:
        """(batch number, inputs) of this process's share."""
        yield from self._mine


def gather_in_order(mine: Sequence[tuple[int, T]]) -> list[T]:
    """What all processes computed per batch, in batch order, on every process.

    Args:
        mine: (batch number, result) of this process's share.
    """
    everyone = [pair for part in comm.all_gather(list(mine)) for pair in part]
    return [result for _, result in sorted(everyone, key=lambda pair: pair[0])]
