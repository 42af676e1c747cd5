"""Data sets in detectron2's catalogs: ours under $DETECTRON2_DATASETS, and the user's own COCO JSON.

    $DETECTRON2_DATASETS/bccd/{train.json,val.json,images/}   bccd_train, bccd_val

Like detectron2's builtin sets, ours are registered on import and read when they are first used.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pycocotools import mask as coco_mask

from crnas_d2.data.coco_json import (
    Record,
    check_masks,
    load_json,
    odd_boxes,
    polygons,
    read_coco_json,
    renumber,
)
from crnas_d2.data.pictures import check_headers
from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

BUILTIN = ("bccd",)
# Where detectron2's meta-architectures have the number of classes; ProposalNetwork has none.
HEADS = {"GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS", "RetinaNet": "RETINANET"}


def register_builtin(root: str) -> None:
    """Register {name}_train and {name}_val of every set of ours below ``root``."""
    for name in BUILTIN:
        folder = os.path.join(root, name)
        for split in ("train", "val"):
            json_file = os.path.join(folder, f"{split}.json")
            register_coco(f"{name}_{split}", json_file, os.path.join(folder, "images"))


def register_coco(name: str, json_file: str, images: str) -> None:
    """Register a COCO JSON under a name; again with the same files is fine.

    Raises:
        InputError: the name stands for other files already.
    """
    files = {"json_file": json_file, "image_root": images}
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, functools.partial(load_coco, name, json_file, images))
        MetadataCatalog.get(name).set(**files, evaluator_type="coco")
    known = MetadataCatalog.get(name)
    if (known.json_file, known.image_root) != (json_file, images):
        raise InputError(f"data set {name}: registered already, with {known.json_file}")


def load_coco(name: str, json_file: str, images: str) -> list[dict[str, Any]]:
    """The dicts of detectron2's load_coco_json, from a checked JSON.

    Unlike there, annotation ids do not matter, and no box is dropped for its polygons.
    """
    content = load_json(json_file, name)
    classes = _classes(content)
    MetadataCatalog.get(name).set(**classes)
    number_of = classes["thing_dataset_id_to_contiguous_id"]
    records: dict[Any, dict[str, Any]] = {}
    for image in sorted(content["images"], key=lambda image: image["id"]):
        record = {"file_name": os.path.join(images, image["file_name"]), "image_id": image["id"]}
        sizes = {"height": image["height"], "width": image["width"]}
        records[image["id"]] = {**record, **sizes, "annotations": []}
    for annotation in content.setdefault("annotations", []):
        found = {"bbox": annotation["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
        found["iscrowd"] = annotation.get("iscrowd") or 0
        found["category_id"] = number_of[annotation["category_id"]]
        masks = annotation.get("segmentation")
        if isinstance(masks, list):
            masks = polygons(masks)
        elif masks and isinstance(masks["counts"], list):
            masks = coco_mask.frPyObjects(masks, *masks["size"])
        if masks:
            found["segmentation"] = masks
        if annotation.get("keypoints"):  # x, y, visibility; from the pixel's index to its centre
            points = enumerate(annotation["keypoints"])
            found["keypoints"] = [v + 0.5 if i % 3 < 2 else v for i, v in points]
        records[annotation["image_id"]]["annotations"].append(found)
    odd, files = len(odd_boxes(content)), {record["file_name"] for record in records.values()}
    if odd:
        text = f"{name}: {odd} boxes have no area or leave their image"
        log_first_n(logging.WARNING, text, key="message")
    if len(files) < len(records):
        entries = f"{len(records)} entries are of {len(files)} images"
        text = f"{name}: {entries}, each with its own boxes alone"
        log_first_n(logging.WARNING, text, key="message")
    return list(records.values())


def _classes(content: Record) -> dict[str, Any]:
    """Metadata: names, and numbers by id, in the order of ids, as detectron2 has them."""
    ordered = sorted(content["categories"], key=lambda category: category["id"])
    return {
        "thing_classes": [category["name"] for category in ordered],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(ordered)},
    }


@contextmanager
def as_scored(name: str) -> Iterator[str]:
    """The temporary name of a copy of a registered set, to build a COCOEvaluator with.

    pycocotools needs annotation ids from 1, ``area`` and ``iscrowd``. Of a set without annotations,
    COCOEvaluator writes the predictions alone.
    """
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "json_file"):  # COCOEvaluator then makes one
        yield name
        return
    content = renumber(read_coco_json(metadata.json_file, name, annotated=False))
    if not content["annotations"]:
        del content["annotations"]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(json.dumps(content))
        file.flush()
        MetadataCatalog.get(file.name).set(json_file=file.name, **_classes(content))
        yield file.name
        MetadataCatalog.remove(file.name)


def check_voc(dirname: str, split: str, key: str) -> None:
    """A folder in the layout of Pascal VOC holds the images and annotations of a split.

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
        path = os.path.join(dirname, folder)
        there = set(os.listdir(path)) if os.path.isdir(path) else set()
        missing = [f"{name}.{ending}" for name in names if f"{name}.{ending}" not in there]
        if missing:
            raise InputError(
                f"{key}: {os.path.join(path, missing[0])}: no such file "
                f"({len(missing)} of {len(names)} are missing)"
            )


def check_dataset(cfg: CfgNode, side: str, name: str, annotated: bool = True) -> Record | None:
    """The COCO JSON of a registered data set, ids renumbered, its images checked; of VOC, None.

    Args:
        side: TRAIN or TEST.
        annotated: whether it needs annotations.

    Raises:
        InputError: an unknown name, one without a COCO JSON or VOC folder, another number of classes
            than the heads have, or as ``_checked``.
    """
    key, content = f"DATASETS.{side}", None
    if name not in DatasetCatalog.list():
        raise InputError(f"{key}: {name!r}: not a registered data set")
    metadata = MetadataCatalog.get(name)
    if getattr(metadata, "evaluator_type", "") == "pascal_voc":
        check_voc(metadata.dirname, metadata.split, key)
        count = len(metadata.thing_classes)
    elif not hasattr(metadata, "json_file"):
        raise InputError(f"{key}: {name!r}: has no COCO JSON; register it as COCO instances")
    else:
        files = (metadata.json_file, key), (metadata.image_root, key)
        content = _checked(cfg, side, *files, annotated)
        count = len(content["categories"])
    head = HEADS.get(cfg.MODEL.META_ARCHITECTURE)
    asked = cfg.MODEL[head].NUM_CLASSES if head else count
    if asked != count:
        raise InputError(f"MODEL.{head}.NUM_CLASSES: {asked}: {key} {name!r} has {count} classes")
    return content


def _checked(
    cfg: CfgNode, side: str, file: tuple[str, str], folder: tuple[str, str], annotated: bool
) -> Record:
    """The JSON of ``file``, path and key, whose images lie in ``folder``, the same."""
    content = read_coco_json(*file, annotated)
    if cfg.MODEL.MASK_ON:
        check_masks(content, file[0], cfg.INPUT.MASK_FORMAT if side == "TRAIN" else "")
    check_headers(content["images"], *folder)
    return renumber(content)


def own_data(cfg: CfgNode) -> dict[str, tuple[str, str, str]]:
    """Name, absolute path of the JSON, and of the images, by side, TRAIN or TEST, of your own data sets.

    Raises:
        InputError: one of the *_JSON and *_IMAGES keys without its partner.
    """
    found = {}
    for side in ("TRAIN", "TEST"):
        keys = [f"DATASETS.{side}_JSON", f"DATASETS.{side}_IMAGES"]
        paths = [cfg.DATASETS[f"{side}_JSON"], cfg.DATASETS[f"{side}_IMAGES"]]
        if bool(paths[0]) != bool(paths[1]):
            empty, full = keys[::-1] if paths[0] else keys
            raise InputError(f"{empty}: empty; {full} names its partner, so both are needed")
        if paths[0]:
            json_file, images = map(os.path.abspath, paths)
            found[side] = (f"{side.lower()}:{json_file}", json_file, images)
    return found


def register_own_data(cfg: CfgNode) -> dict[str, str]:
    """Register your own data sets without reading them; their names by side."""
    for name, json_file, images in own_data(cfg).values():
        register_coco(name, json_file, images)
    return {side: name for side, (name, _, _) in own_data(cfg).items()}


def use_own_data(
    cfg: CfgNode, train: bool = True, test: bool = True, annotated: bool = True
) -> dict[str, Record]:
    """Put the data sets that the *_JSON and *_IMAGES keys name into DATASETS.TRAIN and TEST.

    The heads' number of classes follows the JSON. Your own training set without a test set empties
    DATASETS.TEST. Changes ``cfg`` in place; does nothing where the keys are empty.

    Args:
        train: whether the training set will be used; else its files are not read.
        test: the same for the test set.
        annotated: whether the test set needs annotations.

    Returns:
        the checked JSONs by side, TRAIN or TEST, annotation ids renumbered.

    Raises:
        InputError: a key without its partner, a bad file, or other classes in the test set.
    """
    contents: dict[str, Record] = {}
    if cfg.DATASETS.TRAIN_JSON and not cfg.DATASETS.TEST_JSON:
        cfg.DATASETS.TEST = ()  # what a config names there is of other data
    for side, (name, json_file, images) in own_data(cfg).items():
        if train if side == "TRAIN" else test:
            files = (json_file, f"DATASETS.{side}_JSON"), (images, f"DATASETS.{side}_IMAGES")
            contents[side] = _checked(cfg, side, *files, annotated or side == "TRAIN")
        register_coco(name, json_file, images)
        cfg.DATASETS[side] = (name,)
    classes = {side: _classes(content)["thing_classes"] for side, content in contents.items()}
    for names in classes.values():
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(names)
    if len(classes) == 2 and classes["TRAIN"] != classes["TEST"]:
        raise InputError(
            f"DATASETS.TEST_JSON: classes {classes['TEST']}; "
            f"the training classes are {classes['TRAIN']}"
        )
    return contents


register_builtin(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
