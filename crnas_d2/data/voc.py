"""A folder in the layout of Pascal VOC as the content of a COCO JSON; tools/prepare_data.py writes it.

InputError for all that cannot be read without guessing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from crnas_d2.data.prepared import Prepared, picture_names, picture_sizes, read_text
from crnas_d2.errors import InputError


class VocObject(NamedTuple):
    name: str
    corners: list[float]  # xmin, ymin, xmax, ymax, of pixels that are counted from 1
    is_difficult: bool


class VocFile(NamedTuple):
    size: tuple[float, float] | None  # width, height; None: not said
    objects: list[VocObject]


def read_voc(folder: Path, split: str | None) -> Prepared:
    """The images that ImageSets/Main lists for the split, or all that have an XML file.

    Classes are those of all XML files, sorted by name, so that the splits of a folder have the same.
    """
    files = read_annotations(folder)
    chosen = files
    if split is not None:
        chosen = {name: files[name] for name in _listed(folder, split, files)}
    names = {found.name for file in files.values() for found in file.objects}
    prepared = Prepared.of_classes(sorted(names))
    add_voc_images(prepared, folder, chosen)
    left = len(picture_names(folder / "JPEGImages")) - len(files)
    if split is None and left > 0:
        prepared.notes.append(f"{left} pictures have no XML file and were left out")
    prepared.check(folder)
    return prepared


def read_annotations(folder: Path) -> dict[str, VocFile]:
    """All of Annotations, sorted by name."""
    annotations = folder / "Annotations"
    paths = sorted(path for path in annotations.glob("*.xml") if not path.name.startswith("."))
    if not paths:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        needed = "the layout of Pascal VOC is needed: Annotations/*.xml, JPEGImages/*.jpg"
        raise InputError(f"{annotations}: no XML files; {needed}")
    return {path.stem: read_voc_xml(path) for path in paths}


def _listed(folder: Path, split: str, files: Mapping[str, VocFile]) -> list[str]:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    lines = read_text(path, "a list of names, one a line, is needed").splitlines()
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        why = f"already in line {seen[name]}" if name in seen else f"no Annotations/{name}.xml"
        if name and (name in seen or name not in files):
            raise InputError(f"{path}: line {number}: {name!r}: {why}; allowed is a new name a line")
        if name:
            seen[name] = number
    if not seen:
        raise InputError(f"{path}: empty; a list of names, one a line, is needed")
    return list(seen)


def read_voc_xml(path: Path) -> VocFile:
    try:
        root = ElementTree.fromstring(path.read_bytes())  # it opens no other file for an entity
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; an annotation of Pascal VOC is needed") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: not an XML file ({error})") from error
    if root.tag != "annotation":
        raise InputError(f"{path}: <{root.tag}>: <annotation> of Pascal VOC is needed")
    size = root.find("size")
    sides = (0.0, 0.0)
    if size is not None:
        sides = _number_in(size, "width", str(path)), _number_in(size, "height", str(path))
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        where = f"{path}: object {number}"
        name = (element.findtext("name") or "").strip()
        box = element.find("bndbox")
        if not name or box is None:
            raise InputError(f"{where}: no {'name' if not name else 'bndbox'}; both are needed")
        corners = [_number_in(box, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax")]
        is_difficult = (element.findtext("difficult") or "").strip() == "1"
        objects.append(VocObject(name, corners, is_difficult))
    return VocFile(sides if all(sides) else None, objects)  # some tools write 0 where they do not know


def _number_in(element: ElementTree.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    with suppress(ValueError):
        value = float(text or "")
        if math.isfinite(value):
            return value
    raise InputError(f"{where}: {tag} {text!r}: a number is needed")


def add_voc_images(prepared: Prepared, folder: Path, files: Mapping[str, VocFile]) -> None:
    """Add the pictures of JPEGImages that are called like the XML files, with their objects.

    Pixels are counted from 1 and xmax, ymax are the last ones inside, as in detectron2's loader. A box
    whose ends are one pixel is a click, not an object.
    """
    images = folder / "JPEGImages"
    by_stem: dict[str, list[str]] = {}
    for name in picture_names(images):
        by_stem.setdefault(name.rpartition(".")[0], []).append(name)
    for stem in files:
        found = by_stem.get(stem, [])
        if len(found) != 1:
            had = " and ".join(found) or "no picture"
            xml = folder / "Annotations" / f"{stem}.xml"
            raise InputError(f"{xml}: {had} in {images}; one picture called {stem} is needed")
    sizes = picture_sizes([by_stem[stem][0] for stem in files], images)
    ids = {category["name"]: category["id"] for category in prepared.categories}
    num_difficult = 0
    for stem, file in files.items():
        (name,), path = by_stem[stem], folder / "Annotations" / f"{stem}.xml"
        if file.size not in (None, sizes[name]):
            seen, said = ("{:g}x{:g}".format(*size) for size in (sizes[name], file.size))
            raise InputError(
                f"{path}: size {said}: detectron2 reads {images / name} as {seen}; both must agree"
            )
        image = prepared.add_image(name, sizes[name])
        for number, found_object in enumerate(file.objects, start=1):
            label, (left, top, right, bottom), is_difficult = found_object
            shown = ", ".join(f"{v:g}" for v in found_object.corners)
            where = f"{path}: object {number}: {label} [{shown}]"
            if label not in ids:
                raise InputError(f"{where}: allowed classes are {', '.join(ids)}")
            if right <= left or bottom <= top:
                prepared.dropped.append(where)
                continue
            corners = (left - 1, top - 1, right, bottom)
            annotation = prepared.add_object(image, ids[label], corners, where)
            if annotation is not None and is_difficult:
                annotation["difficult"] = 1
                num_difficult += 1
    if num_difficult:
        prepared.notes.append(f"{num_difficult} difficult objects were kept as ordinary ones")
