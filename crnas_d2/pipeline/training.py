"""One training of a search: a detector's, whose network first learns to classify (paper, A.1) in
OUTPUT_DIR/pretrain if SEARCH.PRETRAIN gives data, schedule and input for that.
"""

from __future__ import annotations

import logging
from pathlib import Path

from crnas_d2.engine import progress
from crnas_d2.engine.setup import check_same_run, write_config
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.pipeline.configs import pretrain_config
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm


def train(cfg: CfgNode, pretrain: str, resume: bool, *hooks: HookBase) -> DetectionTrainer:
    """Train the network of a frozen config in its OUTPUT_DIR; the trainer, when it has ended.

    ``pretrain``: path of the classification config; empty: none.
    """
    write_config(cfg)
    if pretrain:
        cfg = pretrained(cfg, pretrain, resume)
    logging.getLogger(__name__).info("training in %s", cfg.OUTPUT_DIR)
    trainer = (SupernetTrainer if cfg.MODEL.CRNAS.SUPERNET else DetectionTrainer)(cfg)
    trainer.register_hooks(hooks)
    trainer.resume_or_load(resume)
    trainer.train()
    comm.synchronize()  # rank 0 has written the weights
    return trainer


def pretrained(cfg: CfgNode, path: str, resume: bool) -> CfgNode:
    """A copy of a detector's config whose MODEL.WEIGHTS are its classifier's, trained if it was not."""
    run = pretrain_config(cfg, path)
    run.freeze()
    if not resume or not (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():  # else it is done
        if resume:
            check_same_run(run)
        with progress.at("pretraining"):
            train(run, "", resume)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(run.OUTPUT_DIR) / "model_final.pth")
    cfg.freeze()
    return cfg
