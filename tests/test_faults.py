"""A list of faults: each ends in one line on standard error and status 2, and no file is touched.

Those that show only while a run is under way end in one line as well; what was done stays, and
--resume goes on when the fault is mended. test_bad_input.py has more of the first kind.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import HEADS, ROOT, command_line, tiny_shapes, tiny_yaml
from PIL import Image
from test_bad_input import SEARCH, TRAIN, Bench, bench, of, shapes, snapshot  # noqa: F401
from test_checkpoint import DAMAGES, Trap

# ---- configs: the script, KEY VALUE, and what the line shows -------------------------------------

CONFIGS = {
    "a text for a number": (TRAIN, ["SOLVER.BASE_LR", "fast"], "BASE_LR"),
    "a number for a list": (TRAIN, ["MODEL.CRNAS.WIDTHS", 3], "WIDTHS"),
    "a text for a switch": (SEARCH, ["SEARCH.STAGE.ONLY_ELIGIBLE", "yes"], "ONLY_ELIGIBLE"),
    "negative rate": (TRAIN, ["SOLVER.BASE_LR", -1.0], "SOLVER: cannot be used: Invalid learning rate"),
    "negative momentum": (TRAIN, ["SOLVER.MOMENTUM", -1.0], "Invalid momentum value: -1.0"),
    "no iteration": (SEARCH, ["SOLVER.MAX_ITER", 0], "SOLVER.MAX_ITER: 0: at least 1"),
    "no checkpoint": (TRAIN, ["SOLVER.CHECKPOINT_PERIOD", 0], "SOLVER.CHECKPOINT_PERIOD: 0: "),
    "negative passes": (TRAIN, ["SOLVER.ACCUMULATE", -1], "SOLVER.ACCUMULATE: -1: at least 1"),
    "negative workers": (TRAIN, ["DATALOADER.NUM_WORKERS", -1], "DATALOADER.NUM_WORKERS: -1: "),
    "negative threads": (SEARCH, ["NUM_THREADS", -2], "NUM_THREADS: -2: at least 0"),
    "negative cache": (SEARCH, ["SEARCH.EVAL.CACHE_GB", -1.0], "SEARCH.EVAL.CACHE_GB: -1.0: at least 0"),
    "images of no size": (TRAIN, ["INPUT.MIN_SIZE_TRAIN", []], "INPUT.MIN_SIZE_TRAIN: (): "),
    "images of no width": (TRAIN, ["INPUT.MAX_SIZE_TEST", 0], "INPUT.MAX_SIZE_TEST: 0: at least 1"),
    "a deviation of 0": (TRAIN, ["MODEL.PIXEL_STD", [0.0] * 3], "MODEL.PIXEL_STD: [0.0, 0.0, 0.0]: "),
    "unknown detector": (TRAIN, ["MODEL.META_ARCHITECTURE", "YOLO"], "MODEL.META_ARCHITECTURE: 'YOLO'"),
    "unknown heads": (SEARCH, ["MODEL.ROI_HEADS.NAME", "Nope"], "'Nope' found in 'ROI_HEADS'"),
    "unknown schedule": (TRAIN, ["SOLVER.LR_SCHEDULER_NAME", "Nope"], "Unknown LR scheduler: Nope"),
    "unknown warmup": (TRAIN, ["SOLVER.WARMUP_METHOD", "Nope"], "Unknown warmup method: Nope"),
    "unknown precision": (SEARCH, ["SEARCH.EVAL.AMP", "fp8"], "SEARCH.EVAL.AMP: 'fp8': allowed are '', 'bf16'"),
    "unknown device": (TRAIN, ["MODEL.DEVICE", "gpu"], "MODEL.DEVICE: 'gpu': cuda"),
    "unknown color": (TRAIN, ["INPUT.FORMAT", "XYZ"], "INPUT: images cannot be read"),
    "unknown flip": (TRAIN, ["INPUT.RANDOM_FLIP", "Nope"], "INPUT: images cannot be read"),
    "unknown metric": (SEARCH, ["SEARCH.EVAL.METRIC", "mAP"], "SEARCH.EVAL.METRIC: 'mAP': allowed are AP, AP50"),
    "a coin as confidence": (SEARCH, ["SEARCH.RACE.CONFIDENCE", 0.5], "SEARCH.RACE.CONFIDENCE: 0.5: "),
    "no folder": (TRAIN, ["OUTPUT_DIR", ""], "OUTPUT_DIR: '': a folder is needed"),
    "batch and passes": (TRAIN, ["SOLVER.ACCUMULATE", 4], "SOLVER.IMS_PER_BATCH: 2: a multiple"),
    "steps backwards": (TRAIN, ["SOLVER.STEPS", [5, 3]], "SOLVER: cannot be used: "),
    "heads and neck": (TRAIN, ["MODEL.ROI_HEADS.IN_FEATURES", ["p9"]], "p9"),
    "anchors and levels": (TRAIN, ["MODEL.RPN.IN_FEATURES", ["p2"]], "anchor generator"),
    "mean and color": (SEARCH, ["MODEL.PIXEL_MEAN", [1.0, 2.0]], "MODEL.META_ARCHITECTURE: "),
    "machines": (TRAIN, ["--num-machines", 0], "--num-machines: 0: at least 1"),
    "machine rank": (TRAIN, ["--num-gpus", 2, "--machine-rank", 1], "--machine-rank: 1: allowed"),
    "address": (SEARCH, ["--num-gpus", 2, "--dist-url", "here"], "--dist-url: here: tcp://HOST:PORT"),
}

# ---- JSONs: what is changed, and what the line shows ---------------------------------------------

Content = dict[str, Any]


def first(part: str, **values: Any) -> Callable[[Content], object]:
    return lambda content: content[part][0].update(values)


JSONS: dict[str, tuple[Callable[[Content], object], str]] = {
    "images by name": (lambda c: c.update(images={"a": 1}), "images: a list of records is needed"),
    "annotations in a text": (lambda c: c.update(annotations="none"), "annotations: a list"),
    "an image that is a number": (lambda c: c["images"].insert(0, 5), "images[0]: no id"),
    "no area": (lambda c: c["annotations"][0].pop("area"), "annotations[0]: no area"),
    "an id that is a list": (first("images", id=[1]), "image [1]: id [1]: an integer"),
    "a huge id": (first("annotations", id=10**30), "id 1000000"),
    "a fraction as id": (first("images", id=1.5), "image 1.5: id 1.5: an integer"),
    "two kinds of ids": (first("categories", id="one"), "categories: numbers and texts as ids"),
    "the same id": (first("images", id=2), "images: id 2 stands there twice"),
    "a name that is a number": (first("images", file_name=7), "image 1: file_name 7: a text"),
    "no height": (first("images", height=0), "image 1: height 0: a positive integer"),
    "half a pixel": (first("images", width=9.5), "image 1: width 9.5: a positive integer"),
    "a category without a name": (first("categories", name=""), "category 1: name '': a text"),
    "a box of texts": (first("annotations", bbox=["1", "2", "3", "4"]), "bbox ['1', '2', '3', '4']: x"),
    "a box of NaN": (first("annotations", bbox=[1, 2, math.nan, 4]), "bbox [1, 2, nan, 4]: x, y"),
    "a box without end": (first("annotations", bbox=[1, 2, math.inf, 4]), "bbox [1, 2, inf, 4]: x, y"),
    "a negative width": (first("annotations", bbox=[1, 2, -3, 4]), "bbox [1, 2, -3, 4]: x, y"),
    "a box in a box": (first("annotations", bbox=[[1, 2, 3, 4]]), "bbox [[1, 2, 3, 4]]: x, y"),
    "a negative area": (first("annotations", area=-1), "area -1: a number of at least 0"),
    "half a crowd": (first("annotations", iscrowd=2), "iscrowd 2: 0 or 1"),
    "a polygon of texts": (first("annotations", segmentation=[["a"] * 6]), "segmentation: polygons"),
    "a polygon of NaN": (first("annotations", segmentation=[[math.nan] * 6]), "segmentation: polygons"),
    "points without a polygon": (first("annotations", segmentation=[1, 2, 3]), "segmentation: poly"),
    "an RLE without counts": (first("annotations", segmentation={"size": [4, 4]}), "segmentation: "),
    "an image elsewhere": (first("images", file_name="../x.jpg"), "x.jpg: no such image (1 of 12"),
    "a zero in a name": (first("images", file_name="a\0.jpg"), "no such image (1 of 12"),
}
TEXTS = {
    "truncated": (lambda text: text[: len(text) // 2], "not a JSON file"),
    "empty": (lambda text: "", "not a JSON file"),
    "bottomless": (lambda text: "[" * 100_000, "not a JSON file"),
    "a list": (lambda text: f"[{text}]", "no images"),
}

# ---- files: what is done, and what the line shows ------------------------------------------------


def picture(bench: Bench, change: Callable[[Path], object]) -> list[Any]:  # noqa: F811
    """A copy of the data set in which one picture is changed."""
    folder = bench.folder / "data"
    shutil.copytree(bench.shapes, folder)
    change(folder / "images" / "train_00003.jpg")
    return [*("DATASETS.TRAIN_IMAGES", str(folder / "images"))]


def weights(bench: Bench, change: Callable[[Path], object]) -> list[Any]:  # noqa: F811
    path = Path(bench.checkpoint())
    change(path)
    return ["MODEL.WEIGHTS", str(path)]


def earlier(bench: Bench, change: Callable[[Path], object]) -> list[Any]:  # noqa: F811
    bench.earlier_run()
    change(bench.output / "model_0000001.pth")
    return ["--resume"]


RECORD = {"phase": "stage", "architecture": "resnet/1-1-1-2/0-0-0-00", "score": 1.5}


def journal(*lines: Any, name: str = "journal.jsonl") -> Callable[[Bench, Any], list[Any]]:
    """A run's folder with a journal of these lines, and a whole one after them."""

    def write(bench: Bench, _: Any) -> list[Any]:  # noqa: F811
        bench.earlier_run(*of("stage", []), folder="stage")
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        last = json.dumps({**RECORD, "architecture": "resnet/2-1-1-1/00-0-0-0"})
        (bench.output / "stage" / name).write_text("\n".join([*texts, last, ""]))
        return ["--resume"]

    return write


def save(content: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


def edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A checkpoint of which the weights are changed."""

    def change(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        edit(content["model"])
        torch.save(content, path)

    return change


TRAP = {"model": Trap(Path("/no/such/folder/x"))}
PICKLE = pickle.dumps(TRAP, protocol=2)
CONV = "backbone.bottom_up.res2.0.conv1.weight"
FILES: dict[str, tuple[str, Callable[..., list[Any]], Any, str]] = {
    "picture of 0 bytes": (TRAIN, picture, DAMAGES["emptied"], "00003.jpg: an empty file (1 of 12"),
    "picture that is a folder": (SEARCH, picture, DAMAGES["a folder"], "00003.jpg: no such image"),
    "weights, truncated": (TRAIN, weights, DAMAGES["truncated"], "not a detectron2 checkpoint"),
    "weights, overwritten": (SEARCH, weights, DAMAGES["overwritten"], "not a detectron2 checkpoint"),
    "weights that are a folder": (TRAIN, weights, DAMAGES["a folder"], "weights.pth: no such file"),
    "weights that run code": (TRAIN, weights, save(TRAP), "not a detectron2"),
    "weights as a pickle": (TRAIN, weights, lambda p: p.write_bytes(PICKLE), "not a detectron2"),
    "weights that are a number": (TRAIN, weights, save(5), "not a detectron2 checkpoint"),
    "weights less one": (TRAIN, weights, edited(lambda m: m.pop(CONV)), f"{CONV} has shape none"),
    "weights of no tensor": (TRAIN, weights, edited(lambda m: m.update({CONV: 5})), CONV),
    "weights, reshaped": (
        TRAIN,
        weights,
        edited(lambda m: m.update({CONV: torch.zeros(1)})),
        f"{CONV} has shape (1,) there",
    ),
    "only checkpoint, truncated": (TRAIN, earlier, DAMAGES["truncated"], "000001.pth is damaged ("),
    "only checkpoint, emptied": (TRAIN, earlier, DAMAGES["emptied"], "is damaged (0 bytes"),
    "only checkpoint, flipped": (TRAIN, earlier, DAMAGES["flipped"], "is damaged ("),
    "journal, garbage inside": (SEARCH, journal(RECORD, "garbage"), None, "jsonl:2: not a scored"),
    "journal, a line torn inside": (SEARCH, journal('{"phase": "st'), None, "jsonl:1: not a scored"),
    "journal, an empty line": (SEARCH, journal(RECORD, ""), None, "jsonl:2: not a scored"),
    "journal, score NaN": (SEARCH, journal({**RECORD, "score": math.nan}), None, "nan is not finite"),
    "journal, score a text": (SEARCH, journal({**RECORD, "score": "1"}), None, "jsonl:1: not a scored"),
    "journal, no score": (SEARCH, journal({"phase": "stage"}), None, "jsonl:1: not a scored"),
    "journal, twice": (SEARCH, journal(RECORD, RECORD), None, "jsonl:2: not a scored candidate"),
    "journal, a list": (SEARCH, journal([RECORD]), None, "journal.jsonl:1: not a scored candidate"),
    "race, a line torn inside": (
        SEARCH,
        journal('{"phase": "st', name="race.jsonl"),
        None,
        "race.jsonl:1: not a scored",
    ),
    "race, another step": (
        SEARCH,
        journal({**RECORD, "phase": "dilation race N5"}, name="race.jsonl"),
        None,
        "race.jsonl:1: step 'dilation race N5': allowed is 'stage'",
    ),
    "journal, another step": (
        SEARCH,
        journal({**RECORD, "phase": "dilation"}),
        None,
        "journal.jsonl:1: step 'dilation': allowed is 'stage'",
    ),
}

FAULTS = [
    *(pytest.param(script, options, shown, id=id) for id, (script, options, shown) in CONFIGS.items()),
    *(
        pytest.param(SEARCH, lambda b, c=change: ["DATASETS.TRAIN_JSON", b.json(c)], shown, id=id)
        for id, (change, shown) in JSONS.items()
    ),
    *(
        pytest.param(name, lambda b, f=make, c=change: f(b, c), shown, id=id)
        for id, (name, make, change, shown) in FILES.items()
    ),
]


@pytest.mark.parametrize(("name", "fault", "shown"), FAULTS)
def test_a_fault_is_one_line(bench: Bench, name: str, fault: Any, shown: str) -> None:  # noqa: F811
    """bench.call asserts the status, the single line, and that nothing is written."""
    error = bench.call(name, *(fault(bench) if callable(fault) else fault))
    assert shown in error, error


@pytest.mark.parametrize("text", TEXTS)
def test_a_json_that_is_none(bench: Bench, text: str) -> None:  # noqa: F811
    change, shown = TEXTS[text]
    path = bench.folder / "train.json"
    path.write_text(change((bench.shapes / "train.json").read_text()))
    error = bench.call(TRAIN, "DATASETS.TRAIN_JSON", str(path))
    assert error.startswith(f"error: DATASETS.TRAIN_JSON: {path}: ") and shown in error


def test_the_list_is_long_enough() -> None:
    assert len(FAULTS) + len(TEXTS) >= 40
    ids = [param.id for param in FAULTS]
    assert len(set(ids)) == len(ids)


def test_masks_that_are_not_there(bench: Bench) -> None:  # noqa: F811
    path = bench.json(first("annotations", segmentation=[]))
    data = ["DATASETS.TRAIN_JSON", path]
    assert bench.starts(TRAIN, *HEADS["MaskRCNN"])
    assert bench.starts(TRAIN, *data)
    error = bench.call(TRAIN, *HEADS["MaskRCNN"], *data)
    assert error.startswith("error: MODEL.MASK_ON: True: annotation 1 in ") and "(1 have none)" in error


# ---- as a person starts it -----------------------------------------------------------------------


def start(folder: Path, script: str, *options: Any, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / script), *command_line([*options])],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **environ},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "id", ["steps backwards", "a box of NaN", "weights that run code", "journal, twice"]
)
def test_a_fault_in_a_real_process(bench: Bench, id: str) -> None:  # noqa: F811
    name, fault, shown = next(param.values for param in FAULTS if param.id == id)
    options = fault(bench) if callable(fault) else fault
    before = snapshot(bench.folder)
    done = start(bench.folder, name, *bench.arguments(options))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("error: ") == 1 and shown in done.stderr.splitlines()[-1]
    assert snapshot(bench.folder) == before


def test_no_compiler(bench: Bench) -> None:  # noqa: F811
    """torch.compile is tried before anything is written, with nothing of earlier runs to take."""
    before = snapshot(bench.folder)
    none = {"CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(bench.shapes / "inductor")}
    done = start(bench.folder, SEARCH, *bench.arguments(["SEARCH.COMPILE", True]), **none)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: SEARCH.COMPILE: True: torch.compile: ")
    assert "/no/compiler" in done.stderr and done.stderr.endswith("; allowed here is False\n")
    assert snapshot(bench.folder) == before


def shrink(path: Path) -> None:
    Image.open(path).resize((50, 50)).save(path)


PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "truncated"),
    "a text": (lambda path: path.write_text("no picture"), "cannot identify image file"),
    "of another size": (shrink, "Mismatched"),
}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", PICTURES)
def test_a_broken_picture(bench: Bench, change: str, workers: int) -> None:  # noqa: F811
    """It shows when it is read, and the line names it."""
    change_it, shown = PICTURES[change]
    options = [*picture(bench, change_it), "DATALOADER.NUM_WORKERS", workers, "SOLVER.MAX_ITER", 20]
    done = start(bench.folder, TRAIN, *bench.arguments(options))
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    last = done.stderr.splitlines()[-1]
    path = bench.folder / "data" / "images" / "train_00003.jpg"
    assert last.startswith(f"error: {path}: cannot be read as an image: ") and shown in last


# ---- while a run is under way --------------------------------------------------------------------

# What happens (faulty_search.py), options of both runs, the status, and what the line shows.
UNDER_WAY = {
    "full disk, checkpoint": ("0 training full100000", [], 1, "/model_0000003.pth'; --resume goes on"),
    "full disk, matches": ("0 search full400", [], 1, ".npz'; --resume goes on"),
    "full disk, journal": ("0 matched full400", [], 1, "stage/journal.jsonl'; --resume goes on"),
    "pictures gone, training": ("0 training gone", [], 2, "cannot be read as an image: No such file"),
    "pictures gone, workers": (
        "0 training gone",
        ["DATALOADER.NUM_WORKERS", 2, "SOLVER.MAX_ITER", 20],
        2,
        "cannot be read as an image: No such file",
    ),
    "pictures gone, search": (
        "0 search gone",
        ["SEARCH.EVAL.CACHE_GB", 0.0],
        2,
        "cannot be read as an image: No such file",
    ),
}


def search(folder: Path, out: str, fault: str, *options: Any) -> subprocess.CompletedProcess[str]:
    """A stage search in ``out``."""
    pairs = [*tiny_shapes(folder / "data"), "OUTPUT_DIR", str(folder / out)]
    flags = ["--resume"] if (folder / out).exists() else []
    return start(
        ROOT,
        "tests/faulty_search.py",
        *("--config-file", str(tiny_yaml(folder / "search.yaml")), *flags),
        *(*pairs, "SEARCH.PHASES", ("stage",), *options),
        FAULT=fault,
        IMAGES=str(folder / "data" / "images"),
    )


def records(folder: Path) -> list[dict[str, Any]]:
    """The journal, every line of which is whole."""
    path = folder / "stage" / "journal.jsonl"
    text = path.read_text() if path.exists() else ""
    assert text == "" or text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    for record in found:
        del record["seconds"]
    return found


@pytest.fixture(scope="module")
def without_fault(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """The journal of the run with these options."""

    @functools.lru_cache
    def of_options(*options: Any) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("without")
        assert search(folder, "out", "", *options).returncode == 0
        return records(folder / "out")

    return of_options


@pytest.mark.slow
@pytest.mark.parametrize("fault", UNDER_WAY)
def test_a_fault_while_a_run_is_under_way(fault: str, tmp_path: Path, without_fault: Any) -> None:
    """One line; the journal is whole; mended and resumed, the run ends as one that had no fault."""
    what, options, status, shown = UNDER_WAY[fault]
    expected = without_fault(*options)
    done = search(tmp_path, "out", what, *options)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("error: ") == 1 and shown in done.stderr.splitlines()[-1], done.stderr
    scored = records(tmp_path / "out")
    assert scored == expected[: len(scored)] and (len(scored) > 0) == ("training" not in what)
    gone = tmp_path / "data" / "images.gone"
    if gone.exists():
        shutil.rmtree(tmp_path / "data" / "images", ignore_errors=True)
        gone.rename(tmp_path / "data" / "images")
    done = search(tmp_path, "out", "", *options)
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "out") == expected and len(expected) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("what", "status"), [("full400", 1), ("kill", -9)])
def test_a_fault_while_a_race_is_under_way(what: str, status: int, tmp_path: Path) -> None:
    """Resumed, the race has the files that it would have had, but for the seconds in the journal."""
    options = ["SEARCH.RACE.CONFIDENCE", 0.6, "SEARCH.EVAL.BATCH_SIZE", 1, "SOLVER.MAX_ITER", 60]
    assert search(tmp_path, "alone", "", *options).returncode == 0
    done = search(tmp_path, "out", f"0 search {what}", *options)
    assert done.returncode == status and "Traceback" not in done.stderr
    if status > 0:
        assert "/stage/matches/0/" in done.stderr.splitlines()[-1]
    assert len(list((tmp_path / "out" / "stage" / "matches").rglob("*.npz"))) == 2
    done = search(tmp_path, "out", "", *options)
    assert done.returncode == 0, done.stderr

    def files(run: str) -> dict[str, bytes]:
        stage = tmp_path / run / "stage"
        paths = [stage / "race.jsonl", *(stage / "matches").rglob("*.npz")]
        return {str(p.relative_to(stage)): p.read_bytes() for p in paths}

    assert files("out") == files("alone")
    assert records(tmp_path / "out") == records(tmp_path / "alone")


@pytest.mark.slow
def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    """Of the second step, when the first one is done."""
    steps = ["SEARCH.PHASES", ("stage", "dilation")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dilation").write_text("a file")
    done = search(tmp_path, "out", "", *steps)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: [Errno ") and f"{tmp_path / 'out' / 'dilation'}" in last
    scored = records(tmp_path / "out")
    assert len(scored) == 4 and (tmp_path / "out" / "dilation").read_text() == "a file"
    (tmp_path / "out" / "dilation").unlink()
    done = search(tmp_path, "out", "", *steps)
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "out") == scored and (tmp_path / "out" / "found.yaml").is_file()
