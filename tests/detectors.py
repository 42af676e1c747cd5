"""What tests of training and scoring share: a tiny detector's config and pictures to feed it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from crnas_d2.config import read_config
from crnas_d2.data.datasets import use_own_data
from crnas_d2.data.shapes import make_shapes
from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parent.parent
# Faster R-CNN with FPN, as small as it goes: a training step takes a few hundredths of a second.
TINY = [
    *("MODEL.BACKBONE.NAME", "build_crnas_fpn_backbone"),
    *("MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.WEIGHTS", ""),
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.CRNAS.STEM_CHANNELS", 4),
    *("MODEL.CRNAS.WIDTHS", [4, 6, 8, 12]),
    *("MODEL.CRNAS.STAGE_SPACE", [[1, 2], [1, 2], [1, 2], [1, 2]]),
    *("MODEL.CRNAS.STAGE_CODE", [1, 2, 1, 1]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
    *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 50),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 60),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 30),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3),
    *("INPUT.MIN_SIZE_TRAIN", [96]),
    *("INPUT.MAX_SIZE_TRAIN", 96),
    *("INPUT.MIN_SIZE_TEST", 96),
    *("INPUT.MAX_SIZE_TEST", 96),
    *("DATALOADER.NUM_WORKERS", 0),
    *("SOLVER.IMS_PER_BATCH", 2),
    *("SOLVER.BASE_LR", 0.01),
    *("SOLVER.MAX_ITER", 6),
    *("SOLVER.STEPS", []),
    *("SOLVER.WARMUP_ITERS", 2),
    *("SOLVER.CHECKPOINT_PERIOD", 2),
    *("SEARCH.BUDGETS", [5]),
    *("SEARCH.ARCHVAL.SIZE", 4),
    *("SEARCH.EVAL.RECALIBRATION_IMAGES", 4),
    *("SEARCH.EVAL.BATCH_SIZE", 2),
    *("NUM_THREADS", 1),
    *("SEED", 3),
]


# On top of TINY: the families.
FAMILIES = {
    "resnet": [],
    "resnet_basic": ["MODEL.CRNAS.FAMILY", "resnet_basic"],
    "resnext": [
        *("MODEL.CRNAS.FAMILY", "resnext"),
        *("MODEL.CRNAS.NUM_GROUPS", 2),
        *("MODEL.CRNAS.WIDTH_PER_GROUP", 32),
    ],
    "mobilenetv2": [
        *("MODEL.CRNAS.FAMILY", "mobilenetv2"),
        *("MODEL.CRNAS.WIDTHS", [4, 6, 8, 8, 12, 14, 16, 24]),
        *("MODEL.CRNAS.STAGE_CODE", [1, 1, 1, 2, 1, 2, 1, 1, 1, 1]),
        *("MODEL.CRNAS.STAGE_SPACE", [[1], [1], [1, 2], [1, 2], [1, 2], [1, 2], [1], [1], [1], [1]]),
        *("SEARCH.BUDGETS", [7.25]),
    ],
}
# On top of TINY: other detectors over our backbones.
HEADS = {
    "FasterRCNN": ["MODEL.BACKBONE.NAME", "build_crnas_fpn_backbone"],
    "MaskRCNN": [
        *("MODEL.MASK_ON", True),
        *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
        *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("INPUT.MASK_FORMAT", "bitmask"),
    ],
    "RetinaNet": [
        *("MODEL.META_ARCHITECTURE", "RetinaNet"),
        *("MODEL.BACKBONE.NAME", "build_crnas_retinanet_fpn_backbone"),
        *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.RETINANET.NUM_CLASSES", 3),
        *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"]),
    ],
    "NASFPN": [
        *("MODEL.BACKBONE.NAME", "build_crnas_nas_fpn_backbone"),
        *("MODEL.NAS_FPN.NUM_CELLS", 2),
        *("MODEL.FPN.NORM", "auto"),
        *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"]),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5"]),
    ],
    "CascadeMaskRCNN": [
        *("MODEL.MASK_ON", True),
        *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
        *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("INPUT.MASK_FORMAT", "bitmask"),
        *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ],
}


# On top of TINY: all anchors and the same number of proposals of every image enter the losses, so that
# nothing is drawn and the loss of a batch is the mean of those of its images.
FULL_QUOTAS = [
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 4096, "MODEL.RPN.POSITIVE_FRACTION", 1.0),
    *("MODEL.RPN.NMS_THRESH", 0.95, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 60),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 60, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
    *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False, "MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.1]),
]


def tiny_shapes(folder: Path) -> list[Any]:
    """A dozen pictures of 96x96, and the KEY VALUE pairs that name them."""
    make_shapes(folder, 12, 4, seed=1, size=(96, 96))
    return [
        *("DATASETS.TRAIN_JSON", str(folder / "train.json")),
        *("DATASETS.TRAIN_IMAGES", str(folder / "images")),
        *("DATASETS.TEST_JSON", str(folder / "val.json")),
        *("DATASETS.TEST_IMAGES", str(folder / "images")),
    ]


def tiny_yaml(path: Path) -> Path:
    """The tiny config as a file, for --config-file."""
    path.write_text(read_config("", TINY).dump())
    return path


def tiny_config(data: Path, output: Path, *overrides: Any) -> CfgNode:
    """A tiny config on tiny shapes, its folder made; not frozen."""
    output.mkdir(parents=True, exist_ok=True)
    options = [*TINY, *tiny_shapes(data), "OUTPUT_DIR", str(output), *overrides]
    cfg = read_config("", options)
    use_own_data(cfg)
    return cfg


def assert_same_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Of two state dicts: the same names, and bit-exact values."""
    assert found.keys() == expected.keys()
    assert all(found[key].equal(value) for key, value in expected.items())


def command_line(options: list[Any]) -> list[str]:
    """KEY VALUE pairs as a shell passes them."""
    return [option if isinstance(option, str) else repr(option) for option in options]


def run_script(*arguments: Any, folder: Path = ROOT) -> str:
    """What a script prints that is started in a folder as a user does, and succeeds."""
    done = subprocess.run(
        [sys.executable, *command_line([*arguments])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
