"""Our reader of COCO JSONs against detectron2's, and the copy of a test set that is scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_data import POLYGON, USABLE, rle

from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.data.datasets import as_scored, load_coco, register_coco
from crnas_d2.data.shapes import make_shapes
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

Content = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_shapes(tmp_path / "set", 4, 1, size=(96, 96))
    return tmp_path / "set"


def changed(folder: Path, change: Callable[[Content], object], name: str = "changed") -> str:
    content = json.loads((folder / "train.json").read_text())
    change(content)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path)


def read(path: str, name: str) -> list[dict[str, Any]]:
    return load_coco(f"{name} of {path}", path, "images")


def mixed(content: Content) -> None:
    """Masks of all kinds, keypoints, a crowd, category ids with gaps, another order of images."""
    for category in content["categories"]:
        category["id"] = 10 * category["id"] + 1
    for annotation in content["annotations"]:
        annotation["category_id"] = 10 * annotation["category_id"] + 1
    content["categories"].reverse()
    content["images"].reverse()
    masks = [POLYGON, [*POLYGON, [1, 2, 3, 4]], rle([96, 96], 4000, 5216), None, []]
    for annotation, mask in zip(content["annotations"], masks):
        annotation["segmentation"] = mask
    content["annotations"][0]["keypoints"] = [10, 20, 2, 0, 0, 0, 30, 40, 1]
    content["annotations"][2]["iscrowd"] = 1


@pytest.mark.parametrize("change", [lambda content: None, mixed], ids=["shapes", "mixed"])
def test_the_dicts_are_those_of_detectron2(folder: Path, change: Any) -> None:
    path = changed(folder, change)
    ours, theirs = f"ours of {path}", f"theirs of {path}"
    assert load_coco(ours, path, "images") == load_coco_json(path, "images", theirs)
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        assert MetadataCatalog.get(ours).get(key) == MetadataCatalog.get(theirs).get(key)


@pytest.mark.parametrize("masks", [[[5, 5, 40, 40]], [[]], [[1, 2, 3]]])
def test_no_box_is_dropped_for_its_polygons(folder: Path, masks: Any) -> None:
    """detectron2 drops it whether or not masks are used (case 11)."""
    path = changed(folder, lambda content: content["annotations"][1].update(segmentation=masks))
    count = len(json.loads(Path(path).read_text())["annotations"])
    found = [annotation for record in read(path, "ours") for annotation in record["annotations"]]
    theirs = load_coco_json(path, "images", f"theirs of {path}")
    assert sum(len(record["annotations"]) for record in theirs) == count - 1
    assert len(found) == count and sum("segmentation" not in a for a in found) == 1


@pytest.mark.parametrize("change", USABLE.keys() - {"some boxes odd"})
def test_ids_area_and_iscrowd_are_no_matter_in_training(folder: Path, change: str) -> None:
    expected = read(changed(folder, lambda content: None, "plain"), "plain")
    assert read(changed(folder, USABLE[change]), "changed") == expected


def test_a_byte_order_mark_and_other_letters(folder: Path) -> None:
    names = ["Größe/weiß, 5 µm", "赤い丸 ✓", "кот"]
    content = json.loads((folder / "train.json").read_text())
    for category, name in zip(content["categories"], names):
        category["name"] = name
    path = folder / "bom.json"
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode("utf-8-sig"))
    read(str(path), "bom")
    assert MetadataCatalog.get(f"bom of {path}").thing_classes == names


def test_odd_boxes_and_repeated_images_are_logged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(content: Content) -> None:
        content["images"].append({**content["images"][0], "id": 99})
        for annotation, box in zip(
            content["annotations"], ([0, 0, 97, 97], [5, 5, 0, 9], [5, 5, 9, 0], [-2, 5, 9, 9])
        ):
            annotation["bbox"] = box  # the first is off by rounding alone

    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # it is said once
            read_coco_json(changed(folder, change), "KEY")
    messages = [record.getMessage().split(".json: ")[1] for record in caplog.records]
    assert messages == [
        "3 boxes have no area or leave their image",
        "5 entries are of 4 images, each with its own boxes",
    ]


# ---- what is scored ------------------------------------------------------------------------------


def results(folder: Path, path: str, count: int | None = None) -> dict[str, Any]:
    """Of COCOEvaluator on detections that are perfect for ``count`` of the images."""
    name = f"scored {path}"
    register_coco(name, path, str(folder / "images"))
    truth = DatasetCatalog.get(name)[:count]
    with as_scored(name) as scored:
        evaluator = COCOEvaluator(scored, distributed=False, output_dir=str(folder / "inference"))
    assert scored not in MetadataCatalog.list() and not Path(scored).exists()
    evaluator.reset()
    for record in truth:
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = Instances((96, 96), pred_boxes=Boxes(boxes))
        found.scores = torch.linspace(0.9, 0.8, len(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize("change", USABLE.keys() - {"some boxes odd", "no area", "null"})
def test_the_ap_is_the_same_whatever_the_ids(folder: Path, change: str) -> None:
    """pycocotools takes the id 0 for "no match" (cases 22, 25)."""
    plain = changed(folder, lambda content: None, "plain")
    expected = results(folder, plain, 3)["bbox"]
    assert 20 < expected["AP"] < 100
    found = results(folder, changed(folder, USABLE[change]), 3)["bbox"]
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("change", ["no area", "null"])
def test_the_area_is_that_of_the_box(folder: Path, change: str) -> None:
    def boxes(content: Content) -> None:
        for annotation in content["annotations"]:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]

    expected = results(folder, changed(folder, boxes, "plain"), 3)["bbox"]
    found = results(folder, changed(folder, USABLE[change]), 3)["bbox"]
    assert found == pytest.approx(expected, nan_ok=True)


def test_perfect_detections_of_one_object_with_id_0(folder: Path) -> None:
    def one(content: Content) -> None:
        content["annotations"] = [{**content["annotations"][0], "id": 0}]

    assert results(folder, changed(folder, one))["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("change", [lambda c: c.update(annotations=[]), lambda c: c.pop("annotations")])
def test_predictions_without_annotations(folder: Path, change: Callable[[Content], object]) -> None:
    """They are written, and nothing is evaluated (case 34)."""
    name = "predicted"
    register_coco(f"{name} {folder}", changed(folder, change), str(folder / "images"))
    (record, *_) = DatasetCatalog.get(f"{name} {folder}")
    with as_scored(f"{name} {folder}") as scored:
        evaluator = COCOEvaluator(scored, distributed=False, output_dir=str(folder / "inference"))
    evaluator.reset()
    found = Instances((96, 96), pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 31.0, 42.0]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([2])
    evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate() == {}
    written = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    assert written == [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40], "score": 0.5}]


def test_a_set_without_a_json_is_left_to_detectron2() -> None:
    with as_scored("no such json") as scored:
        assert scored == "no such json"


@pytest.mark.parametrize("change", USABLE)
def test_renumbering_does_not_depend_on_the_order(folder: Path, change: str) -> None:
    path = changed(folder, USABLE[change])
    other, content = json.loads(Path(path).read_text()), read_coco_json(path, "KEY")
    if change not in ("no ids", "one id"):
        other["annotations"].reverse()
    (folder / "other.json").write_text(json.dumps(other))
    assert content == read_coco_json(str(folder / "other.json"), "KEY")
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
