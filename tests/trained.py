"""What tests of scoring share: a supernet that detects something, and scores of its paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectors import tiny_config
from torch import nn

from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.engine.trainer import SupernetTrainer
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.pipeline.scorer import Split, build_scorer
from detectron2.config import CfgNode


def trained(tmp_path: Path, kind: str, *overrides: Any) -> tuple[CfgNode, Split, nn.Module]:
    """A supernet trained so far that its detections score above 0; archval is the test set."""
    options = ["MODEL.CRNAS.SUPERNET", kind, "SOLVER.MAX_ITER", 60, "SOLVER.IMS_PER_BATCH", 4]
    options += ["SOLVER.BASE_LR", 0.02, "SOLVER.CHECKPOINT_PERIOD", 1000]
    cfg = tiny_config(tmp_path / "data", tmp_path / kind, *options, *overrides)
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    content = read_coco_json(cfg.DATASETS.TEST_JSON, "DATASETS.TEST_JSON")
    trainer = SupernetTrainer(cfg)
    trainer.train()
    return cfg, Split(train, test, content), trainer.model


def scores_of(scorer: ArchvalScorer, group: Any) -> list[float]:
    """Of a group, on all of archval; whatever is on disk."""
    for portion in range(len(scorer.images)):
        scorer.detect(group, portion)
    return [scores[0] for scores in scorer.scores(group, len(scorer.images) - 1)]


def scores(cfg: CfgNode, split: Split, detector: nn.Module, group: Any) -> list[float]:
    return scores_of(build_scorer(cfg, split, detector), group)
