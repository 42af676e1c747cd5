"""Run by torchrun (or alone) from test_distributed.py: writes gradients, paths and scores to a file.

python two_processes.py CONFIG_YAML OUT_FILE MODE
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torchvision.ops import boxes as box_ops
from trained import scores_of

from crnas_d2.config import read_config
from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.data.datasets import use_own_data
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.launch import from_environment, join, leave
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.pipeline.scorer import Split, build_scorer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

ITERATIONS = 3


@contextmanager
def detectors_in_float64() -> Iterator[None]:
    """torchvision's NMS in float32: it refuses detectron2's mix of float32 boxes and float64 scores."""
    batched_nms = box_ops.batched_nms

    def in_float32(boxes: torch.Tensor, scores: torch.Tensor, *rest: Any) -> torch.Tensor:
        return batched_nms(boxes.float(), scores.float(), *rest)

    with mock.patch.object(box_ops, "batched_nms", in_float32):
        yield


def gradients(trainer: SupernetTrainer) -> dict:
    """Paths, and averaged gradients in float64, of the first iterations; weights stay as they are."""
    trainer.model.double()
    trainer.optimizer.step = lambda: None
    supernet = find_supernet(trainer.model)
    paths, averaged = [], []
    with detectors_in_float64(), EventStorage(0) as trainer.storage:
        for trainer.iter in range(ITERATIONS):
            trainer._trainer.iter = trainer.iter
            trainer._hooks[0].before_step()
            trainer.run_step()
            paths.append(str(supernet.path))
            parameters = trainer.model.named_parameters()
            averaged.append({name: p.grad for name, p in parameters if p.grad is not None})
    return {"paths": paths, "gradients": averaged, "buffers": dict(trainer.model.named_buffers())}


def scores(trainer: SupernetTrainer, cfg) -> dict:
    """Scores of a few paths with MODEL.WEIGHTS, and forward passes of each rank."""
    trainer.resume_or_load(resume=False)
    content = read_coco_json(cfg.DATASETS.TEST_JSON, "")
    split = Split(cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0], content)
    scorer = build_scorer(cfg, split, trainer.model)
    space = find_supernet(trainer.model).space
    groups = [[space.sample(0, i) for i in range(3)]]
    if cfg.MODEL.CRNAS.SUPERNET == "dilation":
        groups += [[space.root.extended([1])], [space.root.extended([2, 0])]]
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    trainer.model.backbone.register_forward_hook(count)
    found = [score for group in groups for score in scores_of(scorer, group)]
    return {"scores": found, "forwards": comm.all_gather(forwards)}


def main(config: str, out: str, mode: str) -> None:
    cfg = read_config(config, [])
    process = from_environment(os.environ)
    if process is not None:
        join(process, cfg.MODEL.DEVICE)
    use_own_data(cfg)
    torch.set_num_threads(cfg.NUM_THREADS)
    trainer = SupernetTrainer(cfg)
    found = gradients(trainer) if mode == "gradients" else scores(trainer, cfg)
    of_ranks = comm.all_gather(found if mode == "scores" else {"paths": found["paths"]})
    if comm.is_main_process():
        torch.save({**found, "ranks": of_ranks}, out)
    comm.synchronize()
    if process is not None:
        leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
