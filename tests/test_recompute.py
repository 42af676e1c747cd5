"""MODEL.CRNAS.RECOMPUTE: the same training in less memory; and what is said when memory is full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import FAMILIES, TINY, assert_same_weights, tiny_config
from torch.autograd.graph import saved_tensors_hooks

from crnas_d2.config import read_config
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.errors import MemoryIsFull
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.search_hook import SearchHook
from detectron2.modeling import build_backbone

SUPERNETS = ("", "stage", "dilation", "joint")


def out_of_memory(*_: Any) -> Any:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("supernet", SUPERNETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_statistics_are_the_same_to_the_bit(family: str, supernet: str) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]] = []
    for recompute in (False, True):
        options = ["MODEL.CRNAS.SHARED", supernet == "joint", "MODEL.CRNAS.RECOMPUTE", recompute]
        cfg = read_config("", [*TINY, *FAMILIES[family], "MODEL.CRNAS.SUPERNET", supernet, *options])
        torch.manual_seed(0)
        backbone, kept = build_backbone(cfg), 0
        searched = find_supernet(backbone)
        if searched is not None:
            searched.set_path(searched.space.sample(seed=1, iteration=2))

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(output.square().mean() for output in backbone(images).values())
        loss.backward()
        gradients = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
        found.append((gradients, backbone.state_dict(), kept))
    (plain, state, much), (again, same, less) = found
    assert plain and less < 0.7 * much
    assert_same_weights(again, plain)
    assert_same_weights(same, state)


def test_training_goes_on_with_it(tmp_path: Path) -> None:
    """--resume may change it, since nothing of the run does."""
    for name, keys in (("plain", [False, False]), ("changed", [False, True])):
        for recompute, iterations in zip(keys, (4, 6)):
            options = ["MODEL.CRNAS.RECOMPUTE", recompute, "MODEL.CRNAS.SUPERNET", "stage"]
            cfg = tiny_config(tmp_path / "data", tmp_path / name, *options)
            trainer = SupernetTrainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.max_iter = iterations
            trainer.train()
    plain, changed = (torch.load(tmp_path / n / "model_final.pth") for n in ("plain", "changed"))
    assert_same_weights(changed["model"], plain["model"])


def test_a_training_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = DetectionTrainer(tiny_config(tmp_path / "data", tmp_path / "out"))
    monkeypatch.setattr(trainer.model, "forward", out_of_memory)
    trainer.resume_or_load(resume=False)
    with pytest.raises(MemoryIsFull) as caught:
        trainer.train()
    assert str(caught.value) == (
        "iteration 0: the GPU's memory is too small: lower SOLVER.IMS_PER_BATCH 2 or INPUT's sizes, "
        "raise SOLVER.ACCUMULATE 1, or set MODEL.CRNAS.RECOMPUTE True, which --resume may change"
    )


def test_scoring_that_does_not_fit(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", "MODEL.CRNAS.SUPERNET", "stage")
    trainer = SupernetTrainer(cfg)
    trainer.register_hooks([SearchHook(out_of_memory)])
    trainer.resume_or_load(resume=False)
    with pytest.raises(MemoryIsFull) as caught:
        trainer.train()
    assert str(caught.value).startswith("scoring: the GPU's memory is too small: lower SEARCH.EVAL.")
