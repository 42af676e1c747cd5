"""Data sets in detectron2's catalogs: ours, registered on import, and the user's own COCO JSON.

$DETECTRON2_DATASETS/bccd/{train.json,val.json,images/}         bccd_train, bccd_val
$DETECTRON2_DATASETS/composites/{train.json,val.json,images/}   composites_train, composites_val
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from crnas_d2.data.coco_json import Record, load_json, polygons, read_categories, read_coco_json
from crnas_d2.data.pictures import check_headers
from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

# Where detectron2's meta-architectures have the number of classes; ProposalNetwork has none.
HEADS = {"GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS", "RetinaNet": "RETINANET"}


def register_coco(name: str, json_file: str, images: str) -> None:
    """Register a COCO JSON and its images; may be repeated."""
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, functools.partial(load_coco, name, json_file, images))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=images, evaluator_type="coco")


def load_coco(name: str, json_file: str, images: str) -> list[dict[str, Any]]:
    """The dicts of detectron2's load_coco_json, from a JSON that read_coco_json has checked.

    Unlike there, annotation ids do not matter, and no box is dropped for its polygons.
    """
    content = load_json(json_file, name)
    annotations = content.setdefault("annotations", [])
    classes = _classes(content)
    MetadataCatalog.get(name).set(**classes)
    number_of = classes["thing_dataset_id_to_contiguous_id"]
    records: dict[Any, dict[str, Any]] = {}
    for image in sorted(content["images"], key=itemgetter("id")):
        record = {"image_id": image["id"], **{side: int(image[side]) for side in ("height", "width")}}
        path = os.path.join(images, image["file_name"])
        records[image["id"]] = {**record, "file_name": path, "annotations": []}
    for annotation in annotations:
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
    return list(records.values())


def _classes(content: Record) -> dict[str, Any]:
    """Metadata: names, and numbers by id, in the order of ids, as detectron2 has them."""
    ordered = sorted(content["categories"], key=itemgetter("id"))
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
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scored.json")
        file.write_text(json.dumps(content), encoding="utf-8")
        MetadataCatalog.get(str(file)).set(json_file=str(file), **_classes(content))
        try:
            yield str(file)
        finally:
            MetadataCatalog.remove(str(file))


def check_voc(name: str, key: str) -> None:
    """Raise InputError if a registered set in the layout of Pascal VOC, or an image, cannot be read."""
    metadata = MetadataCatalog.get(name)
    listed = Path(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
    try:
        if len(listed.read_text().split()) < 2:  # detectron2 takes a single line for no list at all
            raise ValueError(f"{listed}: at least two images, one a line")
        records = DatasetCatalog.get(name)
    except (OSError, SyntaxError, AttributeError, IndexError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{key}: {name}: the layout of Pascal VOC is needed: {why}") from error
    check_headers(records, "", key)


def check_dataset(cfg: CfgNode, side: str, name: str, annotated: bool = True) -> Record | None:
    """The completed COCO JSON of a registered data set, its images checked; of VOC, None.

    ``side``: TRAIN or TEST, whose keys messages name; ``annotated``: whether annotations are needed.

    Raises InputError: an unknown name, no COCO JSON or VOC folder, another number of classes than the
    heads have (they follow your own JSON), or as read_coco_json and check_headers.
    """
    key, metadata = f"DATASETS.{side}", MetadataCatalog.get(name)
    own = bool(cfg.DATASETS.get(f"{side}_JSON"))
    content, classes = None, metadata.get("thing_classes")
    if metadata.get("evaluator_type") == "pascal_voc":
        check_voc(name, key)
    elif hasattr(metadata, "json_file"):
        masks = None
        if cfg.MODEL.MASK_ON:
            masks = cfg.INPUT.MASK_FORMAT if side == "TRAIN" else ""
        content = read_coco_json(metadata.json_file, f"{key}_JSON" if own else key, annotated, masks)
        check_headers(content["images"], metadata.image_root, f"{key}_IMAGES" if own else key)
        classes = content["categories"]
    else:
        raise InputError(f"{key}: {name!r}: not a registered data set with a COCO JSON")
    if not own:
        _check_num_classes(cfg, len(classes), f"{key} {name!r}")
    return content


def register_own_data(cfg: CfgNode) -> dict[str, str]:
    """Register the sets that the *_JSON and *_IMAGES keys name, unread; their names by side."""
    names = {}
    for side in ("TRAIN", "TEST"):
        keys = [f"{side}_JSON", f"{side}_IMAGES"]
        files = [cfg.DATASETS[key] for key in keys]
        if any(files) and not all(files):
            empty, given = sorted(keys, key=lambda key: bool(cfg.DATASETS[key]))
            raise InputError(f"DATASETS.{empty}: empty; it is needed beside DATASETS.{given}")
        if any(files):
            json_file, images = map(os.path.abspath, files)
            names[side] = f"{side.lower()}:{json_file}:{images}"
            register_coco(names[side], json_file, images)
    return names


def use_own_data(
    cfg: CfgNode, train: bool = True, test: bool = True, annotated: bool = True
) -> dict[str, Record]:
    """Put the sets that the *_JSON and *_IMAGES keys name into DATASETS.TRAIN and TEST of ``cfg``.

    The heads' number of classes follows the JSON, and your own training set without a test set empties
    DATASETS.TEST. ``train``, ``test``: whether that set will be used; else its files are not read.
    Returns the completed JSONs by side, TRAIN or TEST.

    Raises InputError: as register_own_data and check_dataset, or other classes in the test set.
    """
    if cfg.DATASETS.TRAIN_JSON and not cfg.DATASETS.TEST_JSON:
        cfg.DATASETS.TEST = ()  # what a config names there is of other data
    contents: dict[str, Any] = {}
    is_used = {"TRAIN": train, "TEST": test}
    for side, name in register_own_data(cfg).items():
        cfg.DATASETS[side] = (name,)
        if is_used[side]:
            contents[side] = check_dataset(cfg, side, name, annotated or side == "TRAIN")
    classes = [_classes(content)["thing_classes"] for content in contents.values()]
    if classes:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(classes[0])
        _check_same(classes[0], classes[-1], "DATASETS.TEST_JSON")
    return contents


def check_same_classes(cfg: CfgNode) -> None:
    """Raise InputError if the first sets of DATASETS.TRAIN and TEST, checked, differ in classes."""
    own, sets = cfg.DATASETS.TEST_JSON, [*cfg.DATASETS.TRAIN[:1], *cfg.DATASETS.TEST[:1]]
    if len(sets) < 2 or (own and cfg.DATASETS.TRAIN_JSON):  # use_own_data has compared those
        return
    train, test = map(_class_names, sets)
    _check_same(train, test, "DATASETS.TEST_JSON" if own else f"DATASETS.TEST: {sets[1]!r}")


def _check_same(train: list[str], test: list[str], named: str) -> None:
    if test != train:
        raise InputError(f"{named}: classes {test}; the training classes are {train}")


def _class_names(name: str, key: str = "") -> Any:
    """Of a registered set; None if it has none. ``key``: that an InputError names."""
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    if names is None and hasattr(metadata, "json_file"):
        names = _classes({"categories": read_categories(metadata.json_file, key)})["thing_classes"]
    return names


def use_class_names(cfg: CfgNode) -> list[str]:
    """The names of a trained detector's classes; of a JSON the categories alone are looked at.

    They are those of DATASETS.TEST_JSON or TRAIN_JSON, which the heads' number of classes in ``cfg``
    follows, else those of the first registered set of DATASETS.TEST or TRAIN. No image is needed.

    Raises InputError: no set, no categories, or another number of classes than the heads have.
    """
    own = [f"{side}_JSON" for side in ("TEST", "TRAIN") if cfg.DATASETS[f"{side}_JSON"]]
    if own:
        categories = read_categories(cfg.DATASETS[own[0]], f"DATASETS.{own[0]}")
        names = _classes({"categories": categories})["thing_classes"]
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(names)
        return names
    sides = [side for side in ("TEST", "TRAIN") if cfg.DATASETS[side]]
    if not sides:
        raise InputError("DATASETS.TRAIN: (): a set with the names of the classes is needed")
    key, name = f"DATASETS.{sides[0]}", cfg.DATASETS[sides[0]][0]
    names = _class_names(name, key)
    if names is None:
        raise InputError(f"{key}: {name!r}: not a registered data set with names of classes")
    _check_num_classes(cfg, len(names), f"{key} {name!r}")
    return names


def _check_num_classes(cfg: CfgNode, found: int, named: str) -> None:
    head = HEADS.get(cfg.MODEL.META_ARCHITECTURE)
    if head and cfg.MODEL[head].NUM_CLASSES != found:
        asked = cfg.MODEL[head].NUM_CLASSES
        raise InputError(f"MODEL.{head}.NUM_CLASSES: {asked}: {named} has {found} classes")


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
for _set, _split in itertools.product(("bccd", "composites"), ("train", "val")):
    _folder = os.path.join(_root, _set)
    register_coco(f"{_set}_{_split}", f"{_folder}/{_split}.json", f"{_folder}/images")
