"""archtrain and archval: a deterministic split of a training set (paper, Sec. 4.1).

Images are ordered by a hash of (seed, field); archval takes them from the start. So the split does
not depend on the order of the JSON. Entries that share the field's value or the file stay on one side.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from crnas_d2.data.coco_json import Record
from crnas_d2.errors import InputError
from crnas_d2.files import write_text
from crnas_d2.seeding import derive_seed

ARCHVAL_SIZE = 5000  # images (paper, Sec. 4.1); of a small set a fifth


def archval_ids(images: Sequence[dict[str, Any]], size: int, field: str, seed: int) -> set[Any]:
    """Ids of the images of archval.

    ``size``: the most images, in whole groups; 0 for the default. ``field``: the entry whose value
    keeps images together; ``id`` for none.

    Raises InputError: a size outside 1 .. number of images - 1 or of every group, no such field.
    """
    count = len(images)
    wanted = size or min(ARCHVAL_SIZE, max(count // 5, 1))
    if not 0 < wanted < count:
        allowed = f"allowed are 1 to {count - 1}, for {count} training images, or 0 for the default"
        raise InputError(f"SEARCH.ARCHVAL.SIZE: {size}: {allowed}")
    groups: dict[str, list[Any]] = defaultdict(list)
    first: dict[str, Any] = {}  # of each file, the field's value in its first entry
    for image in sorted(images, key=itemgetter("id")):
        if field not in image:
            why = f"image {image['id']} has no such entry; it has {', '.join(sorted(image))}"
            raise InputError(f"SEARCH.ARCHVAL.SPLIT_FIELD: {field!r}: {why}")
        groups[str(first.setdefault(image["file_name"], image[field]))].append(image["id"])
    chosen: set[Any] = set()
    for key in sorted(groups, key=lambda key: (derive_seed(seed, "split", key), key)):
        if len(chosen) + len(groups[key]) <= wanted:
            chosen.update(groups[key])
    if not chosen:
        raise InputError(f"SEARCH.ARCHVAL.SIZE: {wanted}: every group of {field!r} has more images")
    return chosen


def split(
    content: Record, size: int, field: str, seed: int, recalibration: int = 0
) -> dict[str, Record]:
    """The parts of a training set's COCO JSON, sorted by id: archtrain, archval, and recalibration.

    The first two are disjoint, together the whole set; the last is so many images of archtrain.
    Raises InputError: as ``archval_ids``, or a part without an object.
    """
    archval = archval_ids(content["images"], size, field, seed)
    archtrain = {image["id"] for image in content["images"]} - archval
    known = set(recalibration_ids(archtrain, recalibration, seed))
    parts = {}
    for name, ids in (("archtrain", archtrain), ("archval", archval), ("recalibration", known)):
        images = [image for image in content["images"] if image["id"] in ids]
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        if name != "recalibration" and all(annotation["iscrowd"] for annotation in annotations):
            why = f"{name} of {len(images)} images would have no annotation with iscrowd 0"
            raise InputError(f"SEARCH.ARCHVAL.SIZE: {size}: {why}")
        images.sort(key=itemgetter("id"))
        annotations.sort(key=itemgetter("id"))
        parts[name] = {**content, "images": images, "annotations": annotations}
    return parts


def recalibration_ids(ids: Iterable[Any], count: int, seed: int) -> list[Any]:
    """A fixed choice of ``count`` image ids, whatever their order; all, if there are fewer."""
    return sorted(ids, key=lambda i: (derive_seed(seed, "recalibration", str(i)), str(i)))[:count]


def write_splits(parts: Mapping[str, Record], folder: Path) -> None:
    """Write each part as {name}.json; log the classes of which archtrain or archval has no object."""
    for name, part in parts.items():
        write_text(folder / f"{name}.json", json.dumps(part))
    for name, verb in (("archtrain", "learn"), ("archval", "score")):
        present = {a["category_id"] for a in parts[name]["annotations"] if not a["iscrowd"]}
        absent = [c["name"] for c in parts[name]["categories"] if c["id"] not in present]
        if absent:
            text = "%s has no object of these classes, so a search cannot %s them: %s"
            logging.getLogger(__name__).warning(text, name, verb, ", ".join(absent))


def check_same_splits(parts: Mapping[str, Record], folder: Path) -> None:
    """Raise InputError if a part is not the one that an earlier run has written."""
    for name, part in parts.items():
        path = folder / f"{name}.json"
        if path.is_file() and path.read_text(encoding="utf-8") != json.dumps(part):
            why = f"its JSON gives another {name} than {path}"
            raise InputError(f"DATASETS.TRAIN: {why}; --resume continues with the same data only")
