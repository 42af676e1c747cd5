"""Pre-training: a network of the search first learns to classify, by SEARCH.PRETRAIN (paper, A.1).

    OUTPUT_DIR/pretrain/    checkpoints of the classifier, below the OUTPUT_DIR of its detector

The classification config gives data, schedule and input; the network is the detector's own.
"""

from __future__ import annotations

import logging
from pathlib import Path

from crnas_d2.engine.setup import check_same_run, write_config
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.pipeline.configs import pretrain_config
from detectron2.config import CfgNode
from detectron2.utils import comm


def pretrained(cfg: CfgNode, path: str, resume: bool) -> CfgNode:
    """Train the detector's network as a classifier, unless that is done.

    Args:
        cfg: of a detector, with a supernet or a fixed network.
        path: of the classification config; empty: ``cfg`` is returned as it is.

    Returns:
        a frozen copy of ``cfg`` whose MODEL.WEIGHTS are the classifier's.
    """
    if not path:
        return cfg
    run = pretrain_config(cfg, path)
    run.freeze()
    with_weights = cfg.clone()
    with_weights.defrost()
    with_weights.MODEL.WEIGHTS = str(Path(run.OUTPUT_DIR) / "model_final.pth")
    with_weights.freeze()
    if resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
        return with_weights  # the detector has begun, so the classifier is done
    if resume:
        check_same_run(run)
    write_config(run)
    logging.getLogger(__name__).info("pre-training in %s", run.OUTPUT_DIR)
    trainer = (SupernetTrainer if run.MODEL.CRNAS.SUPERNET else DetectionTrainer)(run)
    trainer.resume_or_load(resume)
    trainer.train()
    comm.synchronize()  # rank 0 has written the weights
    return with_weights
