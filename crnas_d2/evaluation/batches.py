"""Fixed batches of a data set, formed once for all ranks and distributed to them.

Any number of ranks sees the same batches, so what is computed per batch and put together in batch order
is bit-exact. Images are decoded and resized once and cached, as long as they fit; the others are read
again each time, in a thread, while the batch before is in use.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, TypeVar

from crnas_d2.seeding import derive_seed
from detectron2.utils import comm

T = TypeVar("T")
Inputs = list[dict[str, Any]]  # what a detectron2 detector takes


class FixedBatches:
    """Batches of images of similar shape; the last one may have fewer.

    Args:
        dicts: detectron2 data set dicts.
        mapper: from such a dict to a detector's input, with the ``image`` as a tensor.
        cache_bytes: of this process; no image is cached from the first batch on that does not fit.
        seed: of ``order``.

    Attributes:
        image_ids: of each batch, those of other ranks, too.
        order: batch numbers in random order; the i-th belongs to rank i % world, so that every rank
            has its share of any portion.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        batch_size: int,
        cache_bytes: float = math.inf,
        seed: int = 0,
    ) -> None:
        by_shape = sorted(dicts, key=lambda d: (d["height"], d["width"], str(d["image_id"])))
        chunks = [by_shape[i : i + batch_size] for i in range(0, len(by_shape), batch_size)]
        self.image_ids = [[record["image_id"] for record in chunk] for chunk in chunks]
        shuffled = random.Random(derive_seed(seed, "order of batches"))
        self.order = shuffled.sample(range(len(chunks)), len(chunks))
        self._mapper = mapper
        mine = sorted(self.order[comm.get_rank() :: comm.get_world_size()])
        self._chunks = {number: chunks[number] for number in mine}
        self._cached: dict[int, Inputs] = {}
        for number, chunk in self._chunks.items():
            inputs = self._read(chunk)
            cache_bytes -= sum(record["image"].nbytes for record in inputs)
            if cache_bytes < 0:
                break
            self._cached[number] = inputs

    def _read(self, chunk: Sequence[dict[str, Any]]) -> Inputs:
        return [self._mapper(record) for record in chunk]

    def mine(self, numbers: Container[int] | None = None) -> Iterator[tuple[int, Inputs]]:
        """(batch number, inputs) of this rank's share, ascending; of all batches or of some."""
        wanted = [number for number in self._chunks if numbers is None or number in numbers]
        to_read = (self._chunks[number] for number in wanted if number not in self._cached)
        with ThreadPoolExecutor(max_workers=1) as reader:
            reading = (reader.submit(self._read, chunk) for chunk in to_read)  # begins when asked for
            ahead = next(reading, None)
            for number in wanted:
                inputs = self._cached.get(number)
                if inputs is None:
                    assert ahead is not None
                    inputs, ahead = ahead.result(), next(reading, None)
                yield number, inputs


def gather_in_order(mine: Sequence[tuple[int, T]]) -> list[T]:
    """What all ranks computed per batch, in batch order; ``mine``: (batch number, result)."""
    every = [pair for part in comm.all_gather(list(mine)) for pair in part]
    return [result for _, result in sorted(every, key=lambda pair: pair[0])]
