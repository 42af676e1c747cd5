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
from crnas_d2.engine.setup import check_network
from crnas_d2.files import write_atomically
from crnas_d2.modeling.checkpoint.weights import difference, read_checkpoint
from crnas_d2.report.folder import RunFolder
from crnas_d2.report.networks import Compared
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import Visualizer

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
    predictors = {network.name: _predictor(network, archval) for network in networks}
    found = []
    for number, record in enumerate(records):
        image = read_image(record["file_name"], "RGB")
        scale = SIDE / max(image.shape[:2])
        drawn = {OBJECTS: Visualizer(image, metadata, scale).draw_dataset_dict(record)}
        for name, predictor in predictors.items():
            instances = predictor(np.ascontiguousarray(image[:, :, ::-1]))["instances"].to("cpu")
            shown = instances[instances.scores >= THRESHOLD]
            drawn[name] = Visualizer(image, metadata, scale).draw_instance_predictions(shown)
        for name, visual in drawn.items():
            path = folder / f"{number}_{name.replace(' ', '_')}.jpg"
            _write(path, visual.get_image())
            found.append(Picture(Path(record["file_name"]).name, name, path))
    return found


def _predictor(network: Compared, archval: str) -> DefaultPredictor:
    assert network.cfg is not None and network.weights is not None
    cfg = network.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.DATASETS.TEST = str(network.weights), (archval,)
    own, held = check_network(cfg), read_checkpoint(str(network.weights), "report.html")["model"]
    if own is not None and (differs := difference(own.state_dict(), held)):
        raise Cannot(f"{network.weights} is of another network than {network.name}: {differs}")
    return DefaultPredictor(cfg)


def _write(path: Path, image: np.ndarray) -> None:
    """As JPEG."""
    picture = Image.fromarray(image)
    write_atomically(path, lambda file: picture.save(file, format="JPEG", quality=80))
