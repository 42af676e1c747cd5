"""A step from its parts: passes of one batch, buckets of gradients, the scale of mixed precision."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectors import FULL_QUOTAS, HEADS, tiny_config
from torch import nn
from two_processes import detectors_in_float64

from crnas_d2.engine import gradients
from crnas_d2.engine.trainer import DetectionTrainer, StepTrainer, SupernetTrainer
from detectron2.layers import batched_nms
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

# Norms that take their statistics from the batch would see other batches.
EVEN = [*FULL_QUOTAS, "SOLVER.IMS_PER_BATCH", 4, "MODEL.CRNAS.NORM", "FrozenBN"]


def gradients_of(folder: Path, *options: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Of the first iteration in float64, which is not stepped; and its losses as they are logged."""
    trainer = DetectionTrainer(tiny_config(folder / "data", folder / "out", *EVEN, *options))
    trainer.model.double()
    trainer.optimizer.step = lambda: None
    with detectors_in_float64(), EventStorage(0) as storage:
        trainer.run_step()
        losses = {key: value for key, (value, _) in storage.latest().items() if "loss_" in key}
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}, losses


@pytest.mark.parametrize("passes", [2, 4])
def test_passes_add_up_to_the_batch(passes: int, tmp_path: Path) -> None:
    expected, losses = gradients_of(tmp_path)
    found, found_losses = gradients_of(tmp_path, "SOLVER.ACCUMULATE", passes)
    assert found_losses.keys() == losses.keys() and len(losses) == 4
    for name, loss in losses.items():
        rtol = 1e-6 if name == "loss_rpn_cls" else 1e-9  # detectron2 sums that one in float32
        assert found_losses[name] == pytest.approx(loss, rel=rtol), name
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert difference <= 1e-9, (name, float(difference))
    assert sum(bool(gradient.norm() > 0) for gradient in expected.values()) > len(expected) / 2


class Partly(nn.Module):
    """Three weights: rank 1 has no loss for ``some``, and no rank has one for ``none``."""

    loss_normalizer = 100.0

    def __init__(self) -> None:
        super().__init__()
        self.all, self.some, self.none = (nn.Parameter(torch.ones(2)) for _ in range(3))

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        rank = comm.get_rank()
        self.loss_normalizer += 10.0 * rank
        losses = {"loss_a": (rank + 1.0) * self.all.sum()}
        return {**losses, "loss_b": 4.0 * self.some.sum() if rank == 0 else torch.zeros(())}


def step_in_one_of_two(rank: int, meeting: str, out: Path) -> None:
    """Two iterations of a process that shares its gradients with another one."""
    place = {"init_method": f"file://{meeting}", "rank": rank, "world_size": 2}
    dist.init_process_group("gloo", timeout=timedelta(seconds=20), **place)
    comm._LOCAL_PROCESS_GROUP = dist.group.WORLD
    model = Partly()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    trainer = StepTrainer(model, [[{}]] * 2, optimizer, seed=0, amp=False, passes=1)
    with EventStorage(0):
        for trainer.iter in range(2):
            trainer.run_step()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save([gradients, model.state_dict(), model.loss_normalizer], out / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_with_gradients_for_different_parameters(tmp_path: Path) -> None:
    """Zeros count where a rank has none; what no rank has is not moved, by weight decay either."""
    start = mp.get_context("fork").Process  # torch and detectron2 are imported once
    arguments = [(rank, str(tmp_path / "meeting"), tmp_path) for rank in range(2)]
    processes = [start(target=step_in_one_of_two, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    gradients, weights, normalizer = first
    torch.testing.assert_close(gradients["all"], torch.full((2,), 1.5), rtol=0, atol=0)
    torch.testing.assert_close(gradients["some"], torch.full((2,), 2.0), rtol=0, atol=0)
    assert gradients["none"] is None and torch.equal(weights["none"], torch.ones(2))
    # SGD by hand: v = 0.9 v + gradient + 0.5 w; w -= 0.1 v
    for name, gradient in (("all", 1.5), ("some", 2.0)):
        w, v = 1.0, 0.0
        for _ in range(2):
            v = 0.9 * v + gradient + 0.5 * w
            w -= 0.1 * v
        torch.testing.assert_close(weights[name], torch.full((2,), w), rtol=1e-6, atol=0)
    assert normalizer == 110.0  # 100 and 110, then 105 and 115
    assert all(torch.equal(weights[name], second[1][name]) for name in weights)
    assert second[2] == normalizer


@pytest.mark.parametrize("kind", ["stage", "dilation"])
@pytest.mark.parametrize("head", ["FasterRCNN", "MaskRCNN", "RetinaNet", "NASFPN"])
def test_what_is_averaged(
    head: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path's and everything around the supernet; frozen ones and other branches are not sent."""
    options = ["MODEL.CRNAS.SUPERNET", kind, *HEADS[head]]
    trainer = SupernetTrainer(tiny_config(tmp_path / "data", tmp_path / "out", *options))
    supernet = trainer.model.backbone.bottom_up
    supernet.stem.requires_grad_(False)
    trainer.storage = EventStorage(0)
    trainer._hooks[0].before_step()
    with EventStorage(0):
        trainer.run_step()
    sent: list[list[torch.Tensor]] = []
    monkeypatch.setattr(gradients.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(gradients, "average", sent.append)
    gradients.average_gradients(trainer._trainer._parameters, torch.zeros(()))
    off_path = supernet.state_dict().keys() - supernet.subnet_keys(supernet.path).keys()
    named = dict(trainer.model.named_parameters())
    on_path = named.keys() - {f"backbone.bottom_up.{key}" for key in off_path}
    expected = {id(named[name].grad) for name in on_path if named[name].requires_grad}
    assert {id(gradient) for gradient in sent[1]} == expected and len(sent[1]) == len(expected)


def test_buckets_are_small_and_of_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is sent once, scalars included; the other process has three times the same."""
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
    monkeypatch.setattr(gradients, "BUCKET", 512)
    gradients.average(tensors)
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
    """The loss is finite, so training continues, with a smaller scale."""
    trainer = DetectionTrainer(tiny_config(tmp_path / "data", tmp_path / "out"))
    trainer._trainer._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with EventStorage(0):
        trainer.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    assert trainer._trainer._scaler.get_scale() < 2.0**127


def test_mixed_precision_may_be_switched_on_by_a_resumed_run(tmp_path: Path) -> None:
    """The state of a scaler that was off is empty, which one that is on refuses."""
    trainer = DetectionTrainer(tiny_config(tmp_path / "data", tmp_path / "out"))
    state = trainer.state_dict()
    trainer._trainer._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.load_state_dict(state)
    assert trainer._trainer._scaler.get_scale() == 8.0


def test_nms_is_torchvisions_again() -> None:
    """Outside detectors_in_float64 it refuses what that lets through."""
    boxes, scores, ids = torch.rand(2, 4), torch.rand(2, dtype=torch.float64), torch.zeros(2)
    with detectors_in_float64():
        assert batched_nms(boxes, scores, ids, 0.5).dtype == torch.int64
    with pytest.raises(RuntimeError, match="same type"):
        batched_nms(boxes, scores, ids, 0.5)
