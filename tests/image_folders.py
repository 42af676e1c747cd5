"""What tests of classification share: labelled images of noisy colours, and a tiny classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from detectors import TINY
from PIL import Image

from crnas_d2.config import read_config
from crnas_d2.data.imagenet import register_image_folder
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

# Class folders and their mean colour, RGB.
COLOURS = {"n01": (200, 60, 60), "n02": (60, 200, 60), "n03": (60, 60, 200)}
HEIGHT, WIDTH = 40, 50
TINY_CLASSIFIER = [
    *("MODEL.META_ARCHITECTURE", "ImageClassifier"),
    *("MODEL.BACKBONE.NAME", "build_crnas_backbone"),
    *("MODEL.CRNAS.OUT_FEATURES", ["res5"]),
    *("MODEL.CLASSIFIER.NUM_CLASSES", len(COLOURS)),
    *("INPUT.CLASSIFIER_CROP", 32),
    *("INPUT.CLASSIFIER_TEST_RESIZE", 36),
]


def make_image_folder(folder: Path, per_class: int, seed: int = 0, names: Any = COLOURS) -> Path:
    """``per_class`` PNG pictures of 40x50 in each class folder, named as ImageNet's files."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            noise = rng.integers(-50, 51, (HEIGHT, WIDTH, 3))
            pixels = (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{number}.JPEG", format="PNG")
    return folder


def register(image_root: Path, class_root: Path) -> str:
    """A data set's name, which is its folder."""
    if str(image_root) not in DatasetCatalog.list():
        register_image_folder(str(image_root), str(image_root), str(class_root))
    return str(image_root)


def tiny_classifier(data: Path, output: Path, *overrides: Any) -> CfgNode:
    """A tiny classifier's config on a dozen images a class, its folder made; not frozen."""
    if not data.exists():
        make_image_folder(data / "train", 12)
        make_image_folder(data / "val", 4, seed=1)
    output.mkdir(parents=True, exist_ok=True)
    names = {split: register(data / split, data / "train") for split in ("train", "val")}
    sets = ["DATASETS.TRAIN", (names["train"],), "DATASETS.TEST", (names["val"],)]
    options = [*TINY, *TINY_CLASSIFIER, *sets, "OUTPUT_DIR", str(output), *overrides]
    return read_config("", options)
