"""Pascal VOC: its folder layout, AP50 by detectron2's evaluator, and what is said of a missing file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import ROOT, TINY, command_line
from PIL import Image

from crnas_d2.config import read_config
from crnas_d2.data.datasets import check_voc, register_coco
from crnas_d2.data.shapes import make_shapes
from crnas_d2.errors import InputError
from crnas_d2.pipeline.plan import plan_search
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.engine import default_argument_parser

# A quarter of the width, on pictures of 96 pixels.
SMALL = [
    *("MODEL.CRNAS.WIDTH_MULTIPLIER", 0.25),
    *("MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 60),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 30),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),  # after one iteration nothing is sure
    *("INPUT.MIN_SIZE_TRAIN", [96]),
    *("INPUT.MIN_SIZE_TEST", 96),
    *("SOLVER.EPOCHS", 1),
    *("SOLVER.STEP_EPOCHS", []),
    *("SOLVER.IMS_PER_BATCH", 2),
    *("DATALOADER.NUM_WORKERS", 0),
    *("MODEL.DEVICE", "cpu"),
    *("NUM_THREADS", 1),
]
OBJECT = (
    "<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
    "<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


def make_voc(folder: Path, splits: dict[str, list[str]]) -> None:
    """Pictures of 96x96 with one or two boxes each, in the layout of the challenge."""
    for part in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, names in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
        for number, name in enumerate(names):
            pixels = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
            objects = OBJECT.format(11, 11, 60, 70, name="dog")
            objects += OBJECT.format(21, 31, 90, 90, name="person") if number % 2 else ""
            size = "<size><width>96</width><height>96</height><depth>3</depth></size>"
            text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            (folder / "Annotations" / f"{name}.xml").write_text(text)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """$DETECTRON2_DATASETS with six pictures."""
    make_voc(tmp_path / "VOC2007", {"trainval": ["000001", "000002"], "test": ["000003", "000004"]})
    make_voc(tmp_path / "VOC2012", {"trainval": ["2012_000001", "2012_000002"]})
    return tmp_path


def train(voc: Path) -> subprocess.CompletedProcess[str]:
    config = ROOT / "configs" / "PascalVOC-Detection" / "faster_rcnn_CR_R_50_FPN_18ep.yaml"
    options = command_line([*SMALL, "OUTPUT_DIR", str(voc / "output")])
    return subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config), *options],
        env={**os.environ, "DETECTRON2_DATASETS": str(voc)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_voc_folder_trains_and_evaluates(voc: Path) -> None:
    run = train(voc)
    assert run.returncode == 0, run.stderr[-3000:]
    log = (voc / "output" / "log.txt").read_text()
    assert "1 epochs of 4 images at batch 2: 2 iterations" in log
    assert "Evaluating voc_2007_test using 2007 metric" in log
    assert "AP50" in log


def test_a_missing_annotation_is_named_before_anything_is_written(voc: Path) -> None:
    gone = voc / "VOC2012" / "Annotations" / "2012_000001.xml"
    gone.unlink()
    run = train(voc)
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error")]
    shown = f"the layout of Pascal VOC is needed: [Errno 2] No such file or directory: '{gone}'"
    assert line == f"error: DATASETS.TRAIN: voc_2012_trainval: {shown}"
    assert not (voc / "output").exists()


def refusal(voc: Path) -> str:
    name = f"voc of {voc}"
    if name not in DatasetCatalog.list():
        register_pascal_voc(name, str(voc / "VOC2007"), "test", 2007)
    with pytest.raises(InputError) as caught:
        check_voc(name, "DATASETS.TEST")
    assert str(caught.value).startswith("DATASETS.TEST: ") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("gone", "shown"),
    [
        ("ImageSets/Main/test.txt", "ImageSets/Main/test.txt'"),
        ("JPEGImages/000003.jpg", "1 of 2 images cannot be used: "),
        ("Annotations", "Annotations/000003.xml'"),
    ],
)
def test_what_a_folder_lacks(voc: Path, gone: str, shown: str) -> None:
    register_pascal_voc(f"voc of {voc}", str(voc / "VOC2007"), "test", 2007)
    check_voc(f"voc of {voc}", "DATASETS.TEST")
    (voc / "VOC2007" / gone).rename(voc / "elsewhere")
    assert shown in refusal(voc)


XML, LIST = "Annotations/000003.xml", "ImageSets/Main/test.txt"
UNUSABLE = [
    (XML, ""),
    (XML, "<annotation>"),
    (XML, "<annotation></annotation>"),
    (LIST, "\n"),
    (LIST, "3\n"),
]


@pytest.mark.parametrize(("file", "text"), UNUSABLE)
def test_a_file_that_cannot_be_used(voc: Path, file: str, text: str) -> None:
    (voc / "VOC2007" / file).write_text(text)
    message = refusal(voc)
    assert "the layout of Pascal VOC is needed" in message
    assert file == XML or "test.txt: at least two images" in message


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (
            ["SEARCH.PHASES", ("stage", "test"), "MODEL.CRNAS.SHARED", True, "SEARCH.JOINT", True],
            "a set with a COCO JSON is needed to test",
        ),
        (
            ["SEARCH.PHASES", ("stage", "retrain"), "SEARCH.EVAL.METRIC", "APs"],
            "SEARCH.EVAL.METRIC: 'APs': the test set",
        ),
    ],
    ids=["paths", "small objects"],
)
def test_what_a_search_cannot_ask_of_voc(voc: Path, options: list[Any], shown: str) -> None:
    make_shapes(voc / "data", 12, 4, seed=1, size=(96, 96))
    names = [f"{part} in {voc}" for part in ("train", "test")]
    register_coco(names[0], str(voc / "data" / "train.json"), str(voc / "data" / "images"))
    classes = ["disc", "square", "triangle"]
    register_pascal_voc(names[1], str(voc / "VOC2007"), "test", 2007, classes)
    MetadataCatalog.get(names[1]).evaluator_type = "pascal_voc"  # as detectron2's own sets have it
    for file in (voc / "VOC2007" / "Annotations").iterdir():
        file.write_text(file.read_text().replace("dog", "disc").replace("person", "square"))
    sets = ["DATASETS.TRAIN", (names[0],), "DATASETS.TEST", (names[1],)]
    keys = [*TINY, *sets, "MODEL.ROI_HEADS.NUM_CLASSES", 3, "OUTPUT_DIR", str(voc / "out"), *options]
    (voc / "search.yaml").write_text(read_config("", keys).dump())
    args = default_argument_parser().parse_args(["--config-file", str(voc / "search.yaml")])
    with pytest.raises(InputError, match=re.escape(shown)):
        plan_search(args)
