#!/usr/bin/env python
"""A supernet's training step against the same subnet trained alone by detectron2's DefaultTrainer.

    python benchmarks/train_step.py [--config-file configs/BCCD/search.yaml] [--steps 30] [--json PATH]

Both train in one process on the same generated images, in turns, hooks and optimizer included. The
ratio is that of the medians of CPU seconds (all threads), which other work on the machine disturbs less
than wall seconds; those are printed, too.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import torch
from common import config_of, generated_data, parser_of, show

from crnas_d2.architecture import Architecture
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import architecture_of
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage


class OnePath(SupernetTrainer):
    """Samples a path in each iteration, as always, and then takes the one that is measured."""

    path: Architecture

    def run_step(self) -> None:
        find_supernet(self.model).set_path(self.path)
        super().run_step()


def step(trainer: DefaultTrainer, iteration: int) -> tuple[float, float]:
    """CPU and wall seconds of one iteration with its hooks."""
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.iter = iteration
    with trainer.storage:
        trainer.before_step()
        trainer.run_step()
        trainer.after_step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="measured steps of each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = generated_data(folder, size=(240, 320))
        steps = ["SOLVER.MAX_ITER", str(args.steps + 4), "SOLVER.CHECKPOINT_PERIOD", "1000000"]
        cfg = config_of(args, [], [*data, *steps])
        supernet = OnePath(cfg.clone())
        cfg.MODEL.CRNAS.SUPERNET = ""
        alone = DefaultTrainer(cfg)
        supernet.path = architecture_of(cfg)
        seconds: dict[str, list[tuple[float, float]]] = {"alone": [], "supernet": []}
        for trainer in (alone, supernet):
            trainer.max_iter = args.steps + 4
            trainer.storage = EventStorage(0)
            with trainer.storage:
                trainer.before_train()
        for i in range(args.steps + 3):
            for name, trainer in (("alone", alone), ("supernet", supernet)):
                measured = step(trainer, i)
                if i >= 3:  # the first steps allocate
                    seconds[name].append(measured)
    cpu = {name: statistics.median(c for c, _ in pairs) for name, pairs in seconds.items()}
    wall = {name: statistics.median(w for _, w in pairs) for name, pairs in seconds.items()}
    setting = f"{args.config_file}, {supernet.path}, {args.steps} steps, {cfg.NUM_THREADS} threads, "
    setting += f"batch {cfg.SOLVER.IMS_PER_BATCH}, {cfg.MODEL.DEVICE}"
    ratio_wall = wall["supernet"] / wall["alone"]
    show(args.json, cpu["alone"], cpu["supernet"], setting, ratio_wall=ratio_wall)


if __name__ == "__main__":
    main()
