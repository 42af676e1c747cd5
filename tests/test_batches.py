"""Fixed batches: formed once, cached as far as they fit, distributed to ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from crnas_d2.evaluation.batches import FixedBatches

SEVEN = [{"image_id": i, "height": 10 + i % 3, "width": 10} for i in range(7)]
IN_THREES = [[0, 3, 6], [1, 4, 2], [5]]


def mapping(mapped: list[int]) -> Any:
    """A mapper that notes what it reads; each image has 30 bytes."""

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        mapped.append(record["image_id"])
        return {**record, "image": torch.zeros(30, dtype=torch.uint8)}

    return mapper


@pytest.mark.parametrize(
    ("images", "kept"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (7, 7), (math.inf, 7)]
)
def test_what_does_not_fit_is_read_again(images: float, kept: int) -> None:
    mapped: list[int] = []
    batches = FixedBatches(SEVEN, mapping(mapped), batch_size=3, cache_bytes=images * 30)
    assert mapped == [0, 3, 6, 1, 4, 2, 5][: kept + 3]
    mapped.clear()
    for _ in range(2):
        assert [[r["image_id"] for r in batch] for _, batch in batches.mine()] == IN_THREES
    in_order = [i for batch in IN_THREES for i in batch]
    assert mapped == 2 * in_order[kept:]


@pytest.mark.parametrize("kept", [0, 3, 7])
def test_some_batches(kept: int) -> None:
    """Those asked for, in order, and no other image is read."""
    mapped: list[int] = []
    batches = FixedBatches(SEVEN, mapping(mapped), batch_size=3, cache_bytes=kept * 30)
    assert batches.image_ids == IN_THREES
    for numbers in ([2, 0], [1], []):
        mapped.clear()
        found = [(n, [r["image_id"] for r in batch]) for n, batch in batches.mine(numbers)]
        assert found == [(n, IN_THREES[n]) for n in sorted(numbers)]
        assert mapped == [i for n in sorted(numbers) for i in IN_THREES[n] if 3 * n >= kept]


def test_an_image_that_cannot_be_read_again_is_an_error() -> None:
    dicts = [dict(record) for record in SEVEN]
    batches = FixedBatches(dicts, mapping([]), batch_size=3, cache_bytes=0)
    dicts[-1].clear()
    with pytest.raises(KeyError):
        list(batches.mine())


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_share_the_batches(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """In a random order, of which every rank has its share of any part, give or take one."""
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world)
    dicts = [{"image_id": i, "height": 9, "width": 9} for i in range(147)]
    shares, orders = [], set()
    for rank in range(world):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        batches = FixedBatches(dicts, mapping([]), batch_size=2)
        shares.append({number for number, _ in batches.mine()})
        orders.add(tuple(batches.order))
    (order,) = orders
    assert sorted(order) == list(range(74)) != list(order)
    for part in (order[:12], order[12:40], order):
        lengths = [len(share.intersection(part)) for share in shares]
        assert sum(lengths) == len(part) and max(lengths) - min(lengths) <= 1
