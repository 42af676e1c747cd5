"""Which BatchNorm a backbone has; what it computes over processes is in test_distributed.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from crnas_d2 import launch
from crnas_d2.launch import Process
from crnas_d2.modeling.backbone import norm
from crnas_d2.modeling.backbone.norm import UnbiasedSyncBatchNorm, resolve_norm
from detectron2.layers import BatchNorm2d, get_norm


@pytest.mark.parametrize(
    ("processes", "device", "expected"),
    [
        (1, "cpu", "BN"),
        (1, "cuda", "BN"),
        (2, "cuda", "SyncBN"),
        (8, "cuda:1", "SyncBN"),
        (2, "cpu", UnbiasedSyncBatchNorm),
    ],
)
def test_auto(processes: int, device: str, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm.comm, "get_world_size", lambda: processes)
    assert resolve_norm("auto", device) == expected
    assert resolve_norm("FrozenBN", device) == "FrozenBN"


def test_all_kinds_have_the_same_weights() -> None:
    """So that a checkpoint of eight GPUs loads on one."""
    keys = [set(get_norm(n, 8).state_dict()) for n in ("BN", "SyncBN", UnbiasedSyncBatchNorm)]
    assert keys[0] == keys[1] == keys[2]
    assert issubclass(UnbiasedSyncBatchNorm, BatchNorm2d)


def train_a_norm(rank: int, out: Path) -> None:
    """On images of each rank's own size, then on those of one size."""
    launch.join(Process(rank, 2, rank, 2, f"file://{out}/meet"), "cpu", minutes=1)
    layer = UnbiasedSyncBatchNorm(3).train()
    draws = torch.Generator().manual_seed(0)
    different = [torch.randn(1, 3, 2, side, generator=draws) for side in (2, 3)]
    same = torch.randn(2, 3, 2, 2, generator=draws)
    layer(different[rank])
    found = [layer.running_var.clone()]
    layer.reset_running_stats()
    layer(same[rank : rank + 1])
    alone = torch.nn.BatchNorm2d(3)
    alone(same)
    torch.save([*found, layer.running_var, alone.running_var], out / f"{rank}.pt")
    launch.leave()


def test_two_processes_have_the_same_running_variances(tmp_path: Path) -> None:
    """Also where the sizes of their images differ."""
    mp.spawn(train_a_norm, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for one, other in zip(first, second):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(first[1], first[2])
