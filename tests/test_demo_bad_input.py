"""What demo.py refuses, before anything is written: in one line that names it and what is allowed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bench import script, snapshot
from preparing import make_picture

from crnas_d2.errors import InputError


@pytest.fixture(scope="module")
def folder(disc_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """found.yaml and found.pth, half of its weights, JSONs, pictures, and an earlier output."""
    folder = tmp_path_factory.mktemp("bad")
    for path in (disc_yaml, disc_yaml.with_suffix(".pth")):
        shutil.copy(path, folder)
    state = torch.load(folder / "found.pth", weights_only=True)["model"]
    half = {name: value for name, value in state.items() if "roi_heads" not in name}
    torch.save({"model": half}, folder / "half.pth")
    for name, content in {
        "two": {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]},
        "none": {"images": []},
        "nameless": {"categories": [{"id": 1}]},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    make_picture(folder / "images" / "a.jpg")
    make_picture(folder / "earlier" / "a.jpg")
    return folder


# What is asked for, after what would work, and what the line says; {} is the folder.
WEIGHTS = ["--opts", "MODEL.WEIGHTS", "{}/found.pth"]
NO_JSON = [*WEIGHTS, "DATASETS.TRAIN_JSON", "", "DATASETS.TEST_JSON", ""]
BAD = {
    "no weights": (["--opts", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS: '': weights of a trained detector"),
    "no such weights": (["--opts", "MODEL.WEIGHTS", "no.pth"], "MODEL.WEIGHTS: no.pth: no such file"),
    "half the weights": (
        ["--opts", "MODEL.WEIGHTS", "{}/half.pth"],
        "MODEL.WEIGHTS: {}/half.pth: are not all of this detector's weights: roi_heads.",
    ),
    "of another network": (
        [*WEIGHTS, "MODEL.CRNAS.STAGE_CODE", "[1, 1, 2, 1]"],
        "MODEL.WEIGHTS: {}/found.pth: is of another network",
    ),
    "of other classes": (
        [*WEIGHTS, "DATASETS.TEST_JSON", "{}/two.json"],
        "cls_score.weight has shape (4, 16) there, (3, 16) in this config",
    ),
    "an unknown key": (["--opts", "NO.KEY", "1"], "NO.KEY: 1: no such key"),
    "no value": (["--opts", "SEED"], "SEED: has no value"),
    "a supernet": (
        [*WEIGHTS, "MODEL.CRNAS.SUPERNET", "stage"],
        "MODEL.CRNAS.SUPERNET: 'stage': allowed is a fixed network",
    ),
    "a classifier": (
        [*WEIGHTS, "MODEL.META_ARCHITECTURE", "ImageClassifier"],
        "MODEL.META_ARCHITECTURE: 'ImageClassifier': allowed are GeneralizedRCNN, ",
    ),
    "no set": (
        [*NO_JSON, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"],
        "DATASETS.TRAIN: (): a set with the names of the classes is needed",
    ),
    "an unknown set": ([*NO_JSON, "DATASETS.TEST", "('no',)"], "DATASETS.TEST: 'no': not a registered"),
    "a set of other classes": (
        [*NO_JSON, "DATASETS.TEST", "('coco_2017_val',)"],
        "MODEL.ROI_HEADS.NUM_CLASSES: 3: DATASETS.TEST 'coco_2017_val' has 80 classes",
    ),
    "no JSON": (
        [*WEIGHTS, "DATASETS.TEST_JSON", "no.json"],
        "DATASETS.TEST_JSON: no.json: No such file",
    ),
    "no categories": (
        [*WEIGHTS, "DATASETS.TEST_JSON", "{}/none.json"],
        "DATASETS.TEST_JSON: {}/none.json: no categories",
    ),
    "a category without a name": (
        [*WEIGHTS, "DATASETS.TEST_JSON", "{}/nameless.json"],
        "DATASETS.TEST_JSON: {}/nameless.json: categories[0] (id 1): name None: a text is needed",
    ),
    "no config": (["--config-file", "no.yaml", *WEIGHTS], "--config-file: no.yaml: "),
    "too sure": (["--confidence-threshold", "50"], "--confidence-threshold: 50.0: allowed are 0 to 1"),
    "no number": (
        ["--confidence-threshold", "half"],
        "--confidence-threshold: invalid float value: 'half'",
    ),
    "an unknown option": (["--outputs", "x"], "unrecognized arguments: --outputs x"),
    "no such file": (["--input", "no.jpg", *WEIGHTS], "--input: no.jpg: no such file or folder"),
    "no match": (["--input", "{}/*.gif", *WEIGHTS], "/*.gif: no such file or folder, and no file"),
    "no picture": (
        ["--input", "{}", *WEIGHTS],
        "--input: {}: no picture and no video; allowed are .bmp, .jpeg, ",
    ),
    "its own folder": (
        ["--output", "{}/earlier/../images", *WEIGHTS],
        "--output: {}/earlier/../images: is the folder of {}/images/a.jpg",
    ),
    "a file as folder": (
        ["--output", "{}/found.pth", *WEIGHTS],
        "--output: {}/found.pth: is not a folder",
    ),
    "written before": (
        ["--output", "{}/earlier", *WEIGHTS],
        "--output: {}/earlier/a.jpg: is there already; another folder is needed",
    ),
    "other colours": (
        [*WEIGHTS, "INPUT.FORMAT", "YUV"],
        "INPUT.FORMAT: 'YUV': allowed are RGB and BGR",
    ),
    "both sources": (["--webcam"], "--webcam: not allowed with argument --input/--video-input"),
}
# Without what would work.
INCOMPLETE = {
    "no option": ([], "the following arguments are required: --config-file"),
    "no source": (
        ["--config-file", "x.yaml"],
        "one of the arguments --webcam --input/--video-input is",
    ),
    "no output": (
        ["--config-file", "x.yaml", "--input", "a"],
        "--output: a folder is needed with --input",
    ),
    "an option too late": (
        ["--config-file", "x.yaml", "--input", "a", "--opts", "SEED", "1", "--output", "b"],
        "--output: options stand before --opts",
    ),
    "a webcam's output": (
        ["--config-file", "x.yaml", "--webcam", "--output", "x"],
        "--output: a folder is needed with --input, and none with --webcam",
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_incomplete_command_line(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, said = INCOMPLETE[case]
    monkeypatch.setattr(sys, "argv", ["demo.py", *given])
    with pytest.raises(InputError) as caught:
        script("demo.py").main()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in ("demo", "drawing"):
        monkeypatch.delitem(sys.modules, f"crnas_d2.engine.{name}", raising=False)
    line = ["--config-file", "x.yaml", "--input", "a", "--output", "b"]
    monkeypatch.setattr(sys, "argv", ["demo.py", *line])
    with pytest.raises(InputError, match=r"^[^\n]*cv2[^\n]*; pip install opencv-python$"):
        script("demo.py").main()


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = ["--config-file", "{}/found.yaml", "--input", "{}/images", "--output", "{}/drawn"]
    given, said = BAD[case]
    line = [word.replace("{}", str(folder)) for word in (*works, *given)]
    monkeypatch.setattr(sys, "argv", ["demo.py", *line])
    before = snapshot(folder)
    with pytest.raises(InputError) as caught:
        script("demo.py").main()
    assert snapshot(folder) == before
    text = str(caught.value)
    assert said.replace("{}", str(folder)) in text and "\n" not in text
