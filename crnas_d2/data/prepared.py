"""What voc.py and yolo.py make of a folder: the content of a COCO JSON, and a count of what it lacks.

Sizes are those of the pictures as detectron2 reads them. Boxes are clipped to their picture, and those
without area are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as coco_mask

from crnas_d2.data.pictures import TRANSPOSED, check_headers, orientation_of
from crnas_d2.errors import InputError

Record = dict[str, Any]
PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DECIMALS = 3  # of a pixel; the six digits of a YOLO label know no more


def _rounded(value: float) -> int | float:
    value = round(value, DECIMALS)
    return int(value) if value == int(value) else value


@dataclass
class Prepared:
    """The parts of a COCO JSON, and what became of boxes that are not in it as they were."""

    categories: list[Record]
    images: list[Record] = field(default_factory=list)
    annotations: list[Record] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # the place and the numbers of each
    clipped: list[str] = field(default_factory=list)  # those that lost more than a pixel
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_classes(cls, names: Sequence[str], **entries: Any) -> Prepared:
        return cls([{"id": i, "name": name, **entries} for i, name in enumerate(names, start=1)])

    def add_image(self, file_name: str, size: tuple[int, int]) -> Record:
        entries = {"file_name": file_name, "width": size[0], "height": size[1]}
        self.images.append({"id": len(self.images) + 1, **entries})
        return self.images[-1]

    def add_object(
        self, image: Record, category: int, points: Sequence[float], where: str
    ) -> Record | None:
        """Add what lies in the picture; None where that has no area.

        ``points``: x, y, x, y ... in pixels from the picture's corner: two opposite corners of a box,
        or at least three points of a polygon.
        """
        sides = (image["width"], image["height"])
        inside = [min(max(v, 0), sides[i % 2]) for i, v in enumerate(points)]
        xs, ys = inside[::2], inside[1::2]
        corners = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        x, y, width, height = (_rounded(v) for v in corners)
        entries: Record = {"area": _rounded(width * height), "iscrowd": 0}
        if len(points) > 4:
            polygon = [[_rounded(v) for v in inside]]
            masks = coco_mask.frPyObjects(polygon, sides[1], sides[0])
            entries = {"area": int(coco_mask.area(masks)[0]), "iscrowd": 0, "segmentation": polygon}
        if not (width and height and entries["area"]):
            self.dropped.append(where)
            return None
        if max(abs(a - b) for a, b in zip(inside, points)) > 1:
            self.clipped.append(where)
        found = {"id": len(self.annotations) + 1, "image_id": image["id"], "category_id": category}
        self.annotations.append({**found, "bbox": [x, y, width, height], **entries})
        return self.annotations[-1]

    def check(self, source: Path) -> None:
        """Raise InputError if there is nothing to learn from, or hardly a box lies in its picture."""
        if not self.annotations:
            raise InputError(f"{source}: {len(self.images)} images and no box; at least one is needed")
        odd = [*self.clipped, *self.dropped]
        if 2 * len(odd) > len(self.annotations) + len(self.dropped):
            raise InputError(
                f"{source}: {len(odd)} boxes have no area or leave their picture, more than half: "
                f"{odd[0]} ...; do they belong to these pictures?"
            )


def picture_names(folder: Path) -> list[str]:
    """Sorted paths below the folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; one with pictures is needed")
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()
    ]
    if not names:
        raise InputError(f"{folder}: no pictures; allowed are {', '.join(PICTURES)}")
    return sorted(names)


def picture_sizes(names: Sequence[str], folder: Path) -> dict[str, tuple[int, int]]:
    """Width and height after the EXIF rotation, which detectron2 applies. As ``check_headers``."""
    with ThreadPool(8) as threads:
        sizes = threads.map(lambda name: _size(folder / name), names)
    entries = [{"file_name": n, "width": w, "height": h} for n, (w, h) in zip(names, sizes)]
    check_headers(entries, str(folder), str(folder))
    return dict(zip(names, sizes))


def _size(path: Path) -> tuple[int, int]:
    with suppress(Exception), Image.open(path) as picture:  # check_headers says what is wrong
        width, height = picture.size
        return (height, width) if orientation_of(picture) in TRANSPOSED else (width, height)
    return 0, 0


def read_text(path: Path, needed: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {needed}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a text file ({error}); {needed}") from error
