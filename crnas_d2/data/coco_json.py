"""A COCO JSON, checked and completed before a run: what detectron2 and pycocotools read of its records.

Annotation ids, ``area`` and ``iscrowd`` are optional. pictures.py checks the images.
"""

from __future__ import annotations

import gc
import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from crnas_d2.errors import InputError
from detectron2.utils.logger import log_first_n

Record = dict[str, Any]
Check = tuple[Callable[[Any], bool], str]  # whether a value is sound, and what is needed


def _are_numbers(values: Any, count: int | None = None) -> bool:
    """Whether it is a list of finite numbers, so many if a number is given."""
    try:
        finite = isinstance(values, list) and math.isfinite(math.fsum(values))
        return finite and count in (None, len(values))
    except (TypeError, ValueError, OverflowError):
        return False


def _are_masks(value: Any) -> bool:
    if isinstance(value, dict):
        counts = value.get("counts")
        return _are_numbers(value.get("size"), 2) and (type(counts) is str or _are_numbers(counts))
    return not value or (isinstance(value, list) and all(map(_are_numbers, value)))


ID = (
    lambda v: v != "" if type(v) is str else type(v) is int and abs(v) < 2**63,
    "an integer of 64 bits or a text is needed",
)
TEXT = (lambda v: type(v) is str and v != "", "a text is needed")
PIXELS = (lambda v: _are_numbers([v]) and v >= 1 and v == int(v), "a positive integer is needed")
BOX = (lambda v: _are_numbers(v, 4) and min(v[2:]) >= 0, "x, y, width, height are needed, in pixels")
AREA = (lambda v: v is None or (_are_numbers([v]) and v >= 0), "a number of at least 0 is needed")
FLAG = (lambda v: v in (None, 0, 1), "0 or 1 is needed")
MASKS = (_are_masks, "polygons, each a list of numbers, or an RLE with size and counts is needed")
RECORD_ENTRIES: dict[str, dict[str, Check]] = {
    "images": {"id": ID, "file_name": TEXT, "height": PIXELS, "width": PIXELS},
    "categories": {"id": ID, "name": TEXT},
    "annotations": {
        **{"image_id": ID, "category_id": ID, "bbox": BOX},
        **{"area": AREA, "iscrowd": FLAG, "segmentation": MASKS},
    },
}


def load_json(path: str, key: str) -> Any:
    """A JSON file, with or without a byte order mark. InputError, naming ``key``, for anything else."""
    gc.disable()  # else it walks through all new records again and again: twice the time
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        why = f"{error.strerror}; a COCO JSON is needed (docs/DATASETS.md)"
        raise InputError(f"{key}: {path}: {why}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key}: {path}: not a JSON file ({error})") from error
    finally:
        gc.enable()


def read_coco_json(
    path: str, key: str, annotated: bool = True, mask_format: str | None = None
) -> Record:
    """A checked COCO JSON, completed: each annotation has area and iscrowd, ids are 1, 2, ..., and
    sizes of images are integers, also those written as 640.0.

    ``annotated``: at least one annotation is needed; else the list may be empty or missing.
    ``mask_format``: if given, masks are needed, and of this INPUT.MASK_FORMAT; empty stands for any.

    Raises InputError: ``key``, file, and the first part or entry of a record that cannot be used.
    """
    content, where = load_json(path, key), f"{key}: {path}"
    needed = ["images", "categories", *(["annotations"] if annotated else [])]
    for part in needed:
        if not isinstance(content, dict) or not content.get(part):
            raise InputError(f"{where}: no {part}; a COCO JSON with {', '.join(needed)} is needed")
    annotations = content.setdefault("annotations", [])
    for part in RECORD_ENTRIES:
        _check_records(content, part, where)
    for part, entry in (("images", "image_id"), ("categories", "category_id")):
        ids = Counter(record["id"] for record in content[part])
        ((most, count),) = ids.most_common(1)
        if count > 1 or len(set(map(type, ids))) > 1:
            why = f"{count} have the id {most!r}" if count > 1 else "numbers and texts as ids"
            raise InputError(f"{where}: {part}: {why}; different ids of one kind are needed")
        known = (ids.__contains__, f"is the id of none of the {part}")
        _check_entries(annotations, f"{where}: annotations", entry, known)
    if annotations and all(annotation.get("iscrowd") for annotation in annotations):
        raise InputError(f"{where}: all {len(annotations)} annotations have iscrowd 1; objects have 0")
    odd = odd_boxes(content)
    if 2 * len(odd) > len(annotations):
        raise InputError(
            f"{where}: {len(odd)} of {len(annotations)} boxes have no area or leave their image: "
            f"{odd[0]} ...; x, y, width, height are needed, in pixels (not x1, y1, x2, y2)"
        )
    if odd:
        _warn(f"{where}: {len(odd)} boxes have no area or leave their image")
    images, files = len(content["images"]), len({i["file_name"] for i in content["images"]})
    if files < images:
        _warn(f"{where}: {images} entries are of {files} images, each with its own boxes")
    if mask_format is not None:
        _check_masks(content, path, mask_format)
    for image in content["images"]:  # masks are allocated by them
        image["height"], image["width"] = int(image["height"]), int(image["width"])
    # pycocotools takes the id 0 for "no match", and cannot read texts.
    annotations.sort(key=lambda annotation: f"{annotation.get('id')!s:0>20}")
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
        if annotation.get("iscrowd") is None:
            annotation["iscrowd"] = 0
        if annotation.get("area") is None:
            annotation["area"] = math.prod(annotation["bbox"][2:])
    return content


def read_categories(path: str, key: str) -> list[Record]:
    """The checked categories of a COCO JSON, and nothing else of it. Raises InputError as above."""
    content, where = load_json(path, key), f"{key}: {path}"
    if not isinstance(content, dict) or not content.get("categories"):
        raise InputError(f"{where}: no categories; a COCO JSON with categories is needed")
    _check_records(content, "categories", where)
    return content["categories"]


def _warn(text: str) -> None:
    log_first_n(logging.WARNING, text, key="message")  # a set may be read again


def _check_records(content: Record, part: str, where: str) -> None:
    records = content[part]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{where}: {part}: a list of records is needed")
    for entry, check in RECORD_ENTRIES[part].items():
        _check_entries(records, f"{where}: {part}", entry, check)


def _check_entries(records: list[Record], where: str, entry: str, check: Check) -> None:
    is_sound, needed = check
    for number, record in enumerate(records):
        value = record.get(entry)
        if not is_sound(value):
            shown = f"[{number}] (id {record.get('id')!r:.40}): {entry} {value!r:.80}"
            raise InputError(f"{where}{shown}: {needed}")


def odd_boxes(content: Record) -> list[list[float]]:
    """The boxes that have no area or reach more than a pixel beyond their image."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    odd = []
    for annotation in content["annotations"]:
        (x, y, width, height), (right, bottom) = annotation["bbox"], sizes[annotation["image_id"]]
        beyond = min(x, y) < -1 or x + width > right + 1 or y + height > bottom + 1
        if beyond or not (width and height):
            odd.append(annotation["bbox"])
    return odd


def polygons(masks: list[list[float]]) -> list[list[float]]:
    """Those of three points or more; detectron2 takes no others."""
    return [polygon for polygon in masks if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _check_masks(content: Record, path: str, mask_format: str) -> None:
    """Every annotation has a mask that detectron2 can read."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        masks, size, what = annotation.get("segmentation") or [], sizes[annotation["image_id"]], ""
        if isinstance(masks, list):
            what = "" if polygons(masks) else "no RLE or polygon of three points; allowed is False"
        elif mask_format == "polygon" and not annotation.get("iscrowd"):
            what = "an RLE; INPUT.MASK_FORMAT: allowed is bitmask"
        elif masks["size"] != size or (
            isinstance(masks["counts"], list) and sum(masks["counts"]) != math.prod(size)
        ):
            what = "an RLE of another size than its image; allowed is False"
        if what:
            named = f"annotations[{number}] (id {annotation.get('id')!r:.40})"
            raise InputError(f"MODEL.MASK_ON: True: {path}: {named} has {what}")
