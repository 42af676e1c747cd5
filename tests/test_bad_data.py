"""Bad data: one line before the run starts, status 2, and no file is touched (bench.py)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from bench import SEARCH, TRAIN, Bench
from detectors import HEADS

from crnas_d2.data.datasets import register_coco
from crnas_d2.pipeline.plan import plan_search
from detectron2.engine import default_argument_parser

Content = dict[str, Any]
DATA_KEYS = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")


def first(part: str, **values: Any) -> Callable[[Content], object]:
    return lambda content: content[part][0].update(values)


def each(**values: Any) -> Callable[[Content], object]:
    return lambda content: [annotation.update(values) for annotation in content["annotations"]]


JSONS: dict[str, tuple[Callable[[Content], object], str]] = {
    "images by name": (lambda c: c.update(images={"a": 1}), "images: a list of records is needed"),
    "annotations in a text": (lambda c: c.update(annotations="none"), "annotations: a list"),
    "an image that is a number": (lambda c: c["images"].insert(0, 5), "images: a list of records"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "annotations[0] (id 1): bbox None: x, y"),
    "an id that is a list": (first("images", id=[1]), "images[0] (id [1]): id [1]: an integer"),
    "a huge id": (first("images", id=10**30), "id 1000000"),
    "a fraction as id": (first("images", id=1.5), "images[0] (id 1.5): id 1.5: an integer"),
    "two kinds of ids": (first("categories", id="one"), "categories: numbers and texts as ids; "),
    "the same id": (first("images", id=2), "images: 2 have the id 2; different ids"),
    "a name that is a number": (first("images", file_name=7), "images[0] (id 1): file_name 7: a text"),
    "no height": (first("images", height=0), "images[0] (id 1): height 0: a positive integer"),
    "half a pixel": (first("images", width=9.5), "images[0] (id 1): width 9.5: a positive integer"),
    "a category without a name": (first("categories", name=""), "categories[0] (id 1): name '': a te"),
    "a box of texts": (first("annotations", bbox=["1", "2", "3", "4"]), "bbox ['1', '2', '3', '4']: x"),
    "a box of NaN": (first("annotations", bbox=[1, 2, math.nan, 4]), "bbox [1, 2, nan, 4]: x, y"),
    "a box without end": (first("annotations", bbox=[1, 2, math.inf, 4]), "bbox [1, 2, inf, 4]: x, y"),
    "a negative width": (first("annotations", bbox=[1, 2, -3, 4]), "bbox [1, 2, -3, 4]: x, y"),
    "a box in a box": (first("annotations", bbox=[[1, 2, 3, 4]]), "bbox [[1, 2, 3, 4]]: x, y"),
    "a negative area": (first("annotations", area=-1), "area -1: a number of at least 0"),
    "half a crowd": (first("annotations", iscrowd=2), "iscrowd 2: 0 or 1"),
    "a crowd by text": (first("annotations", iscrowd="0"), "iscrowd '0': 0 or 1"),
    "crowds alone": (each(iscrowd=1), "annotations have iscrowd 1; objects have 0"),
    "no area at all": (each(bbox=[5, 5, 0, 9]), "boxes have no area or leave their image: [5, 5, 0"),
    "corners for sizes": (each(bbox=[40, 40, 60, 70]), "(not x1, y1, x2, y2)"),
    "off the image": (each(bbox=[-20, 40, 60, 20]), "boxes have no area or leave their image: [-20,"),
    "a polygon of texts": (first("annotations", segmentation=[["a"] * 6]), "each a list of numbers"),
    "a polygon of NaN": (first("annotations", segmentation=[[math.nan] * 6]), "each a list of numbers"),
    "points without a polygon": (first("annotations", segmentation=[1, 2, 3]), "each a list of number"),
    "an RLE without counts": (first("annotations", segmentation={"size": [4, 4]}), "an RLE with size"),
    "an image elsewhere": (first("images", file_name="../x.jpg"), "/../x.jpg: No such file"),
    "a zero in a name": (first("images", file_name="a\0.jpg"), "/a\0.jpg: embedded null byte"),
    "no such image": (
        first("annotations", image_id=47),
        "image_id 47: is the id of none of the images",
    ),
    "no such category": (first("annotations", category_id=47), "category_id 47: is the id of none of"),
    "a box of three": (first("annotations", bbox=[1, 2, 3]), "bbox [1, 2, 3]: x, y, width, height are"),
    "another size": (first("images", width=64), "train_00001.jpg: is 96x96, the JSON says 64x96"),
}


@pytest.mark.parametrize("id", JSONS)
def test_a_fault_is_one_line(bench: Bench, id: str) -> None:
    change, shown = JSONS[id]
    error = bench.call(SEARCH, "DATASETS.TRAIN_JSON", bench.json(change))
    assert shown in error, error


POLYGON = [[5, 5, 40, 5, 40, 40]]


def rle(size: list[int], *counts: int) -> dict[str, Any]:
    return {"size": size, "counts": list(counts)}


MASKS = {
    # the first annotation's, options of a Mask R-CNN, and what the line shows
    "none": (None, [], "(id 1) has no RLE or polygon of three points; allowed is False"),
    "no polygon": ([], [], "(id 1) has no RLE or polygon of three points; allowed is False"),
    "an empty polygon": ([[]], [], "(id 1) has no RLE or polygon of three points; allowed is False"),
    "two points": ([[5, 5, 40, 40]], [], "(id 1) has no RLE or polygon of three points; allowed is"),
    "an RLE": (
        rle([96, 96], 4000, 5216),
        ["INPUT.MASK_FORMAT", "polygon"],
        "(id 1) has an RLE; INPUT.MASK_FORMAT: allowed is bitmask",
    ),
    "an RLE of another size": (rle([96, 95], 4000, 5120), [], "an RLE of another size than its image"),
    "counts that are none": (rle([96, 96], 5, 20, 7, 20), [], "an RLE of another size than its image"),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_cannot_be_read(bench: Bench, case: str) -> None:
    """Refused where they are used; else they are no matter, in both scripts (cases 11, 12)."""
    masks, options, shown = MASKS[case]
    data = ["DATASETS.TRAIN_JSON", bench.json(first("annotations", segmentation=masks))]
    assert bench.starts(TRAIN, *HEADS["MaskRCNN"])
    for name in (TRAIN, SEARCH):
        error = bench.call(name, *HEADS["MaskRCNN"], *options, *data)
        assert error.startswith(f"error: MODEL.MASK_ON: True: {data[1]}: annotations[0] ")
        assert shown in error
        assert bench.starts(name, *options, *data)


@pytest.mark.parametrize("masks", [POLYGON, rle([96, 96], 4000, 5216)])
def test_masks_that_can_be_read(bench: Bench, masks: Any) -> None:
    data = ["DATASETS.TRAIN_JSON", bench.json(first("annotations", segmentation=masks))]
    assert bench.starts(TRAIN, *HEADS["MaskRCNN"], *data)
    # Crowds are not trained on, and COCO's own are RLEs among polygons.
    crowd = bench.json(first("annotations", segmentation=masks, iscrowd=1))
    polygons = ["INPUT.MASK_FORMAT", "polygon", "DATASETS.TRAIN_JSON", crowd]
    assert bench.starts(TRAIN, *HEADS["MaskRCNN"], *polygons)


def test_the_masks_of_a_test_set_may_be_rles(bench: Bench) -> None:
    path = bench.json(first("annotations", segmentation=rle([96, 96], 4000, 5216)))
    test = ["DATASETS.TEST_JSON", path, "INPUT.MASK_FORMAT", "polygon"]
    assert bench.starts(TRAIN, *HEADS["MaskRCNN"], *test)
    path = bench.json(first("annotations", segmentation=[]))
    error = bench.call(TRAIN, *HEADS["MaskRCNN"], "DATASETS.TEST_JSON", path)
    assert f"MODEL.MASK_ON: True: {path}: annotations[0] (id 1) has no RLE or polygon" in error


# Not as COCO has it, but clear, and what other tools write (cases 01, 21, 22, 25).
USABLE: dict[str, Callable[[Content], object]] = {
    "no area": lambda content: [a.pop("area") for a in content["annotations"]],
    "no iscrowd": lambda content: [a.pop("iscrowd") for a in content["annotations"]],
    "null": each(area=None, iscrowd=None),
    "no ids": lambda content: [a.pop("id") for a in content["annotations"]],
    "one id": each(id=7),
    "texts as ids": lambda c: [a.update(id=f"{a['id']:08x}-4a") for a in c["annotations"]],
    "fractions as ids": lambda c: [a.update(id=a["id"] + 0.5) for a in c["annotations"]],
    "ids from 0": lambda c: [a.update(id=a["id"] - 1) for a in c["annotations"]],
    "some boxes odd": first("annotations", bbox=[-30, 5, 40, 0]),
}


@pytest.mark.parametrize("change", USABLE)
def test_a_usable_json(bench: Bench, change: str) -> None:
    path = bench.json(USABLE[change])
    both = ["DATASETS.TRAIN_JSON", path, "DATASETS.TEST_JSON", path]
    assert bench.starts(TRAIN, *both)
    assert bench.starts(SEARCH, *both, "SEARCH.PHASES", ("stage", "retrain"))


@pytest.mark.parametrize(
    "change",
    [lambda content: content.update(annotations=[]), lambda content: content.pop("annotations")],
    ids=["empty", "none"],
)
def test_a_test_set_without_annotations(bench: Bench, change: Any) -> None:
    """train_net.py predicts; a search that retrains needs results (case 34)."""
    options = ["DATASETS.TEST_JSON", bench.json(change)]
    assert bench.starts(TRAIN, *options)
    assert bench.starts(TRAIN, "--eval-only", "MODEL.WEIGHTS", bench.checkpoint(), *options)
    assert bench.starts(SEARCH, *options)
    error = bench.call(SEARCH, *options, "SEARCH.PHASES", ("stage", "retrain"))
    assert error.startswith(f"error: DATASETS.TEST_JSON: {options[1]}: no annotations; ")


@pytest.mark.parametrize("name", [TRAIN, SEARCH])
def test_the_classes_of_a_registered_set(bench: Bench, name: str) -> None:
    """Of one of your own the heads follow the JSON (case 33)."""
    registered = f"registered for {bench.folder}"
    register_coco(registered, str(bench.shapes / "train.json"), str(bench.shapes / "images"))
    none = [part for key in DATA_KEYS for part in (f"DATASETS.{key}", "")]
    options = [*none, "DATASETS.TRAIN", (registered,), "DATASETS.TEST", ()]
    assert bench.starts(name, *options, "MODEL.ROI_HEADS.NUM_CLASSES", 3)
    for count in (2, 80):
        error = bench.call(name, *options, "MODEL.ROI_HEADS.NUM_CLASSES", count)
        shown = f"MODEL.ROI_HEADS.NUM_CLASSES: {count}: DATASETS.TRAIN {registered!r} has 3 classes"
        assert error == f"error: {shown}\n"


@pytest.mark.parametrize("own", [True, False])
def test_the_test_sets_classes_are_the_registered_training_sets(bench: Bench, own: bool) -> None:
    """A test set of your own or a registered one; --eval-only trains on nothing."""

    def reversed_names(content: dict[str, Any]) -> None:
        for category, name in zip(content["categories"], ("triangle", "square", "disc")):
            category["name"] = name

    names, images = [f"{i} for {bench.folder} {own}" for i in range(2)], str(bench.shapes / "images")
    changed = bench.json(reversed_names)
    for name, path in zip(names, (str(bench.shapes / "train.json"), changed)):
        register_coco(name, path, images)
    none = [part for key in DATA_KEYS for part in (f"DATASETS.{key}", "")]
    options = [*none, "DATASETS.TRAIN", (names[0],), "MODEL.ROI_HEADS.NUM_CLASSES", 3]
    test = ["DATASETS.TEST_JSON", changed, "DATASETS.TEST_IMAGES", images]
    test = test if own else ["DATASETS.TEST", (names[1],)]
    retrains = ["SEARCH.PHASES", ("stage", "retrain")]
    shown = "DATASETS.TEST_JSON" if own else f"DATASETS.TEST: {names[1]!r}"
    for name in (TRAIN, SEARCH):
        error = bench.call(name, *options, *test, *retrains)
        assert error.startswith(
            f"error: {shown}: classes ['triangle', 'square', 'disc']; the training "
        )
        assert bench.starts(name, *options, "DATASETS.TEST", (names[0],), *retrains)
    weights = ["MODEL.WEIGHTS", bench.checkpoint()]
    assert bench.starts(TRAIN, "--eval-only", *options, *test, *weights)


def test_all_bad_images_in_one_line(bench: Bench) -> None:
    """Also of the test set (cases 04, 05, 15, 26); each kind is in test_pictures.py."""
    images = bench.folder / "images"
    shutil.copytree(bench.shapes / "images", images)
    (images / "train_00002.jpg").write_bytes(b"")
    (images / "train_00003.jpg").unlink()
    (images / "val_00004.jpg").write_bytes(b"no image")
    error = bench.call(SEARCH, "DATASETS.TRAIN_IMAGES", str(images))
    where = "error: DATASETS.TRAIN_IMAGES: 2 of 12 images cannot be used: "
    assert error.startswith(f"{where}{images}/train_00002.jpg: cannot identify image file ")
    assert error.endswith(f"; {images}/train_00003.jpg: No such file or directory\n")
    error = bench.call(TRAIN, "--eval-only", "DATASETS.TEST_IMAGES", str(images))
    shown = f"1 of 4 images cannot be used: {images / 'val_00004.jpg'}: cannot identify"
    assert error.startswith(f"error: DATASETS.TEST_IMAGES: {shown}")


def test_half_images_that_scoring_needs_are_named_before_training(bench: Bench) -> None:
    """Case 05: of archval and of recalibration; header and size are right: no other check sees it."""
    images = bench.folder / "images"
    shutil.copytree(bench.shapes / "images", images)
    whole = [path.read_bytes() for path in sorted(images.glob("train_*"))]
    for path, content in zip(sorted(images.glob("train_*")), whole):
        path.write_bytes(content[: len(content) // 2])
    keys = ["DATASETS.TRAIN_IMAGES", str(images), "SEARCH.EVAL.RECALIBRATION_IMAGES"]
    for recalibration, count in ((0, 4), (6, 10)):
        error = bench.call(SEARCH, *keys, recalibration, "SEARCH.ARCHVAL.SIZE", 4)
        assert f"DATASETS.TRAIN: {count} of {count} images cannot be used: {images}/train_" in error
        assert "truncated" in error
    archval = plan_search(
        default_argument_parser().parse_args(bench.arguments(["SEARCH.ARCHVAL.SIZE", 4]))
    ).parts["archval"]
    for image in archval["images"]:
        number = int(image["file_name"][6:11]) - 1
        (images / image["file_name"]).write_bytes(whole[number])
    error = bench.call(SEARCH, *keys, 6, "SEARCH.ARCHVAL.SIZE", 4)
    assert "DATASETS.TRAIN: 6 of 10 images cannot be used" in error
    assert bench.starts(SEARCH, *keys, 0, "SEARCH.ARCHVAL.SIZE", 4)


@pytest.mark.parametrize("name", [TRAIN, SEARCH])
class TestData:
    def test_no_json(self, bench: Bench, name: str) -> None:
        path = bench.folder / "notes.json"
        path.write_text("images: none\nat all")
        error = bench.call(name, "DATASETS.TRAIN_JSON", str(path))
        assert error.startswith(f"error: DATASETS.TRAIN_JSON: {path}: not a JSON file")

    @pytest.mark.parametrize("key", ["TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES"])
    def test_one_of_two(self, bench: Bench, name: str, key: str) -> None:
        error = bench.call(name, f"DATASETS.{key}", "")
        assert error.startswith(f"error: DATASETS.{key}: empty; ") and "beside DATASETS.T" in error

    def test_no_training_set(self, bench: Bench, name: str) -> None:
        none = ["DATASETS.TRAIN_JSON", "", "DATASETS.TRAIN_IMAGES", ""]
        assert "DATASETS.TRAIN: ()" in bench.call(name, *none)
        error = bench.call(name, *none, "DATASETS.TRAIN", ("moon_train",))
        assert "DATASETS.TRAIN: 'moon_train'" in error

    def test_the_test_set_too(self, bench: Bench, name: str) -> None:
        """Of a search only where it retrains: it does not look at the test set before."""
        options = ["SEARCH.PHASES", ("stage", "dilation", "retrain")]
        gone = ["DATASETS.TEST_IMAGES", "no/such/folder"]
        assert "DATASETS.TEST_IMAGES" in bench.call(name, *options, *gone)
        path = bench.json(lambda content: content["categories"][0].update(name="circle"))
        error = bench.call(name, *options, "DATASETS.TEST_JSON", path)
        assert "DATASETS.TEST_JSON" in error and "circle" in error and "disc" in error
