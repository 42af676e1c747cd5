"""Images of archval with their objects, what the baseline detects, and what the found network does.

OUTPUT_DIR/report/pictures/NUMBER_OF.jpg   written anew with each report, where there are weights
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from crnas_d2.data.datasets import load_coco, register_coco
from crnas_d2.engine.detector import check_detector
from crnas_d2.errors import InputError
from crnas_d2.files import write_atomically
from crnas_d2.report.folder import RunFolder
from crnas_d2.report.networks import Compared
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image

IMAGES = 4
SIDE = 640  # pixels that the longer side is drawn with: labels keep their size
THRESHOLD = 0.5  # of the scores that are drawn
OBJECTS = "objects"


class Cannot(Exception):
    """Why there are no pictures, in words."""


class Picture(NamedTuple):
    """Of an image: its objects, or what a network detects."""

    image: str  # name of its file
    shows: str  # objects, or the network's name
    path: Path


def pictures(run: RunFolder, networks: Sequence[Compared]) -> list[Picture]:
    """Of the first images of archval that have objects, for networks with weights. Raises Cannot."""
    try:  # OpenCV, which a search itself does not need
        from crnas_d2.engine.drawing import Detector
        from detectron2.utils.visualizer import Visualizer
    except ImportError as error:
        raise Cannot(f"{error}; pip install opencv-python, and tools/report.py draws them") from error
    split, folder = run.path / "splits" / "archval.json", run.path / "report" / "pictures"
    if run.cfg is None or not split.is_file():
        raise Cannot("the split has not been written yet")
    root = run.cfg.DATASETS.TRAIN_IMAGES
    if not root:
        root = MetadataCatalog.get(run.cfg.DATASETS.TRAIN[0]).get("image_root", "")
    if run.starts:
        root = str(Path(run.starts[-1]["folder"], root))  # that it is relative to
    archval = f"archval of {run.path.resolve()} in {root}"
    register_coco(archval, str(split), root)
    records = [r for r in load_coco(archval, str(split), root) if r["annotations"]][:IMAGES]
    if not records:
        raise Cannot("no image of archval has objects")
    if missing := [r["file_name"] for r in records if not Path(r["file_name"]).is_file()]:
        raise Cannot(f"{missing[0]} is not there")
    metadata = MetadataCatalog.get(archval)
    configs = {network.name: _config(network) for network in networks}
    names = metadata.thing_classes
    try:
        detectors = {name: Detector(cfg, names, THRESHOLD) for name, cfg in configs.items()}
    except InputError as error:
        raise Cannot(str(error)) from error
    found = []
    for number, record in enumerate(records):
        image = read_image(record["file_name"], "RGB")
        scale = SIDE / max(image.shape[:2])
        drawn = {OBJECTS: Visualizer(image, metadata, scale).draw_dataset_dict(record).get_image()}
        drawn |= {name: detector.draw(image, scale)[0] for name, detector in detectors.items()}
        for name, visual in drawn.items():
            path = folder / f"{number}_{name.replace(' ', '_')}.jpg"
            _write(path, visual)
            found.append(Picture(Path(record["file_name"]).name, name, path))
    return found


def _config(network: Compared) -> CfgNode:
    assert network.cfg is not None
    cfg = network.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(network.weights)
    try:
        check_detector(cfg)
    except InputError as error:
        raise Cannot(f"{network.name}: {error}") from error
    return cfg


def _write(path: Path, image: np.ndarray) -> None:
    """As JPEG."""
    picture = Image.fromarray(image)
    write_atomically(path, lambda file: picture.save(file, format="JPEG", quality=80))
