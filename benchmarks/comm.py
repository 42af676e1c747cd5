#!/usr/bin/env python
"""Bytes of gradients that a training step of the stage supernet sends, against DistributedDataParallel.

    python benchmarks/comm.py [--config-file configs/Shapes/search.yaml] [--steps 5] [--json PATH]

Two processes on the CPU (gloo) train the same model on the same batches and paths: once with our
trainer, once wrapped in DistributedDataParallel with find_unused_parameters. Counted are the bytes that
a process averages in a step; DDP's in its communication hook. ratio: ours over the path's parameters,
which are those of the subnet as a network of its own. What SyncBN and logging exchange is the same in
both, and not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import config_of, generated_data, parser_of, show
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from crnas_d2.data.datasets import use_own_data
from crnas_d2.engine import gradients
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.launch import Process, from_options, join, leave
from crnas_d2.modeling.backbone.supernet import find_supernet
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventStorage


def averaged_bytes(trainer: SupernetTrainer) -> int:
    """What this process hands over to be averaged in a step of ours."""
    sent: list[int] = []
    average, all_reduce = gradients.average, dist.all_reduce

    def counted(tensor: torch.Tensor) -> None:
        sent.append(tensor.nbytes)
        all_reduce(tensor)

    def averaging(tensors: Any) -> None:
        with mock.patch.object(dist, "all_reduce", counted):
            average(tensors)

    with mock.patch.object(gradients, "average", averaging):
        trainer.run_step()
    return sum(sent)


def path_bytes(cfg: CfgNode, stage_code: tuple[int, ...]) -> int:
    """Of the trainable parameters of a subnet as a network of its own."""
    alone = cfg.clone()
    alone.MODEL.CRNAS.SUPERNET = ""
    alone.MODEL.CRNAS.STAGE_CODE = list(stage_code)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(alone.MODEL.META_ARCHITECTURE)(alone)
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def with_ddp(trainer: SupernetTrainer, steps: int) -> list[int]:
    """Bytes of the buckets of each backward pass."""
    sent = [0] * steps

    def hook(group, bucket):  # torch looks at annotations, and they would be text here
        sent[trainer.iter] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    model = DistributedDataParallel(trainer.model, find_unused_parameters=True, broadcast_buffers=False)
    model.register_comm_hook(None, hook)
    with EventStorage(0):
        for trainer.iter, data in zip(range(steps), trainer.data_loader):  # noqa: B020
            trainer._hooks[0].before_step()  # draws the path
            trainer.optimizer.zero_grad(set_to_none=True)
            sum(model(data).values()).backward()
    return sent


def measure(rank: int, processes: list[Process], cfg: CfgNode, steps: int, out: str) -> None:
    """In one of the processes; rank 0 writes what came out."""
    join(processes[rank], "cpu")
    torch.set_num_threads(1)
    use_own_data(cfg, test=False)  # registered in each process
    trainer = SupernetTrainer(cfg)
    supernet = find_supernet(trainer.model)
    rows = []
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(steps):
            trainer._hooks[0].before_step()
            ours = averaged_bytes(trainer)
            rows.append({"path": path_bytes(cfg, supernet.path.stage_code), "ours": ours})
    for row, sent in zip(rows, with_ddp(trainer, steps)):
        row["ddp"] = sent
    if rank == 0:
        Path(out).write_text(json.dumps(rows), encoding="utf-8")
    dist.barrier()
    leave()


def main() -> None:
    parser = parser_of(__doc__, "configs/Shapes/search.yaml")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
        cfg = config_of(args, [], [*generated_data(folder, size=(96, 96)), *here], test=False)
        two = argparse.Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
        out = f"{folder}/rows.json"
        mp.spawn(measure, (from_options(two), cfg, args.steps, out), nprocs=2)
        rows = json.loads(Path(out).read_text(encoding="utf-8"))
    total = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    ratios = {
        "ratio": max(row["ours"] / row["path"] for row in rows),
        "ratio_ddp": min(row["ddp"] / row["path"] for row in rows),
    }
    setting = f"{args.config_file}, {args.steps} steps, 2 processes, "
    setting += f"batch {cfg.SOLVER.IMS_PER_BATCH}, bytes a step of one process"
    show(args.json, total["ddp"], total["ours"], setting, path=total["path"], **ratios)


if __name__ == "__main__":
    main()
