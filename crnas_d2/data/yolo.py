"""Pictures with YOLO's labels as the content of a COCO JSON; tools/prepare_data.py writes it.

A label is a text file with a line for each object: the class's number, and x, y, width, height of the
box (x and y of its centre), or the points of a polygon, all in parts of the picture. InputError for all
that cannot be read without guessing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from crnas_d2.data.prepared import Prepared, Record, picture_names, picture_sizes, read_text
from crnas_d2.errors import InputError

TOLERANCE = 0.01  # by which 0..1 may be exceeded: tools round, and boxes reach over the edge


def read_yolo(images: Path, labels: Path | None, classes: Path) -> Prepared:
    """All pictures below a folder, with the labels of the same names; without a label: no objects.

    ``labels``: by default the images' path with its last ``images`` replaced by ``labels``.
    ``classes``: a data.yaml, or a text file with one name a line.
    """
    names = read_class_names(classes)
    if labels is None:
        labels = _labels_beside(images)
    if not labels.is_dir():
        raise InputError(f"{labels}: no such folder; one with YOLO's labels is needed (--labels)")
    pictures = picture_names(images)
    texts = {path.relative_to(labels).as_posix() for path in labels.rglob("*.txt") if path.is_file()}
    label_of = {name: name.rpartition(".")[0] + ".txt" for name in pictures}
    if texts.isdisjoint(label_of.values()):
        wanted = f"{label_of[pictures[0]]} ... are needed"
        raise InputError(f"{labels}: labels of none of the {len(pictures)} pictures; {wanted}")
    sizes = picture_sizes(pictures, images)
    prepared = Prepared.of_classes(names)
    for name in pictures:
        image = prepared.add_image(name, sizes[name])
        if label_of[name] in texts:
            for label in _read_labels(labels / label_of[name], len(names)):
                _add_label(prepared, image, *label)
    unlabelled = sum(label not in texts for label in label_of.values())
    unused = len(texts - {*label_of.values()} - {"classes.txt"})  # some tools keep the names there
    if unlabelled:
        prepared.notes.append(f"{unlabelled} pictures have no label file: images without objects")
    if unused:
        prepared.notes.append(f"{unused} label files have no picture and were left out")
    prepared.check(labels)
    return prepared


def _labels_beside(images: Path) -> Path:
    if not images.is_dir():
        raise InputError(f"{images}: no such folder")
    parts = Path(os.path.abspath(images)).parts
    if "images" not in parts:
        raise InputError(f"{images}: no folder of its path is called images; --labels is needed")
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def read_class_names(path: Path) -> list[str]:
    """In the order of their numbers, from 0."""
    text = read_text(path, "a data.yaml or a text file with one name a line is needed")
    names: Any = text.rstrip().splitlines()
    if path.suffix.lower() in (".yaml", ".yml"):
        names = _yaml_names(path, text)
    if not isinstance(names, list) or not names:
        raise InputError(
            f"{path}: names {names!r:.60}: a list, or numbers from 0 with names, is needed"
        )
    for number, name in enumerate(names):
        # YAML reads the word no as False; a number is as good as a name.
        if isinstance(name, bool) or not isinstance(name, (str, int)) or not str(name).strip():
            raise InputError(f"{path}: name {number}: {name!r}: a text is needed, in YAML in quotes")
    found = [str(name).strip() for name in names]
    for number, name in enumerate(found):
        if name in found[:number]:
            raise InputError(f"{path}: name {number}: {name!r} is that of {found.index(name)}, too")
    return found


def _yaml_names(path: Path, text: str) -> Any:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: no names; a data.yaml with names is needed")
    if "kpt_shape" in content:  # their columns could not be told from a polygon's
        raise InputError(f"{path}: kpt_shape: labels with keypoints; boxes or polygons are needed")
    names = content.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    count = content.get("nc")
    if isinstance(names, list) and count not in (None, len(names)):
        raise InputError(f"{path}: nc {count!r}: there are {len(names)} names; both must agree")
    return names


def _read_labels(path: Path, num_classes: int) -> Iterator[tuple[int, list[float], str]]:
    """The class's number, the other columns, and the line's place."""
    for number, line in enumerate(read_text(path, "a label is needed").splitlines(), start=1):
        words, where = line.split(), f"{path}: line {number}"
        if not words:
            continue
        if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
            why = f"{len(words)} columns; allowed is class x y w h, or class x1 y1 x2 y2 x3 y3 ..."
            raise InputError(f"{where}: {line.strip()!r:.80}: {why}")
        values = []
        for word in words:
            try:
                values.append(float(word))
            except ValueError as error:
                raise InputError(f"{where}: {word!r}: a number is needed") from error
        category, *values = values
        if not 0 <= category < num_classes or category != int(category):
            raise InputError(
                f"{where}: class {words[0]}: allowed are 0 to {num_classes - 1}; "
                f"{num_classes} names are given"
            )
        for word, value in zip(words[1:], values):
            if not -TOLERANCE <= value <= 1 + TOLERANCE:
                pixels = " (pixels have to be divided by its width and height)" if value > 1 else ""
                raise InputError(f"{where}: {word}: allowed is 0 to 1, in parts of the picture{pixels}")
        yield int(category), values, f"{where}: {' '.join(words):.60}"


def _add_label(prepared: Prepared, image: Record, number: int, values: list[float], where: str) -> None:
    if len(values) == 4:
        x, y, width, height = values
        if min(width, height) <= 0:
            prepared.dropped.append(where)
            return
        values = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    sides = (image["width"], image["height"])
    points = [value * sides[i % 2] for i, value in enumerate(values)]
    prepared.add_object(image, number + 1, points, where)
