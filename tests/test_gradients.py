"""A step from its parts: passes of one batch, buckets of gradients, the scale of mixed precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectors import tiny_config
from two_processes import detectors_in_float64

from crnas_d2.engine import gradients
from crnas_d2.engine.trainer import DetectionTrainer
from detectron2.layers import batched_nms
from detectron2.utils.events import EventStorage

# Every image fills its quota of proposals, as in test_distributed.py: losses are then means over
# equally many terms of each image. Norms that take their statistics from the batch have none here.
EVEN = [
    *("SOLVER.IMS_PER_BATCH", 4, "MODEL.CRNAS.NORM", "FrozenBN"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 100),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 16, "MODEL.RPN.NMS_THRESH", 0.95),
]


def gradients_of(folder: Path, *options: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Of the first iteration in float64, which is not stepped; and its loss as it is logged."""
    trainer = DetectionTrainer(tiny_config(folder / "data", folder / "out", *EVEN, *options))
    trainer.model.double()
    trainer.optimizer.step = lambda: None
    with detectors_in_float64(), EventStorage(0) as storage:
        trainer.run_step()
        loss = storage.latest()["total_loss"][0]
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}, loss


@pytest.mark.parametrize("passes", [2, 4])
def test_passes_add_up_to_the_batch(passes: int, tmp_path: Path) -> None:
    expected, loss = gradients_of(tmp_path)
    found, found_loss = gradients_of(tmp_path, "SOLVER.ACCUMULATE", passes)
    assert found_loss == pytest.approx(loss, rel=1e-9)
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert difference <= 1e-9, (name, float(difference))
    assert sum(bool(gradient.norm() > 0) for gradient in expected.values()) > len(expected) / 2


def test_buckets_are_small_and_of_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor goes once, scalars included; the other process has the same ones three times."""
    sent: list[tuple[torch.dtype, int]] = []

    def reduced(flat: torch.Tensor) -> None:
        sent.append((flat.dtype, flat.nbytes))
        flat *= 4

    monkeypatch.setattr(gradients.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", reduced)
    shapes = [(), (3, 5), (40, 10), (2,), (7, 7), (1,)]
    tensors = [torch.randn(shape, dtype=torch.float32) for shape in shapes]
    tensors += [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    expected = [2 * tensor for tensor in tensors]
    gradients.average(tensors, bucket=512)
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected))
    assert sum(size for _, size in sent) == sum(tensor.nbytes for tensor in tensors)
    largest = {torch.float32: 1600, torch.float64: 3200}
    assert all(size <= 512 or size == largest[dtype] for dtype, size in sent)
    assert len(sent) < len(tensors)


@pytest.mark.parametrize("clipping", ["value", "norm"])
def test_the_scale_is_off_the_gradients_when_they_are_clipped(clipping: str, tmp_path: Path) -> None:
    """A scale that is a power of two changes no bit of what a step does."""
    options = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clipping]
    options += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-3]
    weights = []
    for scaled in (False, True):
        cfg = tiny_config(tmp_path / "data", tmp_path / "out", *options)
        trainer = DetectionTrainer(cfg)
        if scaled:
            trainer._trainer._scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with EventStorage(0):
            trainer.run_step()
            trainer.run_step()
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights))


def test_a_gradient_that_overflows_under_the_scale_is_not_stepped(tmp_path: Path) -> None:
    """The loss is finite, so training goes on, with a smaller scale."""
    trainer = DetectionTrainer(tiny_config(tmp_path / "data", tmp_path / "out"))
    trainer._trainer._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with EventStorage(0):
        trainer.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    assert trainer._trainer._scaler.get_scale() < 2.0**127


def test_nms_is_torchvisions_again() -> None:
    """Outside detectors_in_float64 it refuses what that lets through."""
    boxes, scores, ids = torch.rand(2, 4), torch.rand(2, dtype=torch.float64), torch.zeros(2)
    with detectors_in_float64():
        assert batched_nms(boxes, scores, ids, 0.5).dtype == torch.int64
    with pytest.raises(RuntimeError, match="same type"):
        batched_nms(boxes, scores, ids, 0.5)
