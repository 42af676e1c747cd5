"""Fixed batches of a data set, formed once for all processes and dealt to them.

Any number of processes sees the very same batches, so what is computed per batch and put together in
batch order is the same to the bit. Images are decoded and resized once and kept, as long as they fit;
the others are read again each time, in a thread, while the batch before is worked on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, TypeVar

import torch

from crnas_d2.seeding import derive_seed
from detectron2.utils import comm

T = TypeVar("T")
Inputs = list[dict[str, Any]]  # what a detectron2 detector takes


class FixedBatches:
    """Batches of images of similar shape, in a fixed order, dealt to the processes in a random one.

    A portion of archval is a part of the random order, so that every process has its share of it.

    Args:
        dicts: detectron2 data set dicts.
        mapper: from such a dict to a detector's input, with the ``image`` as a tensor.
        batch_size: images in a batch; the last one may have fewer.
        cache_bytes: of this process for images; from the first batch that does not fit, none is kept.
        kept_on: the device in whose memory the images are kept.
        seed: of the order in which batches are dealt.

    Attributes:
        image_ids: of each batch, those of other processes, too.
        dealt: batch numbers; the i-th of them belongs to rank i % world.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        batch_size: int,
        cache_bytes: float = math.inf,
        kept_on: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        order = sorted(dicts, key=lambda d: (d["height"], d["width"], str(d["image_id"])))
        chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.image_ids = [[record["image_id"] for record in chunk] for chunk in chunks]
        shuffled = random.Random(derive_seed(seed, "dealt"))
        self.dealt = shuffled.sample(range(len(chunks)), len(chunks))
        self._mapper = mapper
        mine = sorted(self.dealt[comm.get_rank() :: comm.get_world_size()])
        self._chunks = [(number, chunks[number]) for number in mine]
        self._kept: list[Inputs] = []  # of the first chunks
        for _, chunk in self._chunks:
            inputs = self._read(chunk)
            cache_bytes -= sum(record["image"].nbytes for record in inputs)
            if cache_bytes < 0:
                break
            self._kept.append([{**r, "image": r["image"].to(kept_on)} for r in inputs])

    def _read(self, chunk: Sequence[dict[str, Any]]) -> Inputs:
        return [self._mapper(record) for record in chunk]

    def mine(self, numbers: Container[int] | None = None) -> Iterator[tuple[int, Inputs]]:
        """(batch number, inputs) of this process's share.

        Args:
            numbers: of the batches that are wanted; by default all.
        """
        kept = len(self._kept)
        wanted = [
            place
            for place, (number, _) in enumerate(self._chunks)
            if numbers is None or number in numbers
        ]
        to_read = [place for place in wanted if place >= kept]
        with ThreadPoolExecutor(max_workers=1) as reader:

            def start() -> list[Future[Inputs]]:
                return [reader.submit(self._read, self._chunks[place][1]) for place in to_read[:1]]

            ahead = start()
            for place in wanted:
                if place < kept:
                    inputs = self._kept[place]
                else:
                    inputs = ahead.pop().result()
                    del to_read[0]
                    ahead = start()
                yield self._chunks[place][0], inputs


def gather_in_order(mine: Sequence[tuple[int, T]], everywhere: bool = True) -> list[T]:
    """What all processes computed per batch, in batch order.

    Args:
        mine: (batch number, result) of this process's share.
        everywhere: on every process; else on rank 0, and nothing on the others.
    """
    gather = comm.all_gather if everywhere else comm.gather
    everyone = [pair for part in gather(list(mine)) for pair in part]
    return [result for _, result in sorted(everyone, key=lambda pair: pair[0])]
