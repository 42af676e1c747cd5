"""Data set dicts that rank 0 reads and all ranks hold as bytes, without Python objects of their own."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from detectron2.utils import comm


class Records(Sequence):
    """Rank 0's ``dicts``, pickled one by one into one array, as in detectron2's DatasetFromList.

    What the other ranks pass does not count. DataLoader workers share the array with their process.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]]) -> None:
        pickled = [pickle.dumps(record, protocol=-1) for record in dicts]
        self._ends = from_main(np.cumsum([len(data) for data in pickled], dtype=np.int64))
        self._data = from_main(np.frombuffer(bytearray().join(pickled), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._data[start : self._ends[index]].tobytes())


def from_main(array: np.ndarray) -> np.ndarray:
    """Rank 0's one-dimensional array, on every rank; those of the others count for their type alone."""
    if comm.get_world_size() == 1:
        return array
    group = comm._get_global_gloo_group()  # NCCL would need GPU memory
    size = torch.tensor([len(array)])
    dist.broadcast(size, src=0, group=group)
    tensor = torch.from_numpy(array if comm.is_main_process() else np.empty(int(size), array.dtype))
    dist.broadcast(tensor, src=0, group=group)
    return tensor.numpy()
