#!/usr/bin/env python
"""Train or evaluate a detector or a classifier: a fixed network, a found.yaml, or a supernet.

    python train_net.py --config-file configs/BCCD/faster_rcnn_R_50.yaml OUTPUT_DIR output/baseline

Options are detectron2's, and stand before the pairs: --num-gpus, --resume, --eval-only.
"""

from __future__ import annotations

import argparse

from crnas_d2.engine.checkpoint import SafeCheckpointer
from crnas_d2.engine.setup import start_run, train_config
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.launch import run
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser


def work(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What each process does."""
    start_run(cfg, args)
    if args.eval_only:
        model = DetectionTrainer.build_model(cfg)
        SafeCheckpointer(model, cfg).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        DetectionTrainer.test(cfg, model)
        return
    trainer = (SupernetTrainer if cfg.MODEL.CRNAS.SUPERNET else DetectionTrainer)(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    run(train_config, work, default_argument_parser())
