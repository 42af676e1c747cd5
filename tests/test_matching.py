"""Matching and the metric against pycocotools' COCOeval."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from coco_data import IMAGES, TASKS, as_arrays, matched, random_data, reference, reference_score

from crnas_d2.errors import InputError
from crnas_d2.evaluation.matches import METRICS, PARAMS, Matches
from crnas_d2.evaluation.matching import GroundTruth, match

ONCE = np.ones((1, IMAGES))
AREAS = {"AP": "all", "APs": "small", "APm": "medium", "APl": "large"}


def as_rows(matches: Matches) -> list[tuple[Any, ...]]:
    """Image, category, score, and at every threshold whether it hit and whether it counts."""
    ids = matches.image_ids[matches.image], matches.category_ids[matches.category]
    hit, counted = (b[:, None] >> np.arange(10) & 1 for b in (matches.hit, matches.counted))
    rows = zip(*ids, matches.score.tolist(), hit, counted)
    return [(i, c, s, *h, *k) for i, c, s, h, k in rows]


def entries_of(evaluation: Any, area: str) -> list[dict[str, Any]]:
    """Those of evalImgs for one range of areas."""
    areas = PARAMS.areaRng[PARAMS.areaRngLbl.index(area)]
    return [entry for entry in evaluation.evalImgs if entry and entry["aRng"] == areas]


def reference_rows(entries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """As as_rows; detections that are ignored at every threshold are left out."""
    rows = []
    for entry in entries:
        counted = ~np.asarray(entry["dtIgnore"], dtype=bool)
        hit = (np.asarray(entry["dtMatches"]) > 0) & counted
        for number in np.flatnonzero(counted.any(0)):
            bits = *hit[:, number].astype(int), *counted[:, number].astype(int)
            rows.append((entry["image_id"], entry["category_id"], entry["dtScores"][number], *bits))
    return rows


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("task", TASKS)
def test_every_hit_is_pycocotools(task: str, seed: int) -> None:
    """Of every detection at every threshold, for every range of areas; and so are the objects."""
    content, found = random_data(seed, task)
    evaluation = reference(content, found, task)
    for metric, area in AREAS.items():
        entries = entries_of(evaluation, area)
        matches = matched(content, found, task, metric)
        rows = reference_rows(entries)
        assert sorted(as_rows(matches)) == sorted(rows)
        assert any(1 in row[3:13] for row in rows)
        objects = np.zeros_like(matches.objects)
        for entry in entries:
            image = matches.image_ids.tolist().index(entry["image_id"])
            category = matches.category_ids.tolist().index(entry["category_id"])
            objects[image, category] = np.count_nonzero(np.array(entry["gtIgnore"]) == 0)
        assert np.array_equal(matches.objects, objects)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("task", TASKS)
def test_the_metric_is_pycocotools(task: str, metric: str, seed: int) -> None:
    content, found = random_data(seed, task)
    before = copy.deepcopy([content, found])
    for some in (found, found[::9], []):
        expected = max(0.0, reference_score(content, some, task, metric))
        scores = matched(content, some, task, metric).scores(ONCE)
        np.testing.assert_allclose(scores, [expected], rtol=0, atol=1e-9)
    assert [content, found] == before


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("ids", ["from 0", "texts", "none", "all the same"])
def test_ids_of_annotations_play_no_part(task: str, ids: str) -> None:
    """pycocotools takes id 0 for "no match"; here its own ids are from 1."""
    content, found = random_data(1, task)
    expected = reference_score(content, found, task, "AP")
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = {"from 0": number, "texts": f"2b28-{number}", "all the same": 0}.get(ids)
        if ids == "none":
            del annotation["id"]
    scores = matched(content, found, task, "AP").scores(ONCE)
    np.testing.assert_allclose(scores, [expected], rtol=0, atol=1e-9)


def boxes(objects: list[list[float]], found: list[list[float]]) -> tuple[Any, Any]:
    """Objects of one class in one picture, and detections, the surest first."""
    content: Any = {
        "images": [{"id": 1, "height": 1000, "width": 1000}],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": b[2] * b[3], "bbox": b}
            for i, b in enumerate(objects, start=1)
        ],
    }
    keys = {"image_id": 1, "category_id": 1}
    return content, [{**keys, "bbox": b, "score": 1 / 2**i} for i, b in enumerate(found)]


def test_of_two_objects_that_overlap_equally_the_later_is_taken() -> None:
    """A detection half-way between two takes one of them; a second one fits the left one alone."""
    pairs = [[[0.0, 20.0 * i, 10, 10], [4.0, 20.0 * i, 10, 10]] for i in range(40)]
    reverse = np.random.default_rng(0).random(40) < 0.5
    objects = [box for pair, swap in zip(pairs, reverse) for box in (pair[::-1] if swap else pair)]
    found = [[2.0, 20.0 * i, 10, 10] for i in range(40)] + [pair[0] for pair in pairs]
    content, found = boxes(objects, found)
    matches = matched(content, found, "bbox", "AP50")
    assert sum(matches.hit) == 80 - sum(reverse)
    expected = reference_score(content, found, "bbox", "AP50")
    np.testing.assert_allclose(matches.scores(np.ones((1, 1))), [expected], rtol=0, atol=1e-9)


def test_a_small_detection_on_a_medium_object_counts() -> None:
    """The range of areas is that of the object where there is one."""
    content, found = boxes([[0, 0, 33, 33]], [[0, 0, 31, 33], [200, 200, 31, 33]])
    matches = matched(content, found, "bbox", "APm")
    assert matches.scores(np.ones((1, 1))) == pytest.approx(90)  # but for the IoU of 0.95
    entries = entries_of(reference(content, found, "bbox"), "medium")
    assert as_rows(matches) == reference_rows(entries)


@pytest.mark.parametrize(("max_detections", "score"), [(100, 44.55), (300, 100.0)])
def test_more_objects_than_coco_counts(max_detections: int, score: float) -> None:
    """225 objects of a class in a picture: a perfect detector and one that finds 110 are told apart."""
    squares = [[40.0 * (i % 25), 40.0 * (i // 25), 20.0, 20.0] for i in range(225)]
    content, found = boxes(squares, squares)
    perfect = matched(content, found, "bbox", "AP", None, max_detections).scores(np.ones((1, 1)))
    assert perfect == pytest.approx(score, abs=0.01)
    half = matched(content, found[:110], "bbox", "AP", None, max_detections).scores(np.ones((1, 1)))
    assert (half < perfect) == (max_detections > 100)
    evaluation = reference(content, found, "bbox", max_detections)
    expected = 100 * evaluation.eval["precision"][:, :, 0, 0, -1].mean()
    np.testing.assert_allclose(perfect, expected, rtol=0, atol=1e-9)


def test_a_score_of_nan_is_an_error() -> None:
    content, found = random_data(0, "bbox")
    found[3]["score"] = float("nan")
    with pytest.raises(FloatingPointError, match="score of a detection is NaN"):
        matched(content, found, "bbox", "AP")


def test_a_class_that_is_not_there_is_an_error() -> None:
    """And not the first class of the next image."""
    content, found = random_data(0, "bbox")
    truth = GroundTruth(content, "bbox", "AP")
    detections = as_arrays(truth, found)
    detections.column[5] = 4
    with pytest.raises(ValueError, match="a detection of class 4; there are 4"):
        match(truth, detections, range(IMAGES))


# ---- the ground truth ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_metric_without_an_object_is_refused(task: str) -> None:
    content, _ = random_data(0, task)
    content["annotations"] = [a for a in content["annotations"] if a["area"] <= 96**2]
    GroundTruth(content, task, "APm")
    expected = rf"SEARCH\.EVAL\.METRIC: {task} APl: 20 images have no object that counts"
    with pytest.raises(InputError, match=expected):
        GroundTruth(content, task, "APl")
    content["annotations"] = []
    with pytest.raises(InputError, match=f"{task} AP: 20 images have no object"):
        GroundTruth(content, task, "AP")


def test_masks_that_are_none() -> None:
    content, _ = random_data(0, "segm")
    broken = copy.deepcopy(content)
    broken["annotations"][3]["segmentation"] = [[]]
    with pytest.raises(InputError, match=r"SEARCH\.EVAL\.TASK: 'segm': annotations\[3\]: its"):
        GroundTruth(broken, "segm", "AP")
    del broken["annotations"][3]["segmentation"]
    with pytest.raises(InputError, match=r"annotations\[3\]: its segmentation is neither"):
        GroundTruth(broken, "segm", "AP")
    GroundTruth(broken, "bbox", "AP")
