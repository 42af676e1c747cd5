"""The metric by either backend against pycocotools as anybody would call it."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import threading
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crnas_d2.errors import InputError
from crnas_d2.evaluation import coco
from crnas_d2.evaluation.coco import BACKENDS, METRICS, TASKS, CocoMetric

HEIGHT, WIDTH = 260, 300
IMAGES = 20
Content, Detections = dict[str, Any], list[dict[str, Any]]


def outline(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An irregular polygon (P, 2) that nearly fills a box (XYWH)."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x, y = np.cos(angle), np.sin(angle)
    radius = rng.uniform(0.45, 0.5, 12) / np.maximum(abs(x), abs(y))
    return box[:2] + box[2:] * (0.5 + radius[:, None] * np.stack([x, y], axis=1))


def rle_of(polygon: np.ndarray, as_text: bool = True) -> dict[str, Any]:
    rle = coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist()], HEIGHT, WIDTH))
    return {**rle, "counts": rle["counts"].decode()} if as_text else rle


def random_data(seed: int, task: str, ties: bool = True) -> tuple[Content, Detections]:
    """Ground truth and detections with all that is special.

    Crowds, objects of all sizes, images without objects and without detections, a category without
    objects, more than 100 detections of one category in an image, and (``ties``) equal scores.
    """
    rng = np.random.default_rng(seed)
    content: Content = {
        "info": {"year": "2026"},
        "images": [
            {"id": 7 * i + 3, "file_name": i, "height": HEIGHT, "width": WIDTH}
            for i in rng.permutation(IMAGES).tolist()
        ],
        "categories": [{"id": i, "name": i} for i in (9, 2, 4, 5)],
        "annotations": [],
    }
    detections: Detections = []

    def detect(image: int, category: int, polygon: np.ndarray) -> None:
        detection = {"image_id": image, "category_id": category, "score": rng.random()}
        if ties:
            detection["score"] = round(detection["score"], 1)
        if task == "bbox":
            detection["bbox"] = [*polygon.min(0).tolist(), *np.ptp(polygon, axis=0).tolist()]
        else:
            detection["segmentation"] = rle_of(polygon)
        detections.append(detection)

    for number, image in enumerate(record["id"] for record in content["images"]):
        for _ in range(0 if number % 5 == 0 else rng.integers(2, 8)):
            low, high = [(10, 28), (40, 85), (115, 200)][rng.integers(3)]
            size = rng.uniform(low, high, 2)
            box = np.concatenate([rng.uniform(0, 1, 2) * ([WIDTH, HEIGHT] - size), size])
            polygon = outline(box, rng)
            annotation = {"id": len(content["annotations"]) + 1, "image_id": image}
            annotation |= {"category_id": int(rng.choice([9, 2, 4])), "bbox": box.tolist()}
            annotation |= {"area": float(coco_mask.area(rle_of(polygon, as_text=False)))}
            crowd = bool(rng.random() < 0.15)
            shape = rle_of(polygon) if crowd else [polygon.ravel().tolist()]
            content["annotations"].append({**annotation, "iscrowd": int(crowd), "segmentation": shape})
            for _ in range(0 if number % 4 == 1 else rng.integers(0, 5)):
                moved = polygon + rng.normal(0, rng.choice([0.02, 0.1]), 2) * size
                detect(image, annotation["category_id"], moved)
    places = [record["id"] for record in content["images"][:3]] + [content["images"][2]["id"]] * 110
    for image in places:
        detect(image, 5 if image == places[0] else 2, outline(np.array([5.0, 5, 50, 40]), rng))
    return content, detections


def plain_stats(content: Content, detections: Detections, task: str) -> np.ndarray:
    """pycocotools' twelve numbers, on copies."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")
    return request.param


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", TASKS)
def test_all_twelve_numbers_are_pycocotools(task: str, seed: int, backend: str) -> None:
    content, detections = random_data(seed, task)
    metric = CocoMetric(content, task, "AP", backend)
    expected = plain_stats(content, detections, task)
    assert (0 < expected).all() and (expected < 1).all()
    np.testing.assert_allclose(metric.all_numbers(detections), expected, rtol=0, atol=1e-9)
    some = detections[::9]
    expected = plain_stats(content, some, task)
    np.testing.assert_allclose(metric.all_numbers(some), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", METRICS)
def test_each_metric_is_its_number(name: str, task: str, backend: str) -> None:
    content, detections = random_data(4, task)
    before = copy.deepcopy((content, detections))
    metric = CocoMetric(content, task, name, backend)
    expected = 100 * plain_stats(content, detections, task)[list(METRICS).index(name)]
    assert metric(detections) == pytest.approx(expected, abs=1e-9)
    assert metric(detections) == pytest.approx(expected, abs=1e-9)  # nothing is left behind
    assert metric([]) == 0.0
    assert (content, detections) == before


def test_the_default_is_hotcoco_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hotcoco")
    content, detections = random_data(5, "bbox")
    fast = CocoMetric(content, "bbox", "AP")
    assert fast.backend == "hotcoco"
    expected = fast(detections)
    monkeypatch.setattr(coco, "hotcoco", None)
    plain = CocoMetric(content, "bbox", "AP")
    assert plain.backend == "pycocotools"
    assert plain(detections) == pytest.approx(expected, abs=1e-9)


def test_what_hotcoco_cannot_read_is_left_to_pycocotools(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hotcoco = pytest.importorskip("hotcoco")
    content, detections = random_data(6, "bbox")
    expected = CocoMetric(content, "bbox", "AP")(detections)
    with caplog.at_level("WARNING"):
        for record in [*content["annotations"], *detections]:
            record["image_id"] = f"{record['image_id']:04d}.jpg"
        for image in content["images"]:
            image["id"] = f"{image['id']:04d}.jpg"
        metric = CocoMetric(content, "bbox", "AP")
    assert metric.backend == "pycocotools"
    assert metric(detections) == pytest.approx(expected, abs=1e-9)
    assert "hotcoco is not used: images[0]: field 'id'" in caplog.text
    monkeypatch.setattr(hotcoco, "__version__", "1.2.9")
    assert CocoMetric(random_data(6, "bbox")[0], "bbox", "AP").backend == "pycocotools"


def test_refused_detections(backend: str) -> None:
    """hotcoco would leave them out, or pycocotools sort them anywhere: both refuse."""
    content, detections = random_data(0, "bbox")
    metric = CocoMetric(content, "bbox", "AP", backend)
    with pytest.raises(ValueError, match="image 999, which is not here"):
        metric([*detections, {**detections[0], "image_id": 999}])
    with pytest.raises(ValueError, match="score of NaN"):
        metric([*detections, {**detections[0], "score": float("nan")}])


def test_masks_that_are_none(backend: str) -> None:
    content, _ = random_data(0, "segm")
    content["annotations"][3]["segmentation"] = [[]]
    with pytest.raises(InputError, match=r"SEARCH\.TASK: 'segm': annotation 4 of archval"):
        CocoMetric(content, "segm", "AP", backend)
    del content["annotations"][3]["segmentation"]
    with pytest.raises(InputError, match="archval has annotations without masks"):
        CocoMetric(content, "segm", "AP", backend)
    CocoMetric(content, "bbox", "AP", backend)


@pytest.mark.parametrize("task", TASKS)
def test_from_several_threads(task: str, backend: str) -> None:
    """The same scores, and the standard output is what it was."""
    content, detections = random_data(7, task)
    metric = CocoMetric(content, task, "APm", backend)
    lists = [detections[i::3] for i in range(3)] * 4
    expected = [metric(some) for some in lists]
    output, found = sys.stdout, [0.0] * len(lists)

    def score(number: int) -> None:
        found[number] = metric(lists[number])

    threads = [threading.Thread(target=score, args=(i,)) for i in range(len(lists))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert len(set(expected)) == 3
    assert sys.stdout is output


def test_hotcoco_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """So the standard output need not be turned away, which would be that of all threads."""
    pytest.importorskip("hotcoco")
    content, detections = random_data(8, "bbox")
    CocoMetric(content, "bbox", "AP", "hotcoco")(detections)
    assert capfd.readouterr() == ("", "")
