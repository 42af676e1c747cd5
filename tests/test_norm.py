"""Which BatchNorm a backbone has; what it computes over processes is in test_distributed.py."""

from __future__ import annotations

import pytest

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
