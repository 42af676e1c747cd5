"""Weighted AP against COCOeval on data sets in which images are there so many times."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from coco_data import IMAGES, TASKS, Content, Found, matched, random_data, reference, reference_score

from crnas_d2.evaluation.matches import METRICS, Matches, bootstrap

NEAR = {"rtol": 0, "atol": 1e-9}


def repeated(content: Content, detections: Found, times: dict[int, int]) -> tuple[Content, Found]:
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
def test_a_portion_is_a_data_set_of_its_own(task: str, name: str) -> None:
    """Against a ground truth of that portion; ties included."""
    content, found = random_data(0, task)
    portion = sorted(image["id"] for image in content["images"])[1::2]
    times = {image["id"]: int(image["id"] in portion) for image in content["images"]}
    expected = reference_score(*repeated(content, found, times), task, name)
    assert abs(expected - reference_score(content, found, task, name)) > 0.1
    scores = matched(content, found, task, name, portion).scores(np.ones((2, len(portion))))
    np.testing.assert_allclose(scores, [expected] * 2, **NEAR)


@pytest.mark.parametrize("task", TASKS)
def test_weights_repeat_images(task: str) -> None:
    """Against pycocotools on the repeated data; all metrics, weights of 0 among them."""
    content, found = random_data(1, task, ties=False)
    weights = np.random.default_rng(0).integers(0, 4, (3, IMAGES))
    weights[0, ::2] = 0
    expected = []
    for row in weights:
        times = dict(zip(sorted(image["id"] for image in content["images"]), row.tolist()))
        expected.append(reference(*repeated(content, found, times), task).stats[: len(METRICS)])
    assert (np.asarray(expected) > 0).all() and np.ptp(expected, axis=0).min() > 1e-3
    scores = [matched(content, found, task, name).scores(weights) for name in METRICS]
    np.testing.assert_allclose(scores, 100 * np.transpose(expected), **NEAR)


def test_many_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only their ratios matter, and not how many are taken at once."""
    matches = matched(*random_data(2, "bbox"), "bbox")
    weights = np.random.default_rng(0).integers(0, 4, (5, IMAGES))
    expected = matches.scores(weights)
    assert len(set(expected)) == 5
    np.testing.assert_allclose(matches.scores(weights / 8), expected, **NEAR)
    monkeypatch.setattr("crnas_d2.evaluation.matches.AT_ONCE", 2 * len(matches.image))
    assert np.array_equal(matches.scores(weights), expected)
    assert matches.scores(np.zeros((0, IMAGES))).shape == (0,)


@pytest.mark.parametrize("task", TASKS)
def test_portions_joined_are_the_whole(task: str) -> None:
    """In any order of the portions."""
    content, found = random_data(3, task)
    whole = matched(content, found, task)
    a, b, c = (matched(content, found, task, "AP", whole.image_ids[i::3].tolist()) for i in range(3))
    assert same(Matches.joined([a, b, c]), whole)
    assert same(Matches.joined([c, Matches.joined([b, a])]), whole)
    assert same(Matches.joined([whole]), whole)


@pytest.mark.parametrize("name", ["AP", "AP75"])
def test_cached_as_bytes(name: str) -> None:
    matches = matched(*random_data(4, "bbox"), "bbox", name)
    content = matches.to_bytes()
    again = Matches.from_bytes(content)
    assert same(again, matches) and again.to_bytes() == content
    kinds = {name: getattr(again, name).dtype for name in ("score", "hit", "counted")}
    assert kinds == {"score": np.float32, "hit": np.uint16, "counted": np.uint16}
    assert (type(again.task), again.metric) == (str, name)
    for bad in (b"", content[:-40], b"something else"):
        with pytest.raises(ValueError):
            Matches.from_bytes(bad)


def test_images_by_their_names() -> None:
    """Ids that are texts, in the file, too."""
    content, found = random_data(4, "bbox")
    expected = matched(content, found, "bbox")
    for record in [*content["annotations"], *found]:
        record["image_id"] = f"{record['image_id']:04d}.jpg"
    for image in content["images"]:
        image["id"] = f"{image['id']:04d}.jpg"
    ids = sorted(image["id"] for image in content["images"])
    a, b = (matched(content, found, "bbox", "AP", ids[i::2]) for i in range(2))
    joined = Matches.joined([Matches.from_bytes(a.to_bytes()), b])
    assert joined.image_ids.tolist() == ids
    weights = np.random.default_rng(0).integers(0, 4, (3, IMAGES))
    assert np.array_equal(joined.scores(weights), expected.scores(weights))


def test_nothing_to_measure() -> None:
    """No object that counts: no score. No detections: 0."""
    content, found = random_data(6, "bbox")
    ids = sorted(image["id"] for image in content["images"])
    full = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    weights = [[image in full for image in ids]]
    weights += [[not there for there in weights[0]], [False] * IMAGES]
    with np.errstate(all="raise"):
        scores = matched(content, found, "bbox").scores(np.array(weights))
    assert np.isnan(scores).tolist() == [False, True, True]
    assert matched(content, [], "bbox").scores(np.ones((1, IMAGES))).tolist() == [0.0]
    empty = [image for image in ids if image not in full][:1]
    assert np.isnan(matched(content, [], "bbox", "AP", empty).scores(np.ones((1, 1)))).all()
    none = matched(content, found, "bbox", "AP", [])
    assert none.objects.shape == (0, 4) and none.score.shape == (0,)


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
