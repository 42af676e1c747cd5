"""Masks on genuine COCO photographs: Mask R-CNN with CR-ResNet50 overfits eight of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectors import ROOT, command_line

CONFIG = ROOT / "configs" / "COCO-InstanceSegmentation" / "mask_rcnn_CR_R_50_FPN_1x.yaml"
# A quarter of the width everywhere; no augmentation, so that there are eight pictures and no more.
QUARTER = [
    *("MODEL.CRNAS.WIDTH_MULTIPLIER", 0.25, "MODEL.FPN.OUT_CHANNELS", 64),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 256, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 64),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 64, "MODEL.ROI_MASK_HEAD.NUM_CONV", 2),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [24], [64], [128], [256]]),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 200, "MODEL.RPN.POST_NMS_TOPK_TEST", 200),
    *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2),  # the default, adaptive, takes longer
    *("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2),
    *("INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", [320], "INPUT.MAX_SIZE_TRAIN", 480),
    *("INPUT.MIN_SIZE_TEST", 320, "INPUT.MAX_SIZE_TEST", 480),
    *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 0.02, "SOLVER.WARMUP_ITERS", 50),
    *("SOLVER.MAX_ITER", 450, "SOLVER.STEPS", []),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", True),  # from scratch at this rate it diverges without
    *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0),
    *("SOLVER.CHECKPOINT_PERIOD", 10000, "DATALOADER.NUM_WORKERS", 0),
    *("MODEL.DEVICE", "cpu", "NUM_THREADS", 2, "SEED", 0),
]


def first_images(source: Path, count: int) -> dict[str, object]:
    """The JSON with the first images by id, and their annotations."""
    content = json.loads(source.read_text())
    kept = sorted(content["images"], key=lambda image: image["id"])[:count]
    ids = {image["id"] for image in kept}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return {**content, "images": kept, "annotations": annotations}


@pytest.mark.slow
def test_mask_rcnn_overfits_eight_coco_images(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "eight.json"
    path.write_text(json.dumps(first_images(shared_data / "coco_open" / "train.json", 8)))
    own: list[object] = []
    for side in ("TRAIN", "TEST"):
        own += [f"DATASETS.{side}_JSON", str(path)]
        own += [f"DATASETS.{side}_IMAGES", str(shared_data / "coco_open" / "images")]
    options = command_line([*QUARTER, *own, "OUTPUT_DIR", str(tmp_path / "output")])
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(CONFIG), *options]
    environ = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert metrics["bbox/AP50"] > 80, metrics
    assert metrics["segm/AP50"] > 70, metrics
