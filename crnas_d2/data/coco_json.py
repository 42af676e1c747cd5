"""A COCO JSON and its pictures, checked before anybody works with them.

What detectron2 and pycocotools read of each record is looked at; the pictures are there and not empty,
and what is in them shows when they are read (loader.py).
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

from crnas_d2.errors import InputError

# The entries of each record, and what they have to be.
RECORD_ENTRIES = {
    "images": {"id": "id", "file_name": "text", "height": "pixels", "width": "pixels"},
    "categories": {"id": "id", "name": "text"},
    "annotations": {
        **{"id": "id", "image_id": "id", "category_id": "id"},
        **{"bbox": "box", "area": "area", "iscrowd": "flag"},
    },
}
ONE_OF = {"images": "image", "categories": "category", "annotations": "annotation"}


def read_coco_json(path: str, key: str) -> dict[str, Any]:
    """A COCO JSON with images, categories and at least one annotation.

    Args:
        key: the config key that named it, for messages.

    Raises:
        InputError: no such file, no JSON, a part is missing or empty, an entry of a record is missing
            or unsound, an id stands twice, or an annotation of an unknown image or category.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(f"{key}: {path}: {error.strerror}; a COCO JSON is needed") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key}: {path}: not a JSON file ({error})") from error
    for part in RECORD_ENTRIES:
        if not isinstance(content, dict) or not content.get(part):
            raise InputError(
                f"{key}: {path}: no {part}; a COCO JSON with images, categories and at least one "
                "annotation is needed"
            )
        if not isinstance(content[part], list):
            raise InputError(f"{key}: {path}: {part}: a list of records is needed")
    ids = {part: _ids(content[part], part, f"{key}: {path}") for part in RECORD_ENTRIES}
    for annotation in content["annotations"]:
        where = f"{key}: {path}: annotation {annotation['id']}"
        for part, entry in (("images", "image_id"), ("categories", "category_id")):
            if annotation[entry] not in ids[part]:
                raise InputError(
                    f"{where}: {entry} {annotation[entry]!r}: is the id of none of the {part}"
                )
        if not _is_segmentation(annotation.get("segmentation")):
            raise InputError(
                f"{where}: segmentation: polygons, each a list of numbers, or an RLE with size and "
                "counts is needed"
            )
    return content


def _ids(records: Sequence[Any], part: str, where: str) -> set[Any]:
    """The ids of a part's records, all of which are sound."""
    ids: set[Any] = set()
    for number, record in enumerate(records):
        for entry, kind in RECORD_ENTRIES[part].items():
            if not isinstance(record, dict) or entry not in record:
                raise InputError(f"{where}: {part}[{number}]: no {entry}")
            value, (is_sound, needed) = record[entry], KINDS[kind]
            if not is_sound(value):
                raise InputError(
                    f"{where}: {ONE_OF[part]} {record['id']!r:.40}: {entry} {value!r:.80}: {needed}"
                )
        if record["id"] in ids:
            raise InputError(f"{where}: {part}: id {record['id']!r} stands there twice")
        ids.add(record["id"])
    if len({type(number_or_text) for number_or_text in ids}) > 1:
        raise InputError(f"{where}: {part}: numbers and texts as ids; one kind is needed")
    return ids


def _is_id(value: Any) -> bool:
    return value != "" if type(value) is str else type(value) is int and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    try:
        return isinstance(values, list) and math.isfinite(math.fsum(values))
    except (TypeError, ValueError, OverflowError):
        return False


def _is_box(value: Any) -> bool:
    return _are_numbers(value) and len(value) == 4 and value[2] >= 0 and value[3] >= 0


def _is_segmentation(value: Any) -> bool:
    """None, or what detectron2 and pycocotools take; polygons without an area are dropped by them."""
    if isinstance(value, dict):
        counts, size = value.get("counts"), value.get("size", [])
        return _are_numbers(size) and len(size) == 2 and (type(counts) is str or _are_numbers(counts))
    return not value or (isinstance(value, list) and all(_are_numbers(polygon) for polygon in value))


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_id, "an integer of 64 bits or a text is needed"),
    "text": (lambda v: type(v) is str and v != "", "a text is needed"),
    "pixels": (lambda v: _is_number(v) and v >= 1 and v == int(v), "a positive integer is needed"),
    "box": (_is_box, "x, y, width and height are needed, in pixels"),
    "area": (lambda v: _is_number(v) and v >= 0, "a number of at least 0 is needed"),
    "flag": (lambda v: type(v) in (int, bool) and v in (0, 1), "0 or 1 is needed"),
}


def check_images(content: dict[str, Any], folder: str, key: str) -> None:
    """Every image that the JSON names lies in the folder and is not empty.

    Raises:
        InputError: the first image that is not so, and how many are.
    """
    names = [image["file_name"] for image in content["images"]]
    sizes = {name: _size(os.path.join(folder, name)) for name in names}
    for what, state, size in (("no such image", "missing", -1), ("an empty file", "empty", 0)):
        bad = [name for name in names if sizes[name] == size]
        if bad:
            how_many = f"{len(bad)} of {len(names)} are {state}"
            raise InputError(f"{key}: {os.path.join(folder, bad[0])}: {what} ({how_many})")


def _size(path: str) -> int:
    """Bytes; -1 for what is no file."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero in the name
        return -1
    return state.st_size if stat.S_ISREG(state.st_mode) else -1
