"""From a config and a trained supernet to the scorer: archval, recalibration images, the metric."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crnas_d2.data.loader import NamingMapper
from crnas_d2.data.splits import recalibration_ids
from crnas_d2.engine.trainer import seed_of
from crnas_d2.errors import InputError
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.matching import GroundTruth
from crnas_d2.evaluation.path_detector import PathDetector
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.search.race import PORTIONS
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts

AMP = {"": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # by SEARCH.EVAL.AMP
RATES = 3  # batches of recalibration in which every rate is drawn once


@dataclass(frozen=True)
class Split:
    """What is scored on.

    Attributes:
        recalibration, archval: names of registered data sets; recalibration may have more images than
            are needed.
        archval_content: of its COCO JSON.
    """

    recalibration: str
    archval: str
    archval_content: dict[str, Any]


def ground_truth(cfg: CfgNode, archval_content: dict[str, Any]) -> GroundTruth:
    """What SEARCH.EVAL.TASK and METRIC measure over archval.

    Raises:
        InputError: archval cannot give it.
    """
    task, metric = cfg.SEARCH.EVAL.TASK, cfg.SEARCH.EVAL.METRIC
    return GroundTruth(archval_content, task, metric, max(100, cfg.TEST.DETECTIONS_PER_IMAGE))


def check_scoring(cfg: CfgNode, archtrain_images: int, archval_content: dict[str, Any]) -> None:
    """What the scorer will need is there.

    Raises:
        InputError: archval cannot give the metric, or too few images for recalibration.
    """
    ground_truth(cfg, archval_content)
    if cfg.SEARCH.EVAL.RECALIBRATION_IMAGES and archtrain_images < RATES:
        raise InputError(
            f"SEARCH.EVAL.RECALIBRATION_IMAGES: {cfg.SEARCH.EVAL.RECALIBRATION_IMAGES}: archtrain has "
            f"{archtrain_images} images; at least {RATES} are needed, one for each dilation rate, or 0"
        )


def build_scorer(cfg: CfgNode, split: Split, detector: nn.Module) -> ArchvalScorer:
    """The scorer of a supernet's paths on archval; images are decoded here, once."""
    seed, options = seed_of(cfg), cfg.SEARCH.EVAL
    form = functools.partial(
        FixedBatches,
        mapper=NamingMapper(DatasetMapper(cfg, is_train=False)),
        cache_bytes=options.CACHE_GB * 1e9,
        seed=seed,
    )
    archval = get_detection_dataset_dicts(split.archval, filter_empty=False)
    known = get_detection_dataset_dicts(split.recalibration, filter_empty=False)
    by_id = {record["image_id"]: record for record in known}
    images = [by_id[i] for i in recalibration_ids(by_id, options.RECALIBRATION_IMAGES, seed)]
    # Few images make smaller batches, at least three: fewer would leave rates without statistics.
    recalibration = form(images, batch_size=max(1, min(options.BATCH_SIZE, len(images) // RATES)))
    return ArchvalScorer(
        PathDetector(detector, recalibration, seed, AMP[options.AMP], options.CHANNELS_LAST),
        form(archval, batch_size=options.BATCH_SIZE),
        ground_truth(cfg, split.archval_content),
        Path(cfg.OUTPUT_DIR) / "matches",
        PORTIONS if cfg.SEARCH.RACE.CONFIDENCE else (1.0,),
        seed,
    )
