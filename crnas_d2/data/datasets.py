"""Data sets in detectron2's catalogs: ours under $DETECTRON2_DATASETS, and a person's own COCO JSON.

    $DETECTRON2_DATASETS/bccd/{train.json,val.json,images/}   bccd_train, bccd_val

As detectron2's builtin sets, ours are registered on import and read when they are first used.
"""

from __future__ import annotations

import json
import os
from typing import Any

from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

BUILTIN = ("bccd",)
# The entries that detectron2 and pycocotools read of each record.
RECORD_ENTRIES = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
}


def register_builtin(root: str) -> None:
    """Register {name}_train and {name}_val of every set of ours below ``root``."""
    for name in BUILTIN:
        for split in ("train", "val"):
            folder = os.path.join(root, name)
            register_coco_instances(
                f"{name}_{split}",
                {},
                os.path.join(folder, f"{split}.json"),
                os.path.join(folder, "images"),
            )


register_builtin(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def read_coco_json(path: str, key: str) -> dict[str, Any]:
    """A COCO JSON with images, categories and at least one annotation.

    Args:
        key: the config key that named it, for messages.

    Raises:
        InputError: no such file, no JSON, a part is missing or empty, a record lacks an entry, an
            id stands twice, or an annotation of an unknown image or category.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(f"{key}: {path}: {error.strerror}; a COCO JSON is needed") from error
    except ValueError as error:
        raise InputError(f"{key}: {path}: not a JSON file ({error})") from error
    for part in RECORD_ENTRIES:
        if not isinstance(content, dict) or not content.get(part):
            raise InputError(
                f"{key}: {path}: no {part}; a COCO JSON with images, categories and at least one "
                "annotation is needed"
            )
    ids = {part: _ids(content[part], part, f"{key}: {path}") for part in RECORD_ENTRIES}
    for annotation in content["annotations"]:
        for part, entry in (("images", "image_id"), ("categories", "category_id")):
            if annotation[entry] not in ids[part]:
                raise InputError(
                    f"{key}: {path}: annotation {annotation['id']}: {entry} {annotation[entry]!r}: "
                    f"is the id of none of the {part}"
                )
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4:
            raise InputError(
                f"{key}: {path}: annotation {annotation['id']}: bbox {box}: "
                "x, y, width and height are needed, in pixels"
            )
    return content


def _ids(records: Any, part: str, where: str) -> set[Any]:
    ids: set[Any] = set()
    for number, record in enumerate(records):
        missing = [e for e in RECORD_ENTRIES[part] if not isinstance(record, dict) or e not in record]
        if missing:
            raise InputError(f"{where}: {part}[{number}]: no {missing[0]}")
        if record["id"] in ids:
            raise InputError(f"{where}: {part}: id {record['id']!r} stands there twice")
        ids.add(record["id"])
    return ids


def check_images(content: dict[str, Any], folder: str, key: str) -> None:
    """Every image that the JSON names lies in the folder.

    Raises:
        InputError: the first image that does not, and how many.
    """
    missing = [
        image["file_name"]
        for image in content["images"]
        if not os.path.isfile(os.path.join(folder, image["file_name"]))
    ]
    if missing:
        raise InputError(
            f"{key}: {os.path.join(folder, missing[0])}: no such image "
            f"({len(missing)} of {len(content['images'])} are missing)"
        )


def register_coco(name: str, json_file: str, images: str) -> None:
    """Register a COCO JSON under a name; again with the same files is fine.

    Raises:
        InputError: the name stands for other files already.
    """
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name)
        if (known.json_file, known.image_root) != (json_file, images):
            raise InputError(f"data set {name}: registered already, with {known.json_file}")
        return
    register_coco_instances(name, {}, json_file, images)


def check_dataset(name: str, key: str) -> dict[str, Any]:
    """The COCO JSON of a registered data set, with its images checked to be there.

    Raises:
        InputError: an unknown name, no COCO JSON behind it, or a missing file.
    """
    if name not in DatasetCatalog.list():
        raise InputError(f"{key}: {name!r}: not a registered data set")
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "json_file"):
        raise InputError(f"{key}: {name!r}: has no COCO JSON; register it as COCO instances")
    content = read_coco_json(metadata.json_file, key)
    check_images(content, metadata.image_root, key)
    return content


def use_own_data(cfg: CfgNode, train: bool = True, test: bool = True) -> None:
    """Put the data sets that the *_JSON and *_IMAGES keys name into DATASETS.TRAIN and TEST.

    The number of classes of the heads follows the JSON. A training set of one's own without a test
    set empties DATASETS.TEST. Changes ``cfg`` in place; does nothing where the keys are empty.

    Args:
        train: whether the training set will be used; else its files are not looked at.
        test: the same for the test set.

    Raises:
        InputError: a key without its partner, a file that is missing or empty, or test classes that
            are not the training classes.
    """
    classes: dict[str, list[str]] = {}
    if cfg.DATASETS.TRAIN_JSON and not cfg.DATASETS.TEST_JSON:
        cfg.DATASETS.TEST = ()  # what a config names there is of other data
    for split, used in (("TRAIN", train), ("TEST", test)):
        json_key, images_key = f"DATASETS.{split}_JSON", f"DATASETS.{split}_IMAGES"
        json_file, images = cfg.DATASETS[f"{split}_JSON"], cfg.DATASETS[f"{split}_IMAGES"]
        if bool(json_file) != bool(images):
            empty, full = (images_key, json_key) if json_file else (json_key, images_key)
            raise InputError(f"{empty}: empty; {full} names its partner, so both are needed")
        if not json_file:
            continue
        json_file, images = os.path.abspath(json_file), os.path.abspath(images)
        name = f"{split.lower()}:{json_file}"
        if used:
            content = read_coco_json(json_file, json_key)
            check_images(content, images, images_key)
            ordered = sorted(content["categories"], key=lambda c: c["id"])  # as detectron2 does
            classes[split] = [category["name"] for category in ordered]
        register_coco(name, json_file, images)
        cfg.DATASETS[split] = (name,)
    for names in classes.values():
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names)
        cfg.MODEL.RETINANET.NUM_CLASSES = len(names)
    if len(classes) == 2 and classes["TRAIN"] != classes["TEST"]:
        raise InputError(
            f"DATASETS.TEST_JSON: classes {classes['TEST']}; "
            f"the training classes are {classes['TRAIN']}"
        )
