"""Data sets by two config values each, and the one line that bad ones get."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crnas_d2.config import add_crnas_config
from crnas_d2.data.coco_json import RECORD_ENTRIES, read_coco_json
from crnas_d2.data.datasets import check_dataset, register_coco, use_own_data
from crnas_d2.data.shapes import CLASSES, make_shapes
from crnas_d2.errors import InputError
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(folder, 3, 2, size=(64, 64))
    return folder


@pytest.fixture
def folder(generated: Path, tmp_path: Path) -> Path:
    """A copy for one test: a data set stands under its files' path, which is the test's own."""
    shutil.copytree(generated, tmp_path / "set")
    return tmp_path / "set"


def config(folder: Path, **changed: str) -> CfgNode:
    cfg = get_cfg()
    add_crnas_config(cfg)
    cfg.DATASETS.TRAIN_JSON = str(folder / "train.json")
    cfg.DATASETS.TEST_JSON = str(folder / "val.json")
    cfg.DATASETS.TRAIN_IMAGES = cfg.DATASETS.TEST_IMAGES = str(folder / "images")
    for key, value in changed.items():
        cfg.DATASETS[key] = value
    return cfg


def change(path: Path, **parts: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def refusal(function: Callable[..., object], *args: Any) -> str:
    """The one line that the call ends in."""
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def name(folder: Path) -> str:
    """The registered training set."""
    name = f"a set in {folder}"
    register_coco(name, str(folder / "train.json"), str(folder / "images"))
    return name


# ---- your own data -------------------------------------------------------------------------


def test_two_values_name_a_data_set(folder: Path) -> None:
    cfg = config(folder)
    use_own_data(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == len(CLASSES) == 3
    for names, part, count in ((cfg.DATASETS.TRAIN, "train", 3), (cfg.DATASETS.TEST, "val", 2)):
        (name,) = names
        dicts = DatasetCatalog.get(name)
        assert MetadataCatalog.get(name).thing_classes == list(CLASSES)
        assert MetadataCatalog.get(name).json_file == str(folder / f"{part}.json")
        expected = {str(path) for path in (folder / "images").glob(f"{part}_*.jpg")}
        assert {record["file_name"] for record in dicts} == expected
        assert len(expected) == count
        assert check_dataset(cfg, "TRAIN", name) == json.loads((folder / f"{part}.json").read_text())
    again = config(folder)
    use_own_data(again)
    assert again == cfg


def test_class_names_follow_their_ids(folder: Path) -> None:
    """Ids with gaps, in any order in the file: classes are in the order of their ids."""
    for part in ("train", "val"):
        categories = [
            {"id": 30, "name": "triangle"},
            {"id": 7, "name": "disc"},
            {"id": 9, "name": "square"},
            {"id": 11, "name": "never seen"},
        ]
        if part == "val":
            categories.reverse()
        annotations = json.loads((folder / f"{part}.json").read_text())["annotations"]
        for annotation in annotations:
            annotation["category_id"] = {1: 7, 2: 9, 3: 30}[annotation["category_id"]]
        change(folder / f"{part}.json", categories=categories, annotations=annotations)
    cfg = config(folder)
    use_own_data(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 4
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        dicts = DatasetCatalog.get(name)
        assert MetadataCatalog.get(name).thing_classes == ["disc", "square", "never seen", "triangle"]
        assert {a["category_id"] for d in dicts for a in d["annotations"]} <= {0, 1, 3}


def test_relative_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    cfg = config(Path("set"))
    use_own_data(cfg)
    assert MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).json_file == str(folder / "train.json")
    monkeypatch.chdir("/")
    assert len(check_dataset(cfg, "TRAIN", cfg.DATASETS.TRAIN[0])["images"]) == 3


def test_two_sets_with_files_of_one_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    first, second = config(folder), config(tmp_path / "other")
    use_own_data(first)
    use_own_data(second)
    assert first.DATASETS.TRAIN != second.DATASETS.TRAIN
    (record, *_) = DatasetCatalog.get(second.DATASETS.TRAIN[0])
    assert record["file_name"].startswith(str(tmp_path / "other"))


def test_without_the_keys_nothing_changes() -> None:
    cfg = get_cfg()
    add_crnas_config(cfg)
    cfg.DATASETS.TRAIN = ("bccd_train",)
    before = cfg.clone()
    use_own_data(cfg)
    assert cfg == before


def test_a_search_never_looks_at_the_test_set(folder: Path) -> None:
    for image in (folder / "images").glob("val_*"):
        image.unlink()
    (folder / "val.json").unlink()
    cfg = config(folder)
    use_own_data(cfg, test=False)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    shown = f"DATASETS.TEST_JSON: {folder / 'val.json'}: No such file"
    assert refusal(use_own_data, config(folder)).startswith(shown)


@pytest.mark.parametrize(("side", "part"), [("TRAIN", "train"), ("TEST", "val")])
def test_a_missing_image(folder: Path, side: str, part: str) -> None:
    images = sorted((folder / "images").glob(f"{part}_*.jpg"))
    for image in images[1:]:
        image.unlink()
    count = f"{len(images) - 1} of {len(images)}"
    shown = f"DATASETS.{side}_IMAGES: {count} images cannot be used: {images[1]}: No such file"
    assert refusal(use_own_data, config(folder)).startswith(shown)


@pytest.mark.parametrize(
    "names",
    [["disc", "square"], ["disc", "square", "triangle", "star"], ["disc", "triangle", "square"]],
    ids=["fewer", "more", "another order"],
)
def test_other_test_classes(folder: Path, names: list[str]) -> None:
    annotations = json.loads((folder / "val.json").read_text())["annotations"]
    change(
        folder / "val.json",
        categories=[{"id": i, "name": n} for i, n in enumerate(names, 1)],
        annotations=[a for a in annotations if a["category_id"] <= len(names)],
    )
    shown = f"DATASETS.TEST_JSON: classes {names}; the training classes are {list(CLASSES)}"
    assert refusal(use_own_data, config(folder)) == shown


def test_sizes_with_a_decimal_point_are_integers(folder: Path) -> None:
    images = json.loads((folder / "train.json").read_text())["images"]
    change(folder / "train.json", images=[{**i, "height": 64.0, "width": 64.0} for i in images])
    cfg = config(folder)
    completed = use_own_data(cfg)["TRAIN"]["images"]
    for image in (*completed, *DatasetCatalog.get(cfg.DATASETS.TRAIN[0])):
        assert {type(image["height"]), type(image["width"])} == {int}


# ---- a COCO JSON ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "not a JSON file"),
        ("{", "not a JSON file"),
        ("\xff\xfe", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "no images"),
        ("null", "no images"),
        ('"text"', "no images"),
        ('{"categories": [1], "annotations": [1]}', "no images"),
        ('{"images": [], "categories": [1], "annotations": [1]}', "no images"),
        ('{"images": [1], "annotations": [1]}', "no categories"),
        ('{"images": [1], "categories": [], "annotations": [1]}', "no categories"),
        ('{"images": [1], "categories": [1]}', "no annotations"),
        ('{"images": [1], "categories": [1], "annotations": []}', "no annotations"),
        ('{"images": [1], "categories": [1], "annotations": null}', "no annotations"),
    ],
)
def test_no_coco_json(tmp_path: Path, text: str, shown: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    assert refusal(read_coco_json, str(path), "KEY").startswith(f"KEY: {path}: {shown}")


@pytest.mark.parametrize("part", RECORD_ENTRIES)
def test_a_record_that_lacks_an_entry(folder: Path, part: str) -> None:
    path = folder / "train.json"
    whole = json.loads(path.read_text())
    for entry in RECORD_ENTRIES[part].keys() - {"area", "iscrowd", "segmentation"}:
        records = [dict(record) for record in whole[part]]
        del records[1][entry]
        change(path, **{part: records})
        message = refusal(read_coco_json, str(path), "KEY")
        assert message.startswith(f"KEY: {path}: {part}[1] (id ") and f": {entry} None: " in message


def test_no_file(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "x.json", "No such file or directory"), (tmp_path, "Is a directory")):
        message = refusal(read_coco_json, str(path), "KEY")
        assert message == f"KEY: {path}: {why}; a COCO JSON is needed (docs/DATASETS.md)"


# ---- registered sets -----------------------------------------------------------------------------


def test_a_name_stands_for_one_set(folder: Path, name: str) -> None:
    register_coco(name, str(folder / "train.json"), str(folder / "images"))
    for files in ((folder / "val.json", folder / "images"), (folder / "train.json", folder)):
        with pytest.raises(AssertionError, match="cannot be set to a different value"):
            register_coco(name, *map(str, files))
    assert len(check_dataset(heads(3), "TRAIN", name)["images"]) == 3


def heads(classes: int, *options: Any) -> CfgNode:
    """A config of detectron2's whose heads have so many classes."""
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.merge_from_list(list(options))
    return cfg


def test_a_registered_set_is_checked(folder: Path, name: str) -> None:
    gone = sorted((folder / "images").glob("train_*.jpg"))[0]
    gone.unlink()
    shown = f"DATASETS.TEST: 1 of 3 images cannot be used: {gone}: No such"
    assert refusal(check_dataset, heads(3), "TEST", name).startswith(shown)
    change(folder / "train.json", annotations=[])
    shown = f"DATASETS.TEST: {folder / 'train.json'}: no annotations"
    assert refusal(check_dataset, heads(3), "TEST", name).startswith(shown)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("ROI_HEADS", []),
        ("ROI_HEADS", ["MODEL.META_ARCHITECTURE", "PanopticFPN"]),
        ("RETINANET", ["MODEL.META_ARCHITECTURE", "RetinaNet"]),
    ],
)
@pytest.mark.parametrize("count", [2, 4, 80])
def test_the_number_of_classes_is_that_of_the_heads(
    name: str, head: str, options: list[Any], count: int
) -> None:
    """Too few teach a class as background, too many fail after the training (case 33)."""
    key, other = f"MODEL.{head}.NUM_CLASSES", {"ROI_HEADS": "RETINANET", "RETINANET": "ROI_HEADS"}[head]
    right = [*options, key, 3, f"MODEL.{other}.NUM_CLASSES", 7]
    assert check_dataset(heads(3, *right), "TRAIN", name) is not None
    message = refusal(check_dataset, heads(3, *right, key, count), "TRAIN", name)
    assert message == f"{key}: {count}: DATASETS.TRAIN {name!r} has 3 classes"


def test_a_detector_without_classes_is_not_asked_for_them(name: str) -> None:
    cfg = heads(80, "MODEL.META_ARCHITECTURE", "ProposalNetwork")
    assert check_dataset(cfg, "TRAIN", name) is not None


def test_a_name_without_a_coco_json(folder: Path) -> None:
    registered = f"no json {folder}"
    DatasetCatalog.register(registered, list)
    for name in ("unknown", registered):
        shown = f"DATASETS.TRAIN: {name!r}: not a registered data set with a COCO JSON"
        assert refusal(check_dataset, heads(3), "TRAIN", name).startswith(shown)


def test_bccd_is_registered(shared_data: Path) -> None:
    for name, count in (("bccd_train", 292), ("bccd_val", 72)):
        assert len(check_dataset(heads(3), "TRAIN", name)["images"]) == count
        assert len(DatasetCatalog.get(name)) == count
        assert MetadataCatalog.get(name).thing_classes == ["RBC", "WBC", "Platelets"]
