"""Fixed batches of a data set, the same for any number of ranks, and distributed to them.

So what is computed per batch and put together in batch order is bit-exact. Images are decoded once and
cached, as long as they fit; others are read each time, in a thread, while the batch before is in use.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from crnas_d2.seeding import derive_seed
from detectron2.utils import comm

T = TypeVar("T")
Record = dict[str, Any]  # of a data set, or a detectron2 detector's input


class FixedBatches:
    """Batches of images of similar shape; the last one may have fewer.

    ``mapper`` makes a detector's input of a detectron2 data set dict, with the ``image`` as a tensor.
    From the first batch on that exceeds ``cache_bytes``, of this process, no image is cached.

    Attributes:
        image_ids: of each batch, those of other ranks, too.
        order: batch numbers in random order; the i-th belongs to rank i % world, so that every rank
            has its share of any portion.
    """

    def __init__(
        self,
        dicts: Sequence[Record],
        mapper: Callable[[Record], Record],
        batch_size: int,
        cache_bytes: float = math.inf,
        seed: int = 0,
    ) -> None:
        by_shape = sorted(dicts, key=lambda d: (d["height"], d["width"], str(d["image_id"])))
        self._mapper = mapper
        batches = [by_shape[i : i + batch_size] for i in range(0, len(by_shape), batch_size)]
        self.image_ids = [[record["image_id"] for record in batch] for batch in batches]
        shuffled = random.Random(derive_seed(seed, "order of batches"))
        self.order = shuffled.sample(range(len(batches)), len(batches))
        mine = sorted(self.order[comm.get_rank() :: comm.get_world_size()])
        self._mine = {number: batches[number] for number in mine}
        self._cached: dict[int, list[Record]] = {}
        for number in mine:
            inputs = self._inputs(number)
            cache_bytes -= sum(record["image"].nbytes for record in inputs)
            if cache_bytes < 0:
                break
            self._cached[number] = inputs

    def _inputs(self, number: int) -> list[Record]:
        return self._cached.get(number) or [self._mapper(record) for record in self._mine[number]]

    def mine(self, numbers: Container[int] | None = None) -> Iterator[tuple[int, list[Record]]]:
        """(batch number, inputs) of this rank's share, ascending; of all batches or of some."""
        wanted = [number for number in self._mine if numbers is None or number in numbers]
        with ThreadPoolExecutor(max_workers=1) as reader:
            reading = (reader.submit(self._inputs, number) for number in wanted)
            ahead = deque(islice(reading, 1))
            for number in wanted:
                ahead.extend(islice(reading, 1))  # submits one more
                yield number, ahead.popleft().result()


def gather_in_order(mine: Sequence[tuple[int, T]]) -> list[T]:
    """What all ranks computed per batch, in batch order; ``mine``: (batch number, result)."""
    every = [pair for part in comm.all_gather(list(mine)) for pair in part]
    return [result for _, result in sorted(every, key=lambda pair: pair[0])]
