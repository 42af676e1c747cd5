"""Bad config keys and command lines: one line, status 2, and no file is touched (bench.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import SEARCH, TRAIN, Bench, snapshot
from detectors import ROOT, TINY

from crnas_d2.config import read_config
from crnas_d2.data.datasets import register_coco
from crnas_d2.pipeline.configs import OWN_DATA


def test_the_bench_lets_good_input_start(bench: Bench) -> None:
    """So that what is refused below is refused for the one thing that was changed."""
    assert bench.starts(TRAIN)
    assert bench.starts(TRAIN, "MODEL.CRNAS.SUPERNET", "dilation")
    assert bench.starts(SEARCH)
    assert bench.starts(SEARCH, "SEARCH.PHASES", ("stage", "dilation", "retrain"))


def test_a_snapshot_sees_a_touched_file(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a")
    before = snapshot(tmp_path)
    (tmp_path / "kept").write_text("a")
    assert snapshot(tmp_path) != before


def test_a_wanted_file_is_shown_as_it_was_named(bench: Bench) -> None:
    error = bench.call(TRAIN, "--config-file", "no/such.yaml")
    assert error.startswith("error: --config-file: no/such.yaml: ") and "no such file" in error


# The script, KEY VALUE, and what the line shows; test_config.py has the keys, test_launch.py options.
CONFIGS = {
    "a text for a number": (TRAIN, ["SOLVER.BASE_LR", "fast"], "BASE_LR"),
    "a number for a list": (TRAIN, ["MODEL.CRNAS.WIDTHS", 3], "WIDTHS"),
    "a norm without statistics": (
        SEARCH,
        ["MODEL.CRNAS.NORM", "FrozenBN"],
        "NORM: 'FrozenBN': a ",
    ),
    "a text for a switch": (SEARCH, ["SEARCH.STAGE.ONLY_ELIGIBLE", "yes"], "ONLY_ELIGIBLE"),
    "negative rate": (TRAIN, ["SOLVER.BASE_LR", -1.0], "SOLVER: cannot be used: Invalid learning rate"),
    "negative momentum": (TRAIN, ["SOLVER.MOMENTUM", -1.0], "Invalid momentum value: -1.0"),
    "no iteration": (SEARCH, ["SOLVER.MAX_ITER", 0], "SOLVER.MAX_ITER: 0: at least 1"),
    "a deviation of 0": (TRAIN, ["MODEL.PIXEL_STD", [0.0] * 3], "MODEL.PIXEL_STD: [0.0, 0.0, 0.0]: "),
    "unknown detector": (TRAIN, ["MODEL.META_ARCHITECTURE", "YOLO"], "MODEL.META_ARCHITECTURE: 'YOLO'"),
    "unknown device": (TRAIN, ["MODEL.DEVICE", "gpu"], "MODEL.DEVICE: gpu: cpu or cuda is needed"),
    "unknown heads": (SEARCH, ["MODEL.ROI_HEADS.NAME", "Nope"], "'Nope' found in 'ROI_HEADS'"),
    "unknown schedule": (TRAIN, ["SOLVER.LR_SCHEDULER_NAME", "Nope"], "Unknown LR scheduler: Nope"),
    "unknown warmup": (TRAIN, ["SOLVER.WARMUP_METHOD", "Nope"], "Unknown warmup method: Nope"),
    "unknown color": (TRAIN, ["INPUT.FORMAT", "XYZ"], "INPUT: images cannot be read"),
    "unknown flip": (TRAIN, ["INPUT.RANDOM_FLIP", "Nope"], "INPUT: images cannot be read"),
    "a coin as confidence": (SEARCH, ["SEARCH.RACE.CONFIDENCE", 0.5], "SEARCH.RACE.CONFIDENCE: 0.5: "),
    "no folder": (TRAIN, ["OUTPUT_DIR", ""], "OUTPUT_DIR: '': is not a folder"),
    "batch and passes": (TRAIN, ["SOLVER.ACCUMULATE", 4], "SOLVER.IMS_PER_BATCH: 2: a multiple"),
    "steps backwards": (TRAIN, ["SOLVER.STEPS", [5, 3]], "SOLVER: cannot be used: "),
    "heads and neck": (TRAIN, ["MODEL.ROI_HEADS.IN_FEATURES", ["p9"]], "p9"),
    "anchors and levels": (TRAIN, ["MODEL.RPN.IN_FEATURES", ["p2"]], "anchor generator"),
    "mean and color": (SEARCH, ["MODEL.PIXEL_MEAN", [1.0, 2.0]], "MODEL.META_ARCHITECTURE: "),
}


@pytest.mark.parametrize("id", CONFIGS)
def test_a_fault_is_one_line(bench: Bench, id: str) -> None:
    name, options, shown = CONFIGS[id]
    error = bench.call(name, *options)
    assert shown in error, error


NETWORKS = [  # key, value, what is allowed
    ("MODEL.CRNAS.STAGE_CODE", [1, 2, 1], "4 integers of at least 1"),
    ("MODEL.CRNAS.STAGE_CODE", [1, 0, 1, 1], "at least 1"),
    ("MODEL.CRNAS.STAGE_CODE", "many", "list"),
    ("MODEL.CRNAS.DILATION_CODE", [0, 1], "[1, 2, 1, 1] takes 5"),
    ("MODEL.CRNAS.DILATION_CODE", [0, 0, 0, 0, 0, 0], "takes 5"),
    ("MODEL.CRNAS.DILATION_CODE", [0, 1, 2, 3, 0], "each 0, 1 or 2"),
    ("MODEL.CRNAS.DILATION_CODE", [0, 1, -1, 0, 0], "each 0, 1 or 2"),
    ("MODEL.CRNAS.FAMILY", "vgg", "'resnet_basic', 'resnet'"),
    ("MODEL.CRNAS.WIDTHS", [4, 8, 12], "4 positive"),
    ("MODEL.CRNAS.STAGE_SPACE", [[1], [1], [0], [1]], "positive depths"),
    (
        "MODEL.CRNAS.STAGE_KODE",
        [1],
        "MODEL.CRNAS.STAGE_KODE: [1]: no such key; did you mean MODEL.CRNAS.STAGE_CODE?",
    ),
    ("MODEL.BACKBONE.NAME", "build_vgg", "build_crnas_fpn_backbone"),
    ("MODEL.WEIGHTS", "no/such.pth", "no such file"),
    ("SOLVER.IMS_PER_BATCH", 0, "a multiple of 1"),
    ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "TrainingSampler"),
]


@pytest.mark.parametrize("name", [TRAIN, SEARCH])
@pytest.mark.parametrize(("key", "value", "allowed"), NETWORKS, ids=str)
def test_a_network_that_is_none(bench: Bench, name: str, key: str, value: Any, allowed: str) -> None:
    error = bench.call(name, key, value)
    assert all(part in error for part in (key, str(value), allowed)), error


def test_an_unknown_key_in_the_config_file(bench: Bench) -> None:
    bench.base().write_text("MODEL: {CRNAS: {STAGE_KODE: [1]}}\n")
    error = bench.call(SEARCH)
    assert "base.yaml" in error and "MODEL.CRNAS.STAGE_KODE" in error


@pytest.mark.parametrize("text", ["MODEL: [\n  a: {", "_BASE_: no/such.yaml\n", "just text\n"])
def test_a_config_file_that_is_none(bench: Bench, text: str) -> None:
    bench.base().write_text(text)
    error = bench.call(TRAIN)
    assert error.startswith(f"error: --config-file: {bench.base()}: ") and len(error) > 40
    assert "_BASE_" not in text or "no/such.yaml" in error


FIVE_MACS = {"macs": [5, 0.01]}
ANY_MACS = {"macs": [5e6, 0.999]}  # of the tiny detector's backbone
SEARCHES = [
    (["SEARCH.BUDGETS", (9,)], ["SEARCH.BUDGETS", "9", "blocks from 4 to 8", "nearest: 6, 7, 8"]),
    (["SEARCH.BUDGETS", (5, 3)], ["SEARCH.BUDGETS", "3", "nearest: 4, 5, 6"]),
    (["SEARCH.BUDGETS", (9,), "SEARCH.STAGE.ONLY_ELIGIBLE", True], ["SEARCH.BUDGETS", "9", "4 to 8"]),
    (["SEARCH.BUDGETS", ("five",)], ["SEARCH.BUDGETS", "'five'", "a number"]),
    (["SEARCH.BUDGETS", ()], ["SEARCH.BUDGETS", "()", "numbers"]),
    (["SEARCH.BUDGETS", ({"macs": 5},)], ["SEARCH.BUDGETS: {'macs': 5}: macs: a tolerance", "0.02]"]),
    (["SEARCH.BUDGETS", (5, {"blocks": 5})], ["SEARCH.BUDGETS", "(5, {'blocks': 5})", "different"]),
    (["SEARCH.BUDGETS", (FIVE_MACS, {"macs": [5, 0.3]})], ["SEARCH.BUDGETS", "different values"]),
    (["SEARCH.BUDGETS", (FIVE_MACS,)], ["SEARCH.BUDGETS: macs 5 +-1%: none of 16 codes", "nearest"]),
    (["SEARCH.BUDGETS", (5, {"latency": [1, 0.1], "blocks": 9})], ["SEARCH.BUDGETS: 9: none", "6, 7"]),
    (
        ["SEARCH.BUDGETS", (FIVE_MACS,), "SEARCH.STAGE.METHOD", "random"],
        ["SEARCH.BUDGETS: macs 5 +-1%: none of 16 codes"],
    ),
    (
        ["SEARCH.BUDGETS", (ANY_MACS,), "SEARCH.STAGE.ONLY_ELIGIBLE", True],
        ["SEARCH.BUDGETS: macs 5e6 +-99.9%: ", "SEARCH.STAGE.ONLY_ELIGIBLE", "blocks only"],
    ),
    (
        ["SEARCH.BUDGETS", (ANY_MACS,), "SEARCH.STAGE.SAMPLING", "eligible"],
        ["SEARCH.BUDGETS: macs 5e6 +-99.9%: ", "SAMPLING 'eligible'", "blocks only"],
    ),
    (["SEARCH.PHASES", ("stage", "tea")], ["SEARCH.PHASES", "'tea'", "'dilation'"]),
    (["SEARCH.ARCHVAL.SIZE", 12], ["SEARCH.ARCHVAL.SIZE", "12", "1 to 11", "12 training images"]),
    (["SEARCH.ARCHVAL.SIZE", 500], ["SEARCH.ARCHVAL.SIZE", "500", "1 to 11"]),
    (["SEARCH.ARCHVAL.SIZE", -1], ["SEARCH.ARCHVAL.SIZE", "-1", "1 to 11"]),
    (["SEARCH.ARCHVAL.SPLIT_FIELD", "slide"], ["SPLIT_FIELD: 'slide'", "file_name, height, id"]),
    (["SEARCH.EVAL.METRIC", "APl"], ["SEARCH.EVAL.METRIC", "bbox APl", "no object that counts"]),
    (["SEARCH.EVAL.TASK", "segm"], ["SEARCH.EVAL.TASK", "'segm'", "MASK_ON", "bbox"]),
    (["SEARCH.FINALISTS.TRY_LONGER", True], ["SEARCH.FINALISTS.TRY_LONGER", "NUM is 0"]),
    (
        ["SEARCH.DILATION.EVIDENCE", True, "SEARCH.DILATION.METHOD", "random"],
        ["SEARCH.DILATION.EVIDENCE", "'greedy' only", "'random'"],
    ),
    (["SEARCH.JOINT", True], ["SEARCH.JOINT", "MODEL.CRNAS.SHARED is False"]),
    (["SEARCH.PHASES", ("stage", "test")], ["SEARCH.PHASES", "'test'", "SEARCH.JOINT"]),
    (["SEARCH.FOUND_BASE", ("no/such.yaml",)], ["SEARCH.FOUND_BASE", "no/such.yaml", "no such"]),
    (["MODEL.CRNAS.SUPERNET", "stage"], ["MODEL.CRNAS.SUPERNET", "'stage'", "leave it empty"]),
    (["MODEL.BACKBONE.FREEZE_AT", 2], ["MODEL.BACKBONE.FREEZE_AT", "2", "allowed is 0"]),
    (["TEST.PRECISE_BN.ENABLED", True], ["TEST.PRECISE_BN.ENABLED", "True", "False"]),
    (
        ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"],
        ["MODEL.BACKBONE.NAME", "'build_resnet_fpn_backbone'", "build_crnas_fpn_backbone"],
    ),
]


@pytest.mark.parametrize(("options", "shown"), SEARCHES, ids=str)
def test_a_search_that_cannot_be(bench: Bench, options: list[Any], shown: list[str]) -> None:
    error = bench.call(SEARCH, *options)
    assert all(part in error for part in shown), error


@pytest.mark.parametrize(
    "options",
    [
        ["SEARCH.BUDGETS", (5, ANY_MACS, {"blocks": 5, **ANY_MACS}, {"latency": [1e-9, 0.01]})],
        ["SEARCH.BUDGETS", (ANY_MACS,), "SEARCH.STAGE.METHOD", "evolution"],
        ["SEARCH.BUDGETS", (9, FIVE_MACS), "SEARCH.PHASES", ("dilation",)],
        ["SEARCH.BUDGETS", ({"blocks": [5, 0.2]},), "SEARCH.STAGE.ONLY_ELIGIBLE", True],
    ],
    ids=str,
)
def test_budgets_that_can_be(bench: Bench, options: list[Any]) -> None:
    """Whether latency can be met is known when it was measured, after the checks."""
    assert bench.starts(SEARCH, *options)


def test_a_found_base_that_is_not_ours(bench: Bench) -> None:
    other = bench.folder / "other.yaml"
    other.write_text("MODEL: {BACKBONE: {NAME: build_resnet_backbone}}\n")
    error = bench.call(SEARCH, "SEARCH.FOUND_BASE", (str(other),))
    assert "SEARCH.FOUND_BASE" in error and "build_resnet_backbone" in error


@pytest.mark.parametrize(
    "keys", [["SEARCH.PHASES", ("stage", "retrain")], ["SEARCH.FINALISTS.NUM", 2]], ids=str
)
def test_networks_alone_start_without_weights(bench: Bench, keys: list[Any]) -> None:
    path = bench.folder / "with_weights.yaml"
    path.write_text(f"_BASE_: {bench.base()}\nMODEL: {{WEIGHTS: r50.pth}}\n")
    error = bench.call(SEARCH, "SEARCH.FOUND_BASE", (str(path),), *keys)
    assert f"MODEL.WEIGHTS: r50.pth: in SEARCH.FOUND_BASE: {path}: networks trained alone" in error


@pytest.mark.parametrize("side", ["TRAIN", "TEST"])
def test_networks_alone_have_the_data_of_the_search(bench: Bench, side: str) -> None:
    """Else the table would be of other pictures; a search alone needs no test set."""
    names = [f"{i} for {bench.folder}" for i in range(2)]
    for name in names:
        register_coco(name, str(bench.shapes / "train.json"), str(bench.shapes / "images"))
    none = [part for key in OWN_DATA for part in (f"DATASETS.{key}", "")]
    sets = {"DATASETS.TRAIN": (names[0],), "DATASETS.TEST": (names[0],)}
    sets |= {"MODEL.ROI_HEADS.NUM_CLASSES": 3}
    options = [*none, *(part for pair in sets.items() for part in pair)]
    options += ["SEARCH.PHASES", ("stage", "retrain"), "SEARCH.FOUND_BASE"]
    path = bench.folder / "with_data.yaml"
    for of in (names[0], names[1]):
        keys = {**sets, f"DATASETS.{side}": (of,)}
        path.write_text(read_config("", [*TINY, *(p for pair in keys.items() for p in pair)]).dump())
        if of == names[0]:
            assert bench.starts(SEARCH, *options, (str(path),))
            assert side == "TRAIN" or bench.starts(SEARCH, *options, (str(path),), "DATASETS.TEST", ())
    error = bench.call(SEARCH, *options, (str(path),))
    shown = f"DATASETS.{side}: {(names[0],)}: SEARCH.FOUND_BASE: {path} has {(names[1],)}"
    assert error == f"error: {shown}; the same are needed\n"


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_a_supernet_that_cannot_be_trained(bench: Bench, kind: str) -> None:
    def call(*options: Any) -> str:
        return bench.call(TRAIN, *options, "MODEL.CRNAS.SUPERNET", kind)

    assert "MODEL.BACKBONE.FREEZE_AT: 2" in call("MODEL.BACKBONE.FREEZE_AT", 2)
    assert "TEST.PRECISE_BN.ENABLED: True" in call("TEST.PRECISE_BN.ENABLED", True)
    assert "MODEL.BACKBONE.NAME" in call("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    assert "--eval-only" in call("--eval-only")


def test_a_found_base_of_another_family(bench: Bench) -> None:
    path = bench.folder / "basic.yaml"
    path.write_text(read_config("", [*TINY, "MODEL.CRNAS.FAMILY", "resnet_basic"]).dump())
    error = bench.call(SEARCH, "SEARCH.FOUND_BASE", (str(path),))
    assert "has MODEL.CRNAS.FAMILY 'resnet_basic'" in error and "'resnet' is needed" in error


@pytest.mark.parametrize(
    "options",
    [
        ["MODEL.CRNAS.NORM", "GN"],
        ["MODEL.FPN.IN_FEATURES", ["res9"]],
        ["MODEL.FPN.IN_FEATURES", []],
        ["MODEL.CRNAS.WIDTHS", [0, 6, 8, 12]],
        ["MODEL.CRNAS.STAGE_SPACE", [1, 2, 3, 4]],
    ],
    ids=str,
)
def test_a_backbone_that_cannot_be_built(bench: Bench, options: list[Any]) -> None:
    assert bench.call(TRAIN, *options).startswith("error: MODEL.")


@pytest.mark.parametrize("name", [TRAIN, SEARCH])
def test_gpus_that_are_not_there(bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    error = bench.call(name, "--num-gpus", 2, "MODEL.DEVICE", "cuda")
    assert error == "error: --num-gpus: 2: there are 1; allowed are 1 to 1\n"


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        (TRAIN, ["MODEL.CRNAS.DILATION_CODE", [0, 1, 2, 3, 0]], "MODEL.CRNAS.DILATION_CODE: "),
        (SEARCH, ["SEARCH.BUDGETS", (9,)], "SEARCH.BUDGETS: 9: "),
    ],
)
def test_as_a_person_starts_it(bench: Bench, name: str, options: list[Any], shown: str) -> None:
    before = snapshot(bench.folder)
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *bench.arguments(options)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {shown}")
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert snapshot(bench.folder) == before
