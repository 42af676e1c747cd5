"""Images of archval with their objects, what the baseline detects, and what the found network does.

OUTPUT_DIR/report/pictures/NUMBER_OF.jpg   written anew with each report, once there are weights
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from crnas_d2.data.datasets import load_coco, register_coco
from crnas_d2.engine.detector import Detector
from crnas_d2.files import write_atomically
from crnas_d2.report.folder import RunFolder
from crnas_d2.report.networks import Compared
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import Visualizer

IMAGES = 4
SIDE = 400  # pixels, of the longer one at most
THRESHOLD = 0.5  # of the scores that are drawn
OBJECTS = "objects"


class Cannot(Exception):
    """Why there are no pictures, in words."""


class Picture(NamedTuple):
    """Of an image: its objects, or what a network detects."""

    image: str  # name of its file
    shows: str  # objects, or the network's name
    path: Path


def pictures(run: RunFolder, networks: Mapping[str, Compared]) -> list[Picture]:
    """Of the first images of archval that have objects. Raises Cannot."""
    weights = {name: _weights_of(run, network) for name, network in networks.items()}
    split, folder = run.path / "splits" / "archval.json", run.path / "report" / "pictures"
    if run.cfg is None or not split.is_file():
        raise Cannot("the split has not been written yet")
    root = run.cfg.DATASETS.TRAIN_IMAGES or MetadataCatalog.get(run.cfg.DATASETS.TRAIN[0]).image_root
    archval = f"archval of {run.path.resolve()}"
    register_coco(archval, str(split), root)
    records = [r for r in load_coco(archval, str(split), root) if r["annotations"]][:IMAGES]
    if missing := [r["file_name"] for r in records if not Path(r["file_name"]).is_file()]:
        raise Cannot(f"{missing[0]} is not there any more")
    metadata = MetadataCatalog.get(archval)
    classes = metadata.thing_classes
    detectors = {name: _detector(networks[name], weights[name], classes) for name in networks}
    found = []
    for number, record in enumerate(records):
        image = read_image(record["file_name"], "RGB")
        drawn = {OBJECTS: Visualizer(image, metadata).draw_dataset_dict(record).get_image()}
        drawn |= {name: detector.draw(image)[0] for name, detector in detectors.items()}
        for name, visual in drawn.items():
            path = folder / f"{number}_{name.replace(' ', '_')}.jpg"
            _write(path, visual)
            found.append(Picture(Path(record["file_name"]).name, name, path))
    return found


def _weights_of(run: RunFolder, network: Compared) -> Path:
    """Weights that were made on archtrain. Raises Cannot: there are none."""
    name = str(network.architecture).replace("/", "_")
    alone = sorted(run.path.glob(f"trainings/archtrain_*/{name}/model_final.pth"))
    kind = "baseline" if network.name.startswith("baseline") else "found"
    for path in (*alone, *sorted(run.path.glob(f"{kind}*.pth"))):
        return path
    raise Cannot(f"there are no weights of {network.name}, {network.architecture}")


def _detector(network: Compared, weights: Path, classes: Sequence[str]) -> Detector:
    if network.cfg is None:
        raise Cannot("the base config is not there any more")
    cfg = network.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    return Detector(cfg, classes, THRESHOLD)


def _write(path: Path, image: np.ndarray) -> None:
    """As JPEG."""
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    write_atomically(path, lambda file: picture.save(file, format="JPEG", quality=85))
