#!/usr/bin/env python
"""Peak memory of training the stage supernet, against its largest subnet trained alone.

    python benchmarks/memory.py [--config-file configs/BCCD/search.yaml] [--json PATH]

Each trains in a process of its own on the same generated images, with momentum; the baseline is
detectron2's DefaultTrainer. The supernet first trains every branch once, so that all have their
momentum, and then its largest path. Measured is what training adds to a process that has built nothing
yet: on a GPU the peak of what torch allocates, on the CPU the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import config_of, generated_data, parser_of, show

from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import stage_space_of
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage

LARGEST = 3  # steps on the largest path, after all branches had one


def in_use(cfg: CfgNode) -> int:
    """Bytes: on a GPU what torch has allocated, on the CPU the resident set."""
    if torch.device(cfg.MODEL.DEVICE).type == "cuda":
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak(cfg: CfgNode) -> int:
    if torch.device(cfg.MODEL.DEVICE).type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def paths(cfg: CfgNode) -> list[Architecture]:
    """Every branch once, then the largest path."""
    space = stage_space_of(cfg)
    most = max(map(len, space.depths))
    codes = [[depths[min(i, len(depths) - 1)] for depths in space.depths] for i in range(most)]
    return [Architecture.undilated(space.family, code) for code in [*codes, *[codes[-1]] * LARGEST]]


def train(cfg: CfgNode, kind: str) -> None:
    """In a process of its own: print the bytes."""
    taken = paths(cfg)
    if kind == "alone":
        cfg.MODEL.CRNAS.SUPERNET, cfg.MODEL.CRNAS.STAGE_CODE = "", list(taken[-1].stage_code)
    before = in_use(cfg)
    trainer = SupernetTrainer(cfg) if kind == "supernet" else DefaultTrainer(cfg)
    supernet = find_supernet(trainer.model)
    with EventStorage(0) as trainer.storage:
        for trainer.iter, path in enumerate(taken):
            if supernet is not None:
                supernet.set_path(path)
            trainer.run_step()
    parameters = sum(p.nbytes for p in trainer.model.parameters())
    print(json.dumps({"peak": peak(cfg) - before, "parameters": parameters}))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--train", choices=("supernet", "alone"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(config_of(args, [], test=False), args.train)
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = generated_data(folder, size=(240, 320))
        for kind in ("alone", "supernet"):
            command = [sys.executable, __file__, "--config-file", args.config_file, "--train", kind]
            printed = subprocess.check_output([*command, *args.opts, *data], text=True)
            found[kind] = json.loads(printed.splitlines()[-1])
        cfg = read_config(args.config_file, args.opts)
    parameters = {kind: each["parameters"] for kind, each in found.items()}
    setting = f"{args.config_file}, {paths(cfg)[-1]}, batch {cfg.SOLVER.IMS_PER_BATCH} of 240x320, "
    setting += f"{cfg.MODEL.DEVICE}, bytes"
    peaks = found["alone"]["peak"], found["supernet"]["peak"]
    show(args.json, *peaks, setting, parameters=parameters)


if __name__ == "__main__":
    main()
