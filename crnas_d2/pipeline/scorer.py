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
from detectron2.data import DatasetCatalog, DatasetMapper, get_detection_dataset_dicts

AMP = {"": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # by SEARCH.EVAL.AMP
RATES = 3  # batches of recalibration in which every rate is drawn once


@dataclass(frozen=True)
class Split:
    """What is scored on: names of registered data sets, and the content of archval's COCO JSON.

    ``recalibration`` may have more images than are needed.
    """

    recalibration: str
    archval: str
    archval_content: dict[str, Any]


def ground_truth(cfg: CfgNode, archval_content: dict[str, Any]) -> GroundTruth:
    """What SEARCH.EVAL.TASK and METRIC measure over archval. Raises InputError: it cannot give it."""
    options, detections = cfg.SEARCH.EVAL, max(100, cfg.TEST.DETECTIONS_PER_IMAGE)
    return GroundTruth(archval_content, options.TASK, options.METRIC, detections)


def check_scoring(cfg: CfgNode, archtrain_images: int, archval_content: dict[str, Any]) -> None:
    """Raise InputError if archval cannot give the metric, or archtrain has too few images."""
    ground_truth(cfg, archval_content)
    wanted = cfg.SEARCH.EVAL.RECALIBRATION_IMAGES
    if wanted and archtrain_images < RATES:
        raise InputError(
            f"SEARCH.EVAL.RECALIBRATION_IMAGES: {wanted}: archtrain has {archtrain_images} images; at "
            f"least {RATES} are needed, one for each dilation rate, or 0"
        )


def build_scorer(cfg: CfgNode, split: Split, detector: nn.Module) -> ArchvalScorer:
    """The scorer of a supernet's paths on archval; images are decoded here, once."""
    seed, options = seed_of(cfg), cfg.SEARCH.EVAL
    mapper, cache_bytes = NamingMapper(DatasetMapper(cfg, is_train=False)), options.CACHE_GB * 1e9
    form = functools.partial(FixedBatches, mapper=mapper, cache_bytes=cache_bytes, seed=seed)
    archval = get_detection_dataset_dicts(split.archval, filter_empty=False)
    by_id = {record["image_id"]: record for record in DatasetCatalog.get(split.recalibration)}
    images = [by_id[i] for i in recalibration_ids(by_id, options.RECALIBRATION_IMAGES, seed)]
    # Few images make smaller batches, at least three: fewer would leave rates without statistics.
    recalibration = form(images, batch_size=max(1, min(options.BATCH_SIZE, len(images) // RATES)))
    amp, portions = AMP[options.AMP], PORTIONS if cfg.SEARCH.RACE.CONFIDENCE else (1.0,)
    return ArchvalScorer(
        PathDetector(detector, recalibration, seed, amp, options.CHANNELS_LAST),
        form(archval, batch_size=options.BATCH_SIZE),
        ground_truth(cfg, split.archval_content),
        folder=Path(cfg.OUTPUT_DIR) / "matches",
        portions=portions,
        seed=seed,
    )
