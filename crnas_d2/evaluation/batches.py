"""Fixed batches of a data set, formed once for all processes and dealt to them.

Any number of processes sees the very same batches, so what is computed per batch and put together in
batch order is the same to the bit. Images are decoded and resized once and kept in host memory, as long
as they fit; the others are read again each time, in a thread, while the batch before is worked on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, TypeVar

from detectron2.utils import comm

T = TypeVar("T")
Inputs = list[dict[str, Any]]  # what a detectron2 detector takes


class FixedBatches:
    """Batches of images of similar shape, in a fixed order; batch i belongs to rank i % world.

    Args:
        dicts: detectron2 data set dicts.
        mapper: from such a dict to a detector's input, with the ``image`` as a tensor.
        batch_size: images in a batch; the last one may have fewer.
        cache_bytes: of this process for images; from the first batch that does not fit, none is kept.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        batch_size: int,
        cache_bytes: float = math.inf,
    ) -> None:
        order = sorted(dicts, key=lambda d: (d["height"], d["width"], str(d["image_id"])))
        chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.count = len(chunks)
        self._mapper = mapper
        self._chunks = [
            (number, chunk)
            for number, chunk in enumerate(chunks)
            if number % comm.get_world_size() == comm.get_rank()
        ]
        self._kept: list[Inputs] = []  # of the first chunks
        for _, chunk in self._chunks:
            inputs = self._read(chunk)
            cache_bytes -= sum(record["image"].nbytes for record in inputs)
            if cache_bytes < 0:
                break
            self._kept.append(inputs)

    def _read(self, chunk: Sequence[dict[str, Any]]) -> Inputs:
        return [self._mapper(record) for record in chunk]

    def mine(self) -> Iterator[tuple[int, Inputs]]:
        """(batch number, inputs) of this process's share."""
        kept = len(self._kept)
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = [reader.submit(self._read, chunk) for _, chunk in self._chunks[kept : kept + 1]]
            for (number, _), inputs in zip(self._chunks, self._kept):
                yield number, inputs
            for place in range(kept, len(self._chunks)):
                inputs = ahead.pop().result()
                ahead = [reader.submit(self._read, c) for _, c in self._chunks[place + 1 : place + 2]]
                yield self._chunks[place][0], inputs


def gather_in_order(mine: Sequence[tuple[int, T]]) -> list[T]:
    """What all processes computed per batch, in batch order, on every process.

    Args:
        mine: (batch number, result) of this process's share.
    """
    everyone = [pair for part in comm.all_gather(list(mine)) for pair in part]
    return [result for _, result in sorted(everyone, key=lambda pair: pair[0])]
