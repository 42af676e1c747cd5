"""From a config and a trained supernet to the scorer: archval and recalibration batches, the metric."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crnas_d2.data.loader import NamingMapper
from crnas_d2.engine.trainer import seed_of
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.evaluation.batches import FixedBatches
from crnas_d2.evaluation.coco import CocoMetric
from crnas_d2.seeding import derive_seed
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, get_detection_dataset_dicts

AMP = {"": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # by SEARCH.EVAL.AMP


@dataclass(frozen=True)
class Split:
    """Names of the registered parts of the training set, and archval's COCO JSON content."""

    archtrain: str
    archval: str
    archval_content: dict[str, Any]


def recalibration_images(
    dicts: Sequence[dict[str, Any]], count: int, seed: int
) -> list[dict[str, Any]]:
    """A fixed choice of ``count`` images, whatever their order; all, if there are fewer."""

    def key(record: dict[str, Any]) -> tuple[int, str]:
        image = str(record["image_id"])
        return derive_seed(seed, "recalibration", image), image

    return sorted(dicts, key=key)[:count]


def build_metric(cfg: CfgNode, split: Split) -> CocoMetric:
    """The metric of SEARCH.EVAL.TASK and SEARCH.EVAL.METRIC over archval.

    Raises:
        InputError: archval cannot give it.
    """
    return CocoMetric(split.archval_content, cfg.SEARCH.EVAL.TASK, cfg.SEARCH.EVAL.METRIC)


def build_scorer(cfg: CfgNode, split: Split, detector: nn.Module) -> ArchvalScorer:
    """The scorer of a supernet's paths on archval; images are decoded here, once."""
    seed = seed_of(cfg)
    mapper = NamingMapper(DatasetMapper(cfg, is_train=False))
    form = functools.partial(
        FixedBatches,
        mapper=mapper,
        batch_size=cfg.SEARCH.EVAL.BATCH_SIZE,
        cache_bytes=cfg.SEARCH.EVAL.CACHE_GB * 1e9,
        seed=seed,
    )
    archval = get_detection_dataset_dicts(split.archval, filter_empty=False)
    archtrain = get_detection_dataset_dicts(split.archtrain, filter_empty=False)
    contiguous = MetadataCatalog.get(split.archval).thing_dataset_id_to_contiguous_id
    return ArchvalScorer(
        detector,
        form(archval),
        form(recalibration_images(archtrain, cfg.SEARCH.EVAL.RECALIBRATION_IMAGES, seed)),
        build_metric(cfg, split),
        sorted(contiguous, key=contiguous.get),
        seed,
        amp=AMP[cfg.SEARCH.EVAL.AMP],
        channels_last=cfg.SEARCH.EVAL.CHANNELS_LAST,
    )
