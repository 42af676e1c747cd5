"""Data set dicts that rank 0 reads and all ranks hold as bytes, without Python objects of their own."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch.distributed as dist

from detectron2.utils import comm

T = TypeVar("T")


class Records(Sequence):
    """Rank 0's ``dicts``, whatever the other ranks pass; pickled, as in detectron2's DatasetFromList.

    DataLoader workers share the bytes with their process.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]]) -> None:
        pickled = [pickle.dumps(record, protocol=-1) for record in dicts]
        self._ends, self._data = from_main((list(accumulate(map(len, pickled))), b"".join(pickled)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._data[start : self._ends[index]])


def from_main(value: T) -> T:
    """Rank 0's value, on every rank."""
    shared = [value]
    if comm.get_world_size() > 1:  # gloo: NCCL would need GPU memory
        dist.broadcast_object_list(shared, src=0, group=comm._get_global_gloo_group())
    return shared[0]
