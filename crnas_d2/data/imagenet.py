"""Labelled images in folders, one a class, as ImageNet has them, and their augmentation.

    $DETECTRON2_DATASETS/imagenet/{train,val}/<wnid>/*.JPEG    imagenet_train, imagenet_val

A class is the index of its folder's name among the sorted names in train.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from crnas_d2.errors import InputError
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image


def register_image_folder(name: str, image_root: str, class_root: str) -> None:
    """Register the folder ``image_root``, whose classes are numbered as in ``class_root``."""
    DatasetCatalog.register(name, functools.partial(load_image_folder, image_root, class_root))
    metadata = MetadataCatalog.get(name)
    metadata.set(evaluator_type="imagenet", image_root=image_root, class_root=class_root)


def load_image_folder(image_root: str, class_root: str) -> list[dict[str, Any]]:
    """Dicts with ``file_name``, ``image_id`` (path below ``image_root``) and ``label``, sorted.

    Raises InputError: a folder that is missing or has no image, or a class not in ``class_root``.
    """
    labels = _labels(class_root)
    own = _labels(image_root)
    for name in sorted(own.keys() - labels.keys()):
        path = os.path.join(image_root, name)
        raise InputError(f"{path}: is none of the {len(labels)} classes in {class_root}")
    try:
        samples = make_dataset(image_root, {name: labels[name] for name in own}, IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise InputError(f"{image_root}: {' '.join(str(error).split())}") from error
    start = len(os.path.join(image_root, ""))
    return [{"file_name": path, "image_id": path[start:], "label": label} for path, label in samples]


def _labels(folder: str) -> dict[str, int]:
    """Names of the class folders, sorted, and their numbers."""
    try:
        return find_classes(folder)[1]
    except OSError as error:
        why = error.strerror or "no folder in it"
        raise InputError(f"{folder}: {why}; a folder of images for each class is needed") from error


def is_image_folder(name: str) -> bool:
    """Whether a data set, registered or not, is one of labelled images."""
    known = name in DatasetCatalog.list()  # MetadataCatalog.get would add it
    return known and MetadataCatalog.get(name).get("evaluator_type") == "imagenet"


def check_imagenet(name: str, key: str) -> list[str]:
    """The class names of a registered folder. InputError, naming ``key``: as load_image_folder."""
    try:
        DatasetCatalog.get(name)
        return list(_labels(MetadataCatalog.get(name).class_root))
    except InputError as error:
        raise InputError(f"{key}: {name}: {error}") from error


class ClassificationMapper:
    """From a dict of ``load_image_folder`` to an ImageClassifier's input.

    In training a random crop of 8 to 100 % of the area and an aspect ratio of 3:4 to 4:3, resized and
    randomly flipped (Szegedy et al. 2015; torchvision's defaults), from torch's global random state;
    else the centre crop of the image, its shorter side resized to ``test_resize`` pixels.
    """

    def __init__(self, crop: int, test_resize: int, image_format: str, is_train: bool) -> None:
        train = [T.RandomResizedCrop(crop), T.RandomHorizontalFlip()]
        test = [T.Resize(test_resize), T.CenterCrop(crop)]
        self._augment = T.Compose(train if is_train else test)
        self._format = image_format

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record and ``image``, uint8 (3, crop, crop)."""
        pixels = read_image(record["file_name"], format=self._format)
        augmented = np.asarray(self._augment(Image.fromarray(pixels)))
        return {**record, "image": torch.from_numpy(augmented.transpose(2, 0, 1).copy())}


_imagenet = os.path.join(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), "imagenet")
for _split in ("train", "val"):
    register_image_folder(f"imagenet_{_split}", f"{_imagenet}/{_split}", f"{_imagenet}/train")
