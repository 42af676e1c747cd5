"""Weighted AP against COCOeval on data sets in which images are there so many times."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from test_metric import BACKENDS, IMAGES, METRICS, TASKS, plain_stats, random_data

from crnas_d2.evaluation.coco import CocoMetric
from crnas_d2.evaluation.matches import Matches, bootstrap, match

NEAR = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")
    return request.param


def of_images(content: dict[str, Any], image_ids: list[int]) -> dict[str, Any]:
    return {
        **content,
        "images": [i for i in content["images"] if i["id"] in image_ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in image_ids],
    }


def repeated(
    content: dict[str, Any], detections: list[dict[str, Any]], times: dict[int, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The data with image i there ``times[i]`` times, under ids of their own."""
    images, annotations, found = [], [], []
    for image in content["images"]:
        for copy in range(times[image["id"]]):
            new = {"image_id": 1000 * image["id"] + copy}
            images.append({**image, "id": new["image_id"]})
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"]:
                    annotations.append({**annotation, **new, "id": len(annotations) + 1})
            found += [{**d, **new} for d in detections if d["image_id"] == image["id"]]
    return {**content, "images": images, "annotations": annotations}, found


def same(a: Matches, b: Matches) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Matches))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("task", TASKS)
def test_each_image_once_is_the_metric(task: str, name: str, backend: str) -> None:
    """All images, and a portion of them against a ground truth of that portion; ties included."""
    content, detections = random_data(0, task)
    metric = CocoMetric(content, task, name, backend)
    found = match(metric, detections).scores(np.ones((2, IMAGES)))
    np.testing.assert_allclose(found, [metric(detections)] * 2, **NEAR)
    portion = metric.image_ids[1::2]
    there = [d for d in detections if d["image_id"] in portion]
    expected = CocoMetric(of_images(content, portion), task, name, backend)(there)
    assert abs(expected - metric(detections)) > 0.1
    for given in (detections, there):
        found = match(metric, given, portion).scores(np.ones((1, len(portion))))
        np.testing.assert_allclose(found, [expected], **NEAR)


@pytest.mark.parametrize("task", TASKS)
def test_weights_repeat_images(task: str, backend: str) -> None:
    """Against pycocotools on the repeated data; all metrics, weights of 0 among them."""
    content, detections = random_data(1, task, ties=False)
    metrics = {name: CocoMetric(content, task, name, backend) for name in METRICS}
    weights = np.random.default_rng(0).integers(0, 4, (3, IMAGES))
    weights[0, ::2] = 0
    expected = []
    for row in weights:
        times = dict(zip(metrics["AP"].image_ids, row.tolist()))
        expected.append(plain_stats(*repeated(content, detections, times), task)[: len(METRICS)])
    assert (np.asarray(expected) > 0).all() and np.ptp(expected, axis=0).min() > 1e-3
    found = [match(metric, detections).scores(weights) for metric in metrics.values()]
    np.testing.assert_allclose(found, 100 * np.transpose(expected), **NEAR)


def test_only_the_ratios_of_weights_matter() -> None:
    content, detections = random_data(2, "bbox")
    matches = match(CocoMetric(content, "bbox", "AP"), detections)
    weights = np.random.default_rng(0).integers(0, 4, (5, IMAGES))
    np.testing.assert_allclose(matches.scores(weights / 8), matches.scores(weights), **NEAR)


def test_bootstraps_by_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    content, detections = random_data(2, "bbox")
    matches = match(CocoMetric(content, "bbox", "AP"), detections)
    weights = np.random.default_rng(0).integers(0, 4, (5, IMAGES))
    expected = matches.scores(weights)
    assert len(set(expected)) == 5
    monkeypatch.setattr("crnas_d2.evaluation.matches.AT_ONCE", 2 * len(matches.image))
    assert np.array_equal(matches.scores(weights), expected)
    assert matches.scores(np.zeros((0, IMAGES))).shape == (0,)


@pytest.mark.parametrize("task", TASKS)
def test_portions_joined_are_the_whole(task: str, backend: str) -> None:
    content, detections = random_data(3, task)
    metric = CocoMetric(content, task, "AP", backend)
    whole = match(metric, detections)
    a, b, c = (match(metric, detections, metric.image_ids[i::3]) for i in range(3))
    assert same(a.joined(b).joined(c), whole)
    assert same(c.joined(a.joined(b)), whole)
    with pytest.raises(ValueError, match="images in common"):
        a.joined(a)
    other = CocoMetric(content, task, "AP50", backend)
    with pytest.raises(ValueError, match=f"of {task} AP and {task} AP50"):
        a.joined(match(other, detections, metric.image_ids[1::3]))


@pytest.mark.parametrize("name", ["AP", "AP75"])
def test_kept_as_bytes(name: str) -> None:
    content, detections = random_data(4, "bbox")
    matches = match(CocoMetric(content, "bbox", name), detections)
    content = matches.to_bytes()
    again = Matches.from_bytes(content)
    assert same(again, matches) and again.to_bytes() == content
    assert again.hit.dtype == bool and type(again.metric) is str
    for bad in (b"", content[:-40], b"something else"):
        with pytest.raises(ValueError):
            Matches.from_bytes(bad)


def test_images_by_their_names() -> None:
    """Ids that are no numbers, which the file keeps too."""
    content, detections = random_data(4, "bbox")
    expected = match(CocoMetric(content, "bbox", "AP"), detections)
    for record in [*content["annotations"], *detections]:
        record["image_id"] = f"{record['image_id']:04d}.jpg"
    for image in content["images"]:
        image["id"] = f"{image['id']:04d}.jpg"
    metric = CocoMetric(content, "bbox", "AP")
    a, b = (match(metric, detections, metric.image_ids[i::2]) for i in range(2))
    joined = Matches.from_bytes(a.to_bytes()).joined(b)
    assert joined.image_ids.tolist() == [f"{image:04d}.jpg" for image in expected.image_ids]
    weights = np.random.default_rng(0).integers(0, 4, (3, IMAGES))
    assert np.array_equal(joined.scores(weights), expected.scores(weights))


def test_backends_match_alike() -> None:
    pytest.importorskip("hotcoco")
    content, detections = random_data(5, "segm")
    a, b = (match(CocoMetric(content, "segm", "AP", name), detections) for name in BACKENDS)
    assert same(a, b)


def test_nothing_to_measure(backend: str) -> None:
    """No object that counts: no score. No detections: 0."""
    content, detections = random_data(6, "bbox")
    metric = CocoMetric(content, "bbox", "AP", backend)
    full = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    weights = [[image in full for image in metric.image_ids]]
    weights += [[not there for there in weights[0]], [False] * IMAGES]
    with np.errstate(all="raise"):
        found = match(metric, detections).scores(np.array(weights))
    assert np.isnan(found).tolist() == [False, True, True]
    assert match(metric, []).scores(np.ones((1, IMAGES))).tolist() == [0.0]
    empty = [image for image in metric.image_ids if image not in full][:1]
    assert np.isnan(match(metric, [], empty).scores(np.ones((1, 1)))).all()
    none = match(metric, detections, [])
    assert none.objects.shape == (0, len(metric.category_ids)) and none.score.shape == (0,)


def test_refused_weights_and_images() -> None:
    content, detections = random_data(7, "bbox")
    metric = CocoMetric(content, "bbox", "AP")
    matches = match(metric, detections)
    for bad in (np.ones(IMAGES), np.ones((1, IMAGES + 1)), -np.ones((1, IMAGES))):
        with pytest.raises(ValueError, match="weights"):
            matches.scores(bad)
    with pytest.raises(ValueError, match=r"weights are finite"):
        matches.scores(np.full((1, IMAGES), np.inf))
    with pytest.raises(ValueError, match=r"not in the ground truth: \[999\]"):
        match(metric, detections, [999])


def test_a_bootstrap_completes_the_data_set() -> None:
    weights = bootstrap(20, 64, 500, seed=1)
    assert weights.shape == (500, 20) and (weights.sum(1) == 64).all() and weights.min() == 1
    np.testing.assert_array_equal(weights, bootstrap(20, 64, 500, seed=1))
    assert not np.array_equal(weights, bootstrap(20, 64, 500, seed=2))
    assert (bootstrap(64, 64, 3, seed=0) == 1).all()


@pytest.mark.parametrize(("seen", "images"), [(10, 60), (40, 60), (58, 60)])
def test_a_bootstrap_spreads_as_the_unseen_images_do(seen: int, images: int) -> None:
    """The mean over a finite population, given a sample: variance * (1/seen - 1/images)."""
    values = np.random.default_rng(0).normal(size=seen)
    means = bootstrap(seen, images, 20_000, seed=0) @ values / images
    expected = values.var() * (1 / seen - 1 / images) * seen / (seen + 1)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * (expected / 20_000) ** 0.5)
    assert means.var() == pytest.approx(expected, rel=0.05)
