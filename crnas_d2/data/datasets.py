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
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from crnas_d2.data.coco_json import Record, load_json, odd_boxes, polygons, read_coco_json
from crnas_d2.data.pictures import check_headers
from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

# Where detectron2's meta-architectures have the number of classes; ProposalNetwork has none.
HEADS = {"GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS", "RetinaNet": "RETINANET"}


def register_coco(name: str, json_file: str, images: str) -> None:
    """Register a COCO JSON under a name; again with the same files is fine.

    Raises InputError: the name stands for other files already.
    """
    files = {"json_file": json_file, "image_root": images}
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, functools.partial(load_coco, name, json_file, images))
        MetadataCatalog.get(name).set(**files, evaluator_type="coco")
    known = MetadataCatalog.get(name)
    if (known.json_file, known.image_root) != (json_file, images):
        raise InputError(f"data set {name}: registered already, with {known.json_file}")


def load_coco(name: str, json_file: str, images: str) -> list[dict[str, Any]]:
    """The dicts of detectron2's load_coco_json, from a JSON that read_coco_json has checked.

    Unlike there, annotation ids do not matter, and no box is dropped for its polygons.
    """
    content = load_json(json_file, name)
    content.setdefault("annotations", [])
    classes = _classes(content)
    MetadataCatalog.get(name).set(**classes)
    number_of = classes["thing_dataset_id_to_contiguous_id"]
    records: dict[Any, dict[str, Any]] = {}
    for image in sorted(content["images"], key=lambda image: image["id"]):
        record = {"file_name": os.path.join(images, image["file_name"]), "image_id": image["id"]}
        sizes = {"height": image["height"], "width": image["width"]}
        records[image["id"]] = {**record, **sizes, "annotations": []}
    for annotation in content["annotations"]:
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
    odd, files = len(odd_boxes(content)), len({record["file_name"] for record in records.values()})
    if odd:
        text = f"{name}: {odd} boxes have no area or leave their image"
        log_first_n(logging.WARNING, text, key="message")
    if files < len(records):
        text = f"{name}: {len(records)} entries are of {files} images, each with its own boxes"
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
    """The temporary name of a registered set's completed copy, to build a COCOEvaluator with.

    Of a set without annotations, COCOEvaluator writes the predictions alone.
    """
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "json_file"):  # COCOEvaluator then makes one
        yield name
        return
    content = read_coco_json(metadata.json_file, name, annotated=False)
    if not content["annotations"]:
        del content["annotations"]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(json.dumps(content))
        file.flush()
        MetadataCatalog.get(file.name).set(json_file=file.name, **_classes(content))
        yield file.name
        MetadataCatalog.remove(file.name)


def check_voc(name: str, key: str) -> None:
    """A registered folder in the layout of Pascal VOC can be read; its images' headers, too.

    Raises InputError: a file that is missing or unsound, or a split of fewer than two images.
    """
    metadata = MetadataCatalog.get(name)
    listed = Path(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
    try:
        # detectron2 takes a single line for no list at all
        records = DatasetCatalog.get(name) if len(listed.read_text().split()) > 1 else []
    except (OSError, SyntaxError, AttributeError, IndexError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{key}: {name}: the layout of Pascal VOC is needed: {why}") from error
    if not records:
        raise InputError(f"{key}: {listed}: at least two images are needed, one a line")
    check_headers(records, "", key)


def check_dataset(cfg: CfgNode, side: str, name: str, annotated: bool = True) -> Record | None:
    """The completed COCO JSON of a registered data set, its images checked; of VOC, None.

    ``side`` is TRAIN or TEST; ``annotated``: whether annotations are needed.

    Raises InputError: an unknown name, no COCO JSON or VOC folder, another number of classes than the
    heads have, or as read_coco_json and check_headers.
    """
    key, content = f"DATASETS.{side}", None
    if name not in DatasetCatalog.list():
        raise InputError(f"{key}: {name!r}: not a registered data set")
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") == "pascal_voc":
        check_voc(name, key)
        count = len(metadata.thing_classes)
    elif not hasattr(metadata, "json_file"):
        raise InputError(f"{key}: {name!r}: has no COCO JSON; register it as COCO instances")
    else:
        content = _checked(cfg, side, name, (key, key), annotated)
        count = len(content["categories"])
    head = HEADS.get(cfg.MODEL.META_ARCHITECTURE)
    asked = cfg.MODEL[head].NUM_CLASSES if head else count
    if asked != count:
        raise InputError(f"MODEL.{head}.NUM_CLASSES: {asked}: {key} {name!r} has {count} classes")
    return content


def _checked(cfg: CfgNode, side: str, name: str, keys: tuple[str, str], annotated: bool) -> Record:
    """A registered COCO JSON; ``keys`` name its file and its images' folder, for messages."""
    files, masks = MetadataCatalog.get(name), None
    if cfg.MODEL.MASK_ON:
        masks = cfg.INPUT.MASK_FORMAT if side == "TRAIN" else ""
    content = read_coco_json(files.json_file, keys[0], annotated, masks)
    check_headers(content["images"], files.image_root, keys[1])
    return content


def register_own_data(cfg: CfgNode) -> dict[str, str]:
    """Register the data sets that the *_JSON and *_IMAGES keys name, unread; their names by side.

    Raises InputError: a key without its partner.
    """
    names = {}
    for side in ("TRAIN", "TEST"):
        keys = [f"{side}_JSON", f"{side}_IMAGES"]
        json_file, images = (cfg.DATASETS[key] and os.path.abspath(cfg.DATASETS[key]) for key in keys)
        if bool(json_file) != bool(images):
            empty, full = keys[::-1] if json_file else keys
            raise InputError(f"DATASETS.{empty}: empty; both are needed, it and DATASETS.{full}")
        if json_file:
            names[side] = f"{side.lower()}:{json_file}:{images}"
            register_coco(names[side], json_file, images)
    return names


def use_own_data(
    cfg: CfgNode, train: bool = True, test: bool = True, annotated: bool = True
) -> dict[str, Record]:
    """Put the data sets that the *_JSON and *_IMAGES keys name into DATASETS.TRAIN and TEST.

    The heads' number of classes follows the JSON. Your own training set without a test set empties
    DATASETS.TEST. Changes ``cfg`` in place; does nothing where the keys are empty.

    Args:
        train, test: whether the set will be used; else its files are not read.
        annotated: whether the test set needs annotations.

    Returns the completed JSONs by side, TRAIN or TEST. Raises InputError: a key without its partner, a
    bad file, or other classes in the test set.
    """
    if cfg.DATASETS.TRAIN_JSON and not cfg.DATASETS.TEST_JSON:
        cfg.DATASETS.TEST = ()  # what a config names there is of other data
    contents: dict[str, Record] = {}
    for side, name in register_own_data(cfg).items():
        cfg.DATASETS[side] = (name,)
        if train if side == "TRAIN" else test:
            keys = f"DATASETS.{side}_JSON", f"DATASETS.{side}_IMAGES"
            contents[side] = _checked(cfg, side, name, keys, annotated or side == "TRAIN")
    classes = [_classes(content)["thing_classes"] for content in contents.values()]
    if classes:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(classes[0])
    if classes and classes[-1] != classes[0]:
        why = f"classes {classes[1]}; the training classes are {classes[0]}"
        raise InputError(f"DATASETS.TEST_JSON: {why}")
    return contents


_bccd = os.path.join(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), "bccd")
for _split in ("train", "val"):
    register_coco(f"bccd_{_split}", f"{_bccd}/{_split}.json", f"{_bccd}/images")
