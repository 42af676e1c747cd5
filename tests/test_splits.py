"""archtrain and archval: disjoint, together the whole set, and the same whatever the JSON's order."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crnas_d2.data.splits import archval_ids, recalibration_ids, split, write_splits
from crnas_d2.errors import InputError

Content = dict[str, Any]
BOX = {"category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0}


def generated(count: int, per_field: int = 1, annotations: int = 2) -> Content:
    """``count`` images whose ids are not their positions; ``per_field`` images in a row share one."""
    images = [
        {"id": 1000 - 3 * i, "file_name": f"{i}.jpg", "field": f"f{i // per_field}", "slide": i % 7}
        for i in range(count)
    ]
    return {
        "info": {"description": "a test"},
        "categories": [{"id": 2, "name": "b"}, {"id": 1, "name": "a"}],
        "images": images,
        "annotations": [
            {**BOX, "id": 10 * i + j, "image_id": image["id"]}
            for i, image in enumerate(images)
            for j in range(annotations)
        ],
    }


def shuffled(content: Content, seed: int) -> Content:
    rng = random.Random(seed)
    return {
        **content,
        **{part: rng.sample(content[part], len(content[part])) for part in ("images", "annotations")},
    }


def bccd(folder: Path) -> Content:
    return json.loads((folder / "bccd" / "train.json").read_text(encoding="utf-8"))


def counted(entries: list[Any]) -> Counter[str]:
    return Counter(json.dumps(entry, sort_keys=True) for entry in entries)


def test_recalibration_images_are_a_part_of_archtrain() -> None:
    content = generated(30)
    for count in (0, 5, 99):
        parts = split(content, 6, "id", 0, count)
        ids = {name: {image["id"] for image in part["images"]} for name, part in parts.items()}
        assert len(ids["recalibration"]) == min(count, 24)
        assert ids["recalibration"] <= ids["archtrain"]
        assert split(shuffled(content, 1), 6, "id", 0, count) == parts
    assert recalibration_ids(range(20), 5, seed=1) == recalibration_ids(range(20)[::-1], 5, seed=1)
    assert recalibration_ids(range(20), 5, seed=1) != recalibration_ids(range(20), 5, seed=2)


def assert_a_split(content: Content, parts: dict[str, Content], field: str) -> None:
    archtrain, archval = halves = parts["archtrain"], parts["archval"]
    for entries in ("images", "annotations"):
        both = [*archtrain[entries], *archval[entries]]
        assert counted(both) == counted(content[entries])
    values = [{image[field] for image in part["images"]} for part in halves]
    assert values[0] and values[1] and not values[0] & values[1]
    ids = [{image["id"] for image in part["images"]} for part in halves]
    assert not ids[0] & ids[1]
    for part, own in zip(halves, ids):
        assert {a["image_id"] for a in part["annotations"]} <= own
        assert part["annotations"]
        assert part.keys() == content.keys()
        assert part["categories"] == content["categories"] and part["info"] == content["info"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("field", "per_field"), [("id", 1), ("field", 3), ("slide", 1)])
def test_disjoint_and_together_the_whole_set(seed: int, field: str, per_field: int) -> None:
    content = generated(84, per_field)
    parts = split(content, 20, field, seed)
    assert_a_split(content, parts, field)
    group = {"id": 1, "field": 3, "slide": 12}[field]
    assert len(parts["archval"]["images"]) == 20 // group * group


@pytest.mark.parametrize("field", ["id", "field", "slide"])
def test_the_same_after_shuffling_to_the_byte(tmp_path: Path, field: str) -> None:
    content = generated(50, per_field=4)
    written = []
    for seed in (None, 1, 2, 3):
        folder = tmp_path / "run" / str(seed)
        write_splits(split(content if seed is None else shuffled(content, seed), 15, field, 9), folder)
        written.append({path.stem: path.read_bytes() for path in folder.iterdir()})
    assert all(files == written[0] for files in written)
    assert_a_split(content, {name: json.loads(text) for name, text in written[0].items()}, field)


def test_a_split_leaves_its_input_alone() -> None:
    content = generated(30)
    before = json.dumps(content)
    split(content, 0, "field", 0)
    assert json.dumps(content) == before


def test_the_split_depends_on_the_seed_and_looks_random() -> None:
    images = generated(300)["images"]
    halves = [archval_ids(images, 150, "id", seed) for seed in range(12)]
    assert len({frozenset(half) for half in halves}) == 12
    first = {image["id"] for image in images[:150]}
    # Images of the JSON's first half in archval: 75 expected, standard deviation 4.3.
    assert all(50 < len(half & first) < 100 for half in halves)
    times = Counter(i for half in halves for i in half)
    assert len(times) > 295  # an image stays out of all twelve once in 4,096 times


def test_more_archval_images_keep_those_of_a_smaller_one() -> None:
    """archval takes images from the start of one order."""
    images = generated(100)["images"]
    parts = [archval_ids(images, size, "id", 0) for size in (1, 10, 50, 99)]
    assert [len(part) for part in parts] == [1, 10, 50, 99]
    assert all(small < large for small, large in zip(parts, parts[1:]))


@pytest.mark.parametrize(
    ("count", "size"),
    [(2, 1), (5, 1), (9, 1), (10, 2), (292, 58), (24_999, 4999), (25_000, 5000), (30_000, 5000)],
)
def test_default_size_is_5000_or_a_fifth(count: int, size: int) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(count)]
    assert len(archval_ids(images, 0, "id", 0)) == size


@pytest.mark.parametrize("size", [30, 31, 5000, -1])
def test_a_size_that_cannot_be(size: int) -> None:
    with pytest.raises(InputError) as caught:
        split(generated(30), size, "id", 0)
    message = str(caught.value)
    assert message.startswith(f"SEARCH.ARCHVAL.SIZE: {size}: allowed are 1 to 29")
    assert "30 training images" in message and "\n" not in message


def test_groups_that_are_all_too_large() -> None:
    with pytest.raises(InputError, match=r"^SEARCH.ARCHVAL.SIZE: 3: every group of 'field'"):
        split(generated(28, per_field=4), 3, "field", 0)
    with pytest.raises(InputError, match=r"^SEARCH.ARCHVAL.SIZE: .*every group of 'field'"):
        split(generated(30, per_field=30), 0, "field", 0)


def test_a_field_that_an_image_lacks() -> None:
    content = generated(30)
    del content["images"][4]["field"]
    with pytest.raises(InputError) as caught:
        split(content, 0, "field", 0)
    shown = "SEARCH.ARCHVAL.SPLIT_FIELD: 'field': image 988 has no such entry"
    assert str(caught.value).startswith(shown)
    assert "file_name, id, slide" in str(caught.value)


@pytest.mark.parametrize("crowds", [True, False])
@pytest.mark.parametrize("part", ["archtrain", "archval"])
def test_a_part_with_crowds_alone_or_nothing(part: str, crowds: bool) -> None:
    content = generated(30)
    parts = split(content, 6, "id", 0)
    for annotation in parts[part]["annotations"]:
        if crowds:
            annotation["iscrowd"] = 1
        else:
            content["annotations"].remove(annotation)
    count = len(parts[part]["images"])
    shown = f"^SEARCH.ARCHVAL.SIZE: 6: {part} of {count} images would have no annotation with iscrowd 0"
    with pytest.raises(InputError, match=shown):
        split(content, 6, "id", 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("field", ["id", "field"])
def test_a_file_that_is_listed_twice_stays_on_one_side(field: str, seed: int) -> None:
    """As in merged exports, one a class (case 37); its entries may differ in the field."""
    content = generated(60, per_field=1)
    for image, twin in zip(content["images"][:30], content["images"][30:]):
        twin["file_name"] = image["file_name"]
    parts = split(content, 12, field, seed)
    halves = [parts[name]["images"] for name in ("archtrain", "archval")]
    names = [{image["file_name"] for image in images} for images in halves]
    assert not names[0] & names[1]
    assert [len(images) for images in halves] == [48, 12] and len(names[1]) == 6
    assert split(shuffled(content, seed), 12, field, seed)["archval"] == parts["archval"]


def test_a_class_without_objects_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In one part it is never learned, in the other never scored (case 31)."""
    content = generated(30)
    content["categories"].append({"id": 3, "name": "rare"})
    parts = split(content, 6, "id", 0)
    parts["archval"]["annotations"][0]["category_id"] = 2
    parts["archtrain"]["annotations"][0].update(category_id=3)
    parts["archval"]["annotations"][1].update(category_id=3, iscrowd=1)
    write_splits(parts, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "archtrain has no object of these classes, so a search cannot learn them: b",
        "archval has no object of these classes, so a search cannot score them: rare",
    ]


def test_written_anew_over_what_a_kill_left(tmp_path: Path) -> None:
    parts = split(generated(30), 0, "id", 0)
    (tmp_path / "archval.json.part").write_text('{"ima')
    (tmp_path / "archtrain.json").write_text("{}")
    for _ in range(2):
        write_splits(parts, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {f"{name}.json" for name in parts}
        for name, part in parts.items():
            assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) == part


# ---- real photographs ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("field", ["field", "id"])
def test_bccd(shared_data: Path, tmp_path: Path, seed: int, field: str) -> None:
    content = bccd(shared_data)
    assert len(content["images"]) == 292
    parts = split(content, 0, field, seed)
    assert_a_split(content, parts, field)
    assert 54 <= len(parts["archval"]["images"]) <= 58
    written = []
    for name, source in (("plain", content), ("shuffled", shuffled(content, 5))):
        write_splits(split(source, 0, field, seed), tmp_path / name)
        written.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1]


def test_bccd_would_have_near_twins_on_both_sides_without_the_field(shared_data: Path) -> None:
    """So the test above says something: its field is shared by several photographs."""
    parts = split(bccd(shared_data), 0, "id", 0)
    fields = [{i["field"] for i in parts[name]["images"]} for name in ("archtrain", "archval")]
    assert fields[0] & fields[1]
