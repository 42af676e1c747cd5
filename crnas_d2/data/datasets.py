"""Data sets in detectron2's catalogs: ours under $DETECTRON2_DATASETS, and a person's own COCO JSON.

    $DETECTRON2_DATASETS/bccd/{train.json,val.json,images/}   bccd_train, bccd_val

As detectron2's builtin sets, ours are registered on import and read when they are first used.
"""

from __future__ import annotations

import os
from typing import Any

from crnas_d2.data.coco_json import check_images, read_coco_json
from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

BUILTIN = ("bccd",)


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


def check_voc(dirname: str, split: str, key: str) -> None:
    """A folder in the layout of Pascal VOC holds the pictures and annotations of a split.

    Args:
        dirname: with ImageSets/Main/{split}.txt, JPEGImages and Annotations.

    Raises:
        InputError: the first file that is missing, or a split of fewer than two images.
    """
    listed = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    if not os.path.isfile(listed):
        raise InputError(f"{key}: {listed}: no such file; the layout of Pascal VOC is needed")
    with open(listed, encoding="utf-8") as file:
        names = [line.split()[0] for line in file if line.strip()]
    if len(names) < 2:  # detectron2 reads a file of one line as no list at all
        raise InputError(f"{key}: {listed}: {len(names)} images; at least two are needed, one a line")
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        there = set(os.listdir(os.path.join(dirname, folder))) if _is_folder(dirname, folder) else set()
        missing = [name for name in names if f"{name}.{ending}" not in there]
        if missing:
            raise InputError(
                f"{key}: {os.path.join(dirname, folder, missing[0])}.{ending}: no such file "
                f"({len(missing)} of {len(names)} are missing)"
            )


def _is_folder(*parts: str) -> bool:
    return os.path.isdir(os.path.join(*parts))


def check_dataset(name: str, key: str) -> dict[str, Any] | None:
    """The COCO JSON of a registered data set, with its images checked to be there; VOC: None.

    Raises:
        InputError: an unknown name, neither a COCO JSON nor a VOC folder behind it, or a missing file.
    """
    if name not in DatasetCatalog.list():
        raise InputError(f"{key}: {name!r}: not a registered data set")
    metadata = MetadataCatalog.get(name)
    if getattr(metadata, "evaluator_type", "") == "pascal_voc":
        check_voc(metadata.dirname, metadata.split, key)
        return None
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
            plain = [a["id"] for a in content["annotations"] if not a.get("segmentation")]
            if cfg.MODEL.MASK_ON and plain:
                raise InputError(
                    f"MODEL.MASK_ON: True: annotation {plain[0]!r} in {json_file} has no segmentation "
                    f"({len(plain)} have none); allowed is False"
                )
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
