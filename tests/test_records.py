"""Data set dicts read by rank 0: every rank has them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from crnas_d2.data.loader import Records
from detectron2.structures import BoxMode

DICTS: list[dict[str, Any]] = [
    {"image_id": i, "annotations": [{"bbox": [i, 0.5], "bbox_mode": BoxMode.XYWH_ABS}] * (i % 3)}
    for i in range(7)
]


def work(rank: int, world: int, folder: str, count: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    records = Records([] if rank else DICTS[:count])
    same = [records[i] for i in range(len(records))] == DICTS[:count]
    (Path(folder) / f"{rank}.json").write_text(json.dumps([same, len(records)]))
    dist.barrier()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_alone(count: int) -> None:
    records = Records(DICTS[:count])
    assert [records[i] for i in range(len(records))] == DICTS[:count]


@pytest.mark.parametrize("count", [0, 7])
def test_two_processes(tmp_path: Path, count: int) -> None:
    mp.spawn(work, (2, str(tmp_path), count), nprocs=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [True, count]
