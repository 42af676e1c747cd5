"""Pre-training: a network of the chain first learns to classify, by SEARCH.PRETRAIN (paper, A.1).

    OUTPUT_DIR/pretrain/    checkpoints of the classifier, below the OUTPUT_DIR of its detector

The classification config gives data, schedule and input; the network is the detector's own.
"""

from __future__ import annotations

import logging
from pathlib import Path

from crnas_d2.config import read_config
from crnas_d2.engine.setup import check_same_run, write_config
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import input_convention
from crnas_d2.modeling.meta_arch.classifier import ImageClassifier
from detectron2.config import CfgNode
from detectron2.utils import comm


def pretrain_config(cfg: CfgNode, path: str) -> CfgNode:
    """The classification config in ``path`` with the network of the detector's ``cfg``; not frozen.

    Raises:
        InputError: no classification config, one for another input, or weights that nobody would use.
    """
    run = read_config(path, [])
    if run.MODEL.META_ARCHITECTURE != ImageClassifier.__name__:
        raise InputError(
            f"SEARCH.PRETRAIN: {path}: has MODEL.META_ARCHITECTURE {run.MODEL.META_ARCHITECTURE!r}; "
            f"allowed is {ImageClassifier.__name__}"
        )
    if cfg.MODEL.WEIGHTS:
        raise InputError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS}: with SEARCH.PRETRAIN, which makes the weights, "
            "allowed is none"
        )
    features = run.MODEL.CRNAS.OUT_FEATURES
    run.MODEL.CRNAS, run.SEARCH = cfg.MODEL.CRNAS.clone(), cfg.SEARCH.clone()
    run.defrost()
    run.MODEL.CRNAS.OUT_FEATURES = features
    run.SEED, run.NUM_THREADS, run.MODEL.DEVICE = cfg.SEED, cfg.NUM_THREADS, cfg.MODEL.DEVICE
    run.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "pretrain")
    ours, theirs = input_convention(cfg), input_convention(run)
    if ours != theirs:
        raise InputError(
            f"SEARCH.PRETRAIN: {path}: classifies images as {theirs}, the detector sees {ours}; "
            "allowed is the same"
        )
    return run


def pretrained(cfg: CfgNode, path: str, resume: bool) -> CfgNode:
    """Train the detector's network as a classifier, unless that is done; a frozen copy of ``cfg``
    whose MODEL.WEIGHTS are the classifier's.

    Args:
        cfg: of a detector, with a supernet or a fixed network.
        path: of the classification config; empty: ``cfg`` as it is.
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
        return with_weights  # the detector is under way, so the classifier is done
    if resume:
        check_same_run(run)
    comm.synchronize()  # every process has looked before the first one writes
    write_config(run)
    logging.getLogger(__name__).info("pre-training in %s", run.OUTPUT_DIR)
    trainer = (SupernetTrainer if run.MODEL.CRNAS.SUPERNET else DetectionTrainer)(run)
    trainer.resume_or_load(resume)
    trainer.train()
    comm.synchronize()  # rank 0 has written them
    return with_weights
