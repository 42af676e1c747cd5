"""A COCO JSON, checked and completed before a run: what detectron2 and pycocotools read of its records.

Annotation ids, ``area`` and ``iscrowd`` are optional. pictures.py checks the images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from crnas_d2.errors import InputError

Record = dict[str, Any]

# The entries of each record, and what they have to be (KINDS).
RECORD_ENTRIES = {
    "images": {"id": "id", "file_name": "text", "height": "pixels", "width": "pixels"},
    "categories": {"id": "id", "name": "text"},
    "annotations": {
        **{"image_id": "images", "category_id": "categories"},
        **{"bbox": "box", "area": "area", "iscrowd": "flag", "segmentation": "masks"},
    },
}
OPTIONAL = ("area", "iscrowd", "segmentation")  # may be missing or null


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
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{"id": ID, "images": ID, "categories": ID},
    "text": (lambda v: type(v) is str and v != "", "a text is needed"),
    "pixels": (lambda v: _are_numbers([v]) and v >= 1 and v == int(v), "a positive integer is needed"),
    "box": (
        lambda v: _are_numbers(v, 4) and v[2] >= 0 and v[3] >= 0,
        "x, y, width and height are needed, in pixels",
    ),
    "area": (lambda v: _are_numbers([v]) and v >= 0, "a number of at least 0 is needed"),
    "flag": (lambda v: type(v) in (int, bool) and v in (0, 1), "0 or 1 is needed"),
    "masks": (_are_masks, "polygons, each a list of numbers, or an RLE with size and counts is needed"),
}


def load_json(path: str, key: str) -> Any:
    """A JSON file, with or without a byte order mark. InputError, naming ``key``, for anything else."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise InputError(f"{key}: {path}: {error.strerror}; a COCO JSON is needed") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key}: {path}: not a JSON file ({error})") from error


def read_coco_json(
    path: str, key: str, annotated: bool = True, mask_format: str | None = None
) -> Record:
    """A checked COCO JSON, completed: each annotation has area and iscrowd, and ids are 1, 2, ...

    Args:
        key: the config key that named it, for messages.
        annotated: at least one annotation is needed; else the list may be empty or missing.
        mask_format: if given, masks are needed, and of this INPUT.MASK_FORMAT; empty stands for any.

    Raises InputError: no JSON file, a part or an entry that is missing or unsound, an id that is not
    unique, an annotation of an unknown image or category, only crowds, or mostly odd boxes.
    """
    content, where = load_json(path, key), f"{key}: {path}"
    needed = ["images", "categories", *(["annotations"] if annotated else [])]
    for part in needed:
        if not isinstance(content, dict) or not content.get(part):
            raise InputError(f"{where}: no {part}; a COCO JSON with {', '.join(needed)} is needed")
    annotations = content.setdefault("annotations", [])
    ids: dict[str, set[Any]] = {part: set() for part in RECORD_ENTRIES}
    for part in RECORD_ENTRIES:
        if not isinstance(content[part], list):
            raise InputError(f"{where}: {part}: a list of records is needed")
        for number, record in enumerate(content[part]):
            problem = _problem(record, part, ids)
            if problem:
                raise InputError(f"{where}: {_name_of(part, number, record)}: {problem}")
            if part != "annotations":
                ids[part].add(record["id"])
    if annotations and all(annotation.get("iscrowd") for annotation in annotations):
        raise InputError(f"{where}: all {len(annotations)} annotations have iscrowd 1; objects have 0")
    odd = odd_boxes(content)
    if 2 * len(odd) > len(annotations):
        raise InputError(
            f"{where}: {len(odd)} of {len(annotations)} boxes have no area or leave their image: "
            f"{odd[0]} ...; x, y, width, height are needed, in pixels (not x1, y1, x2, y2)"
        )
    if mask_format is not None:
        _check_masks(content, path, mask_format)
    # pycocotools takes the id 0 for "no match", and cannot read texts.
    annotations.sort(key=lambda annotation: f"{annotation.get('id')!s:0>20}")
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"], (_, _, width, height) = number, annotation["bbox"]
        for entry, default in (("iscrowd", 0), ("area", width * height)):
            if annotation.get(entry) is None:
                annotation[entry] = default
    return content


def _problem(record: Any, part: str, ids: dict[str, set[Any]]) -> str:
    """What is wrong with a record, if anything."""
    if not isinstance(record, dict):
        return "a record is needed"
    for entry, kind in RECORD_ENTRIES[part].items():
        value, (is_sound, needed) = record.get(entry), KINDS[kind]
        if value is None and entry in OPTIONAL:
            continue
        if entry not in record:
            return f"no {entry}"
        if not is_sound(value):
            return f"{entry} {value!r:.80}: {needed}"
        if kind in ids and value not in ids[kind]:
            return f"{entry} {value!r}: is the id of none of the {kind}"
    others = ids[part]
    if others and type(record["id"]) is not type(next(iter(others))):
        return "numbers and texts as ids; one kind is needed"
    return "another one has the same id" if others and record["id"] in others else ""


def _name_of(part: str, number: int, record: Any) -> str:
    known = isinstance(record, dict) and "id" in record
    return f"{part}[{number}] (id {record['id']!r:.40})" if known else f"{part}[{number}]"


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
    bad = []
    for number, annotation in enumerate(content["annotations"]):
        masks, size, what = annotation.get("segmentation"), sizes[annotation["image_id"]], ""
        if not masks:
            what = "no segmentation; allowed is False"
        elif isinstance(masks, list):
            what = "" if polygons(masks) else "no polygon of three points; allowed is False"
        elif mask_format == "polygon" and not annotation.get("iscrowd"):
            what = "an RLE; INPUT.MASK_FORMAT: allowed is bitmask"
        else:
            counts = masks["counts"]
            whole = isinstance(counts, str) or sum(counts) == math.prod(size)
            if masks["size"] != size or not whole:
                what = "an RLE of another size than its image; allowed is False"
        if what:
            bad.append(f"{_name_of('annotations', number, annotation)} has {what}")
    if bad:
        count = f"{len(bad)} of {len(content['annotations'])} cannot be used"
        raise InputError(f"MODEL.MASK_ON: True: {path}: {bad[0]} ({count})")
