"""Pictures with YOLO's labels as a COCO JSON (tools/prepare_data.py), and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preparing import HEIGHT, WIDTH, checked, make_picture, output_of, refusal

from crnas_d2.data.prepared import picture_sizes
from crnas_d2.data.yolo import read_class_names, read_yolo
from detectron2.data.detection_utils import read_image


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Three pictures in Ultralytics' layout, below a folder that is called images, too."""
    folder = tmp_path / "images" / "yolo"
    for name in ("a.jpg", "b.png", "sub/c.jpg"):
        make_picture(folder / "images" / "train" / name)
    labels = folder / "labels" / "train"
    (labels / "sub").mkdir(parents=True)
    (labels / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.1 0.1\n")
    (labels / "sub" / "c.txt").write_text("2 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5\n")
    (folder / "data.yaml").write_text("train: images/train\nnc: 3\nnames: [cat, dog, 7]\n")
    return folder


def read(folder: Path) -> dict[str, Any]:
    prepared = read_yolo(folder / "images" / "train", None, folder / "data.yaml")
    return {"dropped": prepared.dropped, "clipped": prepared.clipped, "all": prepared.annotations}


def label(folder: Path, text: str) -> None:
    (folder / "labels" / "train" / "a.txt").write_text(text)


def test_yolo_by_hand(yolo: Path, tmp_path: Path) -> None:
    path, images = tmp_path / "train.json", yolo / "images" / "train"
    (yolo / "labels" / "train" / "gone.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (yolo / "labels" / "train" / "classes.txt").write_text("cat\ndog\n7\n")
    out = output_of("yolo", images, "--classes", yolo / "data.yaml", "--output", path)
    content = checked(path, images)
    assert content["categories"] == [
        {"id": i, "name": name} for i, name in enumerate(("cat", "dog", "7"), start=1)
    ]
    size = {"width": 200, "height": 100}
    assert content["images"] == [
        {"id": i, "file_name": name, **size}
        for i, name in enumerate(("a.jpg", "b.png", "sub/c.jpg"), 1)
    ]
    polygon = [20, 10, 60, 10, 60, 50, 20, 50]
    expected = [
        {"image_id": 1, "category_id": 2, "bbox": [75, 25, 50, 50], "area": 2500},
        {"image_id": 1, "category_id": 1, "bbox": [10, 15, 20, 10], "area": 200},
        {"image_id": 3, "category_id": 3, "bbox": [20, 10, 40, 40], "area": 1600},
    ]
    expected[2]["segmentation"] = [polygon]
    assert content["annotations"] == [{"id": i, "iscrowd": 0, **e} for i, e in enumerate(expected, 1)]
    assert "3 images (1 without objects), 3 boxes\n    3 classes: cat 1, dog 1, 7 1" in out
    assert "1 boxes have a polygon" in out
    assert "1 pictures have no label file: images without objects" in out
    assert "1 label files have no picture and were left out" in out


def test_labels_elsewhere(yolo: Path) -> None:
    expected = read(yolo)
    (yolo / "labels" / "train").rename(yolo / "elsewhere")
    (yolo / "images" / "train").rename(yolo / "pictures")
    names = yolo / "names.txt"
    names.write_text("cat\ndog \n7\n\n")
    assert read_yolo(yolo / "pictures", yolo / "elsewhere", names).annotations == expected["all"]
    assert f"{yolo.parent.parent}/labels/yolo/pictures: no such folder" in refusal(
        lambda: read_yolo(yolo / "pictures", None, names)
    )


def test_labels_need_a_folder_called_images(yolo: Path) -> None:
    root = Path(Path(yolo).anchor)
    assert "is called images; --labels is needed" in refusal(
        lambda: read_yolo(root, None, yolo / "data.yaml")
    )


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_that_detectron2_reads(tmp_path: Path, suffix: str, orientation: int) -> None:
    make_picture(tmp_path / f"a.{suffix}", orientation)
    size = picture_sizes([f"a.{suffix}"], tmp_path)[f"a.{suffix}"]
    assert size == read_image(str(tmp_path / f"a.{suffix}"), "BGR").shape[1::-1]
    assert size == ((HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT))


def test_boxes_of_a_turned_picture(yolo: Path) -> None:
    make_picture(yolo / "images" / "train" / "a.jpg", orientation=6)
    assert read(yolo)["all"][0]["bbox"] == [37.5, 50, 25, 100]


def test_yolo_boxes_at_the_edge_and_of_no_area(yolo: Path) -> None:
    lines = [
        "0 0.05 0.5 0.2 0.5",  # reaches over the left edge
        "0 0.5 0.5 1.000001 1.005",  # rounded
        "0 0.5 0.5 0 0.5",
        "0 0.5 0.5 -0.005 0.5",
        "0 0.5 0.5 0.5 0.000001",  # less than the last digit
        "0 0.2 0.2 0.4 0.4 0.6 0.6",  # a line
        "0 -0.005 0.5 0.5 1.005 0.5 0.5 0.25 0.75",
        *["0 0.5 0.5 0.1 0.1"] * 5,
    ]
    label(yolo, "\n".join(lines))
    found = read(yolo)
    assert [a["bbox"] for a in found["all"][:3]] == [
        [0, 25, 30, 50],
        [0, 0, 200, 100],
        [0, 50, 100, 50],
    ]
    assert found["all"][2]["segmentation"] == [[0, 50, 100, 100, 100, 50, 50, 75]]
    path = yolo / "labels" / "train" / "a.txt"
    assert found["clipped"] == [f"{path}: line 1: {lines[0]}"]
    assert found["dropped"] == [f"{path}: line {number}: {lines[number - 1]}" for number in range(3, 7)]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("3 0.5 0.5 0.1 0.1", "line 2: class 3: allowed are 0 to 2; 3 names are given"),
        ("-1 0.5 0.5 0.1 0.1", "line 2: class -1: allowed are 0 to 2; 3 names are given"),
        ("0.5 0.5 0.5 0.1 0.1", "line 2: class 0.5: allowed are 0 to 2; 3 names are given"),
        ("nan 0.5 0.5 0.1 0.1", "line 2: class nan: allowed are 0 to 2; 3 names are given"),
        ("dog 0.5 0.5 0.1 0.1", "line 2: 'dog': a number is needed"),
        ("0,0.5,0.5,0.1,0.1", "line 2: '0,0.5,0.5,0.1,0.1': 1 columns; allowed is class x y w h, or"),
        ("0 0.5 0.5 0.1", "line 2: '0 0.5 0.5 0.1': 4 columns"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 columns"),  # a confidence
        ("0 0.5 0.5 0.1 0.1 0.9 0.9 0.9", "8 columns"),
        ("0 0.5 0.5 20 0.1", "line 2: 20: allowed is 0 to 1, in parts of the picture"),
        ("0 0.5 1.02 0.1 0.1", "line 2: 1.02: allowed is 0 to 1"),
        ("0 -0.02 0.1 0.5 0.5 0.2 0.4", "line 2: -0.02: allowed is 0 to 1"),
        ("0 0.5 0.5 nan 0.1", "line 2: nan: allowed is 0 to 1"),
        ("0 0.5 0.5 0.1 \udcff", "a.txt: not a text file"),
    ],
)
def test_bad_labels(yolo: Path, line: str, shown: str) -> None:
    text = f"0 0.5 0.5 0.1 0.1\n{line}\n"
    (yolo / "labels" / "train" / "a.txt").write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(lambda: read(yolo))
    assert message.startswith(str(yolo / "labels" / "train" / "a.txt")) and shown in message


def test_what_a_yolo_folder_lacks(yolo: Path) -> None:
    label(yolo, "")
    (yolo / "labels" / "train" / "sub" / "c.txt").unlink()
    assert f"{yolo}/labels/train: 3 images and no box" in refusal(lambda: read(yolo))
    (yolo / "labels" / "train" / "a.txt").rename(yolo / "labels" / "train" / "other.txt")
    shown = "labels/train: labels of none of the 3 pictures; a.txt ... are needed"
    assert shown in refusal(lambda: read(yolo))
    (yolo / "labels").rename(yolo / "elsewhere")
    assert "labels/train: no such folder; one with YOLO's labels" in refusal(lambda: read(yolo))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "cat\ndog\n"),
        ("names.txt", "\ufeffcat\r\ndog  \r\n\r\n"),
        ("data.yaml", "names: [cat, dog]\nnc: 2"),
        ("data.yaml", "names:\n  1: dog\n  0: cat\n"),
        ("data.YML", "names:\n- cat\n- dog\n"),
    ],
)
def test_class_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("gone.txt", None, "gone.txt: No such file or directory; a data.yaml or a text file"),
        ("names.txt", "", "names []: a list"),
        ("names.txt", "cat\n\ndog", "name 1: '': a text is needed"),
        ("names.txt", "cat\ndog\ncat", "name 2: 'cat' is that of 0, too"),
        ("data.yaml", "names: [", "data.yaml: not a YAML file ("),
        ("data.yaml", "- cat", "data.yaml: no names; a data.yaml with names is needed"),
        ("data.yaml", "nc: 2", "names None: a list"),
        (
            "data.yaml",
            "names: {0: cat, 2: dog}",
            "names {0: 'cat', 2: 'dog'}: a list, or numbers from 0",
        ),
        ("data.yaml", "names: [yes, no]", "name 0: True: a text is needed, in YAML in quotes"),
        ("data.yaml", "names: [cat]\nnc: 2", "nc 2: there are 1 names; both must agree"),
        ("data.yaml", "names: [cat]\nkpt_shape: [17, 3]", "kpt_shape: labels with keypoints"),
    ],
)
def test_bad_class_names(tmp_path: Path, name: str, text: str | None, shown: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert shown in refusal(lambda: read_class_names(tmp_path / name))
