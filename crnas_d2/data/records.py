"""Data set dicts that one rank reads and all hold as bytes, without Python objects of their own."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from detectron2.utils import comm


class Records:
    """A sequence of dicts, pickled one by one into one array, as in detectron2's DatasetFromList.

    Rank 0 reads them; the other ranks receive the bytes, so that none of them needs memory or time for
    the JSON. DataLoader workers share the array with their process.

    Args:
        load: called on rank 0 only.
    """

    def __init__(self, load: Callable[[], Sequence[dict[str, Any]]]) -> None:
        ends, data = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8)
        if comm.is_main_process():
            pickled = [pickle.dumps(record, protocol=-1) for record in load()]
            ends = np.cumsum([len(part) for part in pickled], dtype=np.int64)
            data = np.frombuffer(b"".join(pickled), dtype=np.uint8)
        self._ends = from_main(ends)
        self._data = from_main(data)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._data[start : self._ends[index]].tobytes())


def from_main(array: np.ndarray) -> np.ndarray:
    """Rank 0's one-dimensional array, on every rank; those of the others count for their type alone."""
    if comm.get_world_size() == 1:
        return array
    group = comm._get_global_gloo_group()  # NCCL would need GPU memory
    size = torch.tensor([len(array)])
    dist.broadcast(size, src=0, group=group)
    if not comm.is_main_process():
        array = np.empty(int(size), dtype=array.dtype)
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    dist.broadcast(tensor, src=0, group=group)
    return tensor.numpy()
