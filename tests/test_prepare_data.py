"""tools/prepare_data.py: Pascal VOC and the source of bccd as a COCO JSON; what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from preparing import (
    HEIGHT,
    WIDTH,
    checked,
    files_below,
    make_picture,
    output_of,
    refusal,
    refused,
)

from crnas_d2.data.datasets import load_coco
from crnas_d2.data.voc import read_voc
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.structures import BoxMode

Box = tuple[str, float, float, float, float]  # class, xmin, ymin, xmax, ymax

# ---- Pascal VOC ----------------------------------------------------------------------------------


def xml_of(boxes: list[Box], size: str = f"{WIDTH}x{HEIGHT}", difficult: int = 0) -> str:
    """``difficult``: the number of the object that is, from 1."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(number == difficult)}</difficult><bndbox>"
        f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"
        f"<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
        f"</bndbox></part></object>"
        for number, (name, left, top, right, bottom) in enumerate(boxes, start=1)
    )
    width, _, height = size.partition("x")
    sides = f"<size><width>{width}</width><height>{height}</height></size>" if size else ""
    return f"<annotation>{sides}{objects}</annotation>"


BOXES: dict[str, list[Box]] = {
    "one": [("dog", 11, 21, 60, 70), ("cat", 1, 1, WIDTH, HEIGHT), ("dog", 4.5, 8.25, 30, 40)],
    "two": [("person", 100, 50, 150, 90)],
    "three": [],
    "four": [("zebra", 5, 5, 20, 20), ("cat", 31, 32, 41, 52)],
}


def add_voc(folder: Path, name: str, text: str) -> None:
    make_picture(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(text)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name, boxes in BOXES.items():
        add_voc(tmp_path / "voc", name, xml_of(boxes))
    (tmp_path / "voc" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "voc" / "ImageSets" / "Main" / "trainval.txt").write_text("two\none\nthree\n")
    return tmp_path / "voc"


def test_voc_is_what_detectron2_reads(voc: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    output_of("voc", voc, "--split", "trainval", "--output", path)
    content = checked(path, voc / "JPEGImages")
    names = [category["name"] for category in content["categories"]]
    assert names == ["cat", "dog", "person", "zebra"]  # zebra is in no image of this split
    theirs = load_voc_instances(str(voc), "trainval", names)
    ours = load_coco(f"voc of {path}", str(path), str(voc / "JPEGImages"))
    assert len(ours) == len(theirs) == 3
    for mine, other in zip(ours, theirs):
        assert all(mine[key] == other[key] for key in ("file_name", "height", "width"))
        found = [
            (a["category_id"], BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS))
            for a in mine["annotations"]
        ]
        assert found == [(a["category_id"], a["bbox"]) for a in other["annotations"]]
    assert content["annotations"][1]["bbox"] == [10, 20, 50, 50]
    assert content["annotations"][1]["area"] == 2500


def test_a_voc_folder_without_lists(voc: Path, tmp_path: Path) -> None:
    """As labelImg makes one: all XML files by name, any kind of picture, some without a file."""
    (voc / "ImageSets" / "Main" / "trainval.txt").unlink()
    add_voc(voc, "five", xml_of([("dog", 1, 1, 9, 9)], size=""))
    (voc / "JPEGImages" / "five.jpg").unlink()
    make_picture(voc / "JPEGImages" / "five.PNG")
    make_picture(voc / "JPEGImages" / "new.jpg")
    (voc / "JPEGImages" / "._one.jpg").write_bytes(b"what a Mac leaves behind")
    out = output_of("voc", voc, "--output", tmp_path / "all.json")
    images = checked(tmp_path / "all.json", voc / "JPEGImages")["images"]
    assert [i["file_name"] for i in images] == [
        "five.PNG",
        "four.jpg",
        "one.jpg",
        "three.jpg",
        "two.jpg",
    ]
    assert (
        "5 images (1 without objects), 7 boxes\n    4 classes: cat 2, dog 3, person 1, zebra 1" in out
    )
    assert "1 pictures have no XML file and were left out" in out
    assert f"DATASETS.TRAIN_JSON {tmp_path}/all.json DATASETS.TRAIN_IMAGES {voc}/JPEGImages" in out


def test_difficult_objects_are_ordinary_ones(voc: Path) -> None:
    """detectron2 trains on them, and leaves out what has iscrowd 1."""
    add_voc(voc, "two", xml_of([("dog", 1, 1, 9, 9), ("dog", 5, 5, 50, 50)], difficult=2))
    prepared = read_voc(voc, "trainval")
    found = [(a["iscrowd"], a.get("difficult")) for a in prepared.annotations]
    assert found == [(0, None), (0, 1), (0, None), (0, None), (0, None)]
    assert prepared.notes == ["1 difficult objects were kept as ordinary ones"]


def test_boxes_of_no_area_and_beyond_the_picture(voc: Path) -> None:
    boxes: list[Box] = [
        ("dog", 5, 5, 5, 9),  # one pixel wide: a click
        ("dog", 5, 9, 9, 5),
        ("dog", 250, 5, 260, 9),  # outside
        ("dog", 0, 1, 10, 10),  # counted from 0
        ("dog", 151, 51, 240, 140),
    ]
    add_voc(voc, "one", xml_of([*BOXES["one"], *boxes]))
    add_voc(voc, "two", xml_of(4 * BOXES["two"]))
    prepared = read_voc(voc, "trainval")
    assert [a["bbox"] for a in prepared.annotations[-2:]] == [[0, 0, 10, 10], [150, 50, 50, 50]]
    xml = voc / "Annotations" / "one.xml"
    assert prepared.dropped[0] == f"{xml}: object 4: dog [5, 5, 5, 9]"
    assert [place.split()[2] for place in prepared.dropped] == ["4:", "5:", "6:"]
    assert [place.split()[2] for place in prepared.clipped] == ["8:"]


def test_boxes_of_other_pictures(voc: Path) -> None:
    for name in ("one", "two"):
        add_voc(
            voc, name, xml_of([("dog", 300, 100, 500, 300), ("dog", 150, 50, 500, 300)], size="0x0")
        )
    assert "4 boxes have no area or leave their picture, more than half" in refusal(
        lambda: read_voc(voc, "trainval")
    )


XML, LIST = "Annotations/one.xml", "ImageSets/Main/trainval.txt"
BAD_VOC = {
    "no xml": (XML, "<annotation>", "one.xml: not an XML file (no element found: line 1"),
    "another xml": (XML, "<svg></svg>", "one.xml: <svg>: <annotation> of Pascal VOC is needed"),
    "encoding": (XML, "<?xml version='1.0' encoding='x'?><annotation/>", "not an XML file"),
    "number": (XML, xml_of([("dog", 1, 1, "9px", 9)]), "one.xml: object 1: xmax '9px': a number is"),  # type: ignore[list-item]
    "infinite": (XML, xml_of([("dog", 1, 1, 9, float("inf"))]), "object 1: ymax 'inf': a number is"),
    "no class": (XML, xml_of([("dog", 1, 1, 9, 9), (" ", 1, 1, 9, 9)]), "object 2: no name; both"),
    "no box": (XML, "<annotation><object><name>a</name></object></annotation>", "object 1: no bndbox"),
    "size": (XML, xml_of([], "100x200"), "one.xml: size 100x200: detectron2 reads "),
    "no size": (XML, xml_of([], "axb"), "one.xml: width 'a': a number is needed"),
    "unknown": (LIST, "one\nfive\n", "line 2: 'five': no Annotations/five.xml; allowed is"),
    "columns": (LIST, "one  1\ntwo -1\n", "trainval.txt: line 1: 'one  1': no Annotations/one  1.xml"),
    "twice": (LIST, "one\n\none\n", "trainval.txt: line 3: 'one': already in line 1"),
    "empty": (LIST, "\n", "trainval.txt: empty; a list of names"),
    "no picture": (LIST, "one\ngone\n", "gone.xml: no picture in "),
    "two pictures": (LIST, "twin\n", "twin.xml: twin.jpg and twin.png in "),
    "no boxes": (LIST, "three\n", "voc: 1 images and no box"),
    "bad picture": (LIST, "one\nbad\n", "1 of 2 images cannot be used: "),
}


@pytest.mark.parametrize("case", BAD_VOC)
def test_bad_voc_folders(voc: Path, case: str) -> None:
    for name in ("gone", "twin", "bad"):
        add_voc(voc, name, xml_of([("dog", 1, 1, 9, 9)]))
    (voc / "JPEGImages" / "gone.jpg").unlink()
    make_picture(voc / "JPEGImages" / "twin.png")
    (voc / "JPEGImages" / "bad.jpg").write_bytes(b"no picture")
    file, text, shown = BAD_VOC[case]
    (voc / file).write_text(text)
    assert shown in refusal(lambda: read_voc(voc, "trainval"))


def test_what_a_voc_folder_lacks(voc: Path) -> None:
    assert f"{voc}/ImageSets/Main/val.txt: No such file" in refusal(lambda: read_voc(voc, "val"))
    (voc / "JPEGImages").rename(voc / "elsewhere")
    assert f"{voc}/JPEGImages: no such folder" in refusal(lambda: read_voc(voc, None))
    (voc / "JPEGImages").mkdir()
    assert f"{voc}/JPEGImages: no pictures; allowed are .bmp" in refusal(lambda: read_voc(voc, None))
    (voc / "Annotations").rename(voc / "Labels")
    assert f"{voc}/Annotations: no XML files; the layout of" in refusal(lambda: read_voc(voc, None))


def test_no_entity_of_an_xml_is_read(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entity = f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
    text = xml_of([("dog", 1, 1, 9, 9)]).replace("dog", "&x;")
    for encoding in ("utf-8", "utf-16"):
        (voc / "Annotations" / "one.xml").write_bytes((entity + text).encode(encoding))
        shown = "one.xml: not an XML file (undefined entity &x;"
        assert shown in refusal(lambda: read_voc(voc, None))


# ---- bccd ----------------------------------------------------------------------------------------

# What the source has and the JSON does not (docs/DATASETS.md): object's place and both corners.
DEGENERATE = {"BloodImage_00338": (12, 504, 337), "BloodImage_00343": (3, 181, 329)}


@pytest.fixture
def clone(shared_data: Path, tmp_path: Path) -> Path:
    """The layout of the source, from what was made of it."""
    folder = tmp_path / "clone" / "BCCD"
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").symlink_to(shared_data / "bccd" / "images")
    for split in ("train", "val"):
        content = json.loads((shared_data / "bccd" / f"{split}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            boxes: list[Box] = []
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"]:
                    x, y, width, height = annotation["bbox"]
                    box = (x + 1, y + 1, x + width, y + height)
                    boxes.append((names[annotation["category_id"]], *box))
            stem = Path(image["file_name"]).stem
            if stem in DEGENERATE:
                place, x, y = DEGENERATE[stem]
                boxes.insert(place, ("RBC", x, y, x, y))
            text = xml_of(boxes, f"{image['width']}x{image['height']}")
            (folder / "Annotations" / f"{stem}.xml").write_text(text)
    return folder.parent


def test_bccd_is_the_data_set_that_was_studied(clone: Path, shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bccd"
    said = output_of("bccd", clone, out)
    assert sorted(path.name for path in out.iterdir()) == ["images", "train.json", "val.json"]
    for split in ("train", "val"):
        found, expected = (
            json.loads((folder / f"{split}.json").read_text()) for folder in (out, shared_data / "bccd")
        )
        assert found == expected
        assert list(found["annotations"][0]) == list(expected["annotations"][0])
    assert files_below(out / "images") == files_below(shared_data / "bccd" / "images")
    assert "train.json: 292 images (0 without objects), 3936 boxes" in said
    assert "val.json: 72 images (0 without objects), 950 boxes" in said
    assert "2 boxes without area were dropped:" in said and "RBC [504, 337, 504, 337]" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bccd", "clone"]


def test_another_commit_of_bccd(clone: Path, tmp_path: Path) -> None:
    (clone / "BCCD" / "Annotations" / "BloodImage_00001.xml").unlink()
    assert "363 photographs, 4867 boxes: commit d272fb1 with 364 and 4886" in refused(
        "bccd", clone, tmp_path / "bccd"
    )
    annotation = clone / "BCCD" / "Annotations" / "BloodImage_00000.xml"
    annotation.write_text(annotation.read_text().replace("WBC", "BASO"))
    said = refused("bccd", clone, tmp_path / "bccd")
    assert (
        "BloodImage_00000.xml: object 1: BASO [260, 177, 491, 376]: allowed classes are RBC, WBC"
        in said
    )
    assert [path.name for path in tmp_path.iterdir()] == ["clone"]


# ---- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("old.json", "is there already; remove it, or give another name"),
        ("gone/new.json", "{folder}/gone: no such folder"),
        ("new.txt", "a name that ends in .json is needed"),
    ],
)
def test_no_output_that_cannot_be_or_is_there(voc: Path, tmp_path: Path, output: str, why: str) -> None:
    (tmp_path / "old.json").write_text("mine")
    before = files_below(tmp_path)
    said = refused("voc", voc, "--output", tmp_path / output)
    assert said == f"error: --output: {tmp_path / output}: {why.format(folder=tmp_path)}"
    assert files_below(tmp_path) == before


def test_no_folder_that_is_there(tmp_path: Path) -> None:
    said = refused("bccd", tmp_path, tmp_path)
    assert said == f"error: OUT: {tmp_path}: is there already; remove it, or give another name"


def test_nothing_is_written_before_everything_was_read(voc: Path, tmp_path: Path) -> None:
    (voc / "Annotations" / "two.xml").write_text("<annotation>")
    before = files_below(tmp_path)
    said = refused("voc", voc, "--split", "trainval", "--output", tmp_path / "new.json")
    assert re.search(r"two\.xml: not an XML file \(no element found: line 1, column 12\)$", said)
    assert files_below(tmp_path) == before
