"""Faults in real processes, and while a run is under way: one line on standard error; what was done
stays, and --resume continues when the fault is fixed.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import SEARCH, TRAIN, Bench, snapshot
from detectors import ROOT, command_line, tiny_shapes, tiny_yaml
from test_bad_data import JSONS
from test_bad_keys import CONFIGS
from test_bad_runs import FILES


def start(folder: Path, script: str, *options: Any, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(ROOT / script), *command_line([*options])]
    environ = {**os.environ, **environ}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environ)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["steps backwards", "a box of NaN", "weights that run code", "journal, twice"]
)
def test_a_fault_in_a_real_process(bench: Bench, fault: str) -> None:
    if fault in CONFIGS:
        name, options, shown = CONFIGS[fault]
    elif fault in JSONS:
        name, (change, shown) = SEARCH, JSONS[fault]
        options = ["DATASETS.TRAIN_JSON", bench.json(change)]
    else:
        name, make, shown = FILES[fault]
        options = make(bench)
    before = snapshot(bench.folder)
    done = start(bench.folder, name, *bench.arguments(options))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("error: ") == 1 and shown in done.stderr.splitlines()[-1]
    assert snapshot(bench.folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_in_archtrain(bench: Bench, workers: int) -> None:
    """Its header is sound, so it shows when it is read; the line names it and the way on (case 05)."""
    images = bench.folder / "data" / "images"
    shutil.copytree(bench.shapes / "images", images)
    path = images / "train_00003.jpg"
    os.truncate(path, path.stat().st_size // 2)
    options = ["DATASETS.TRAIN_IMAGES", str(images), "DATALOADER.NUM_WORKERS", workers]
    done = start(bench.folder, TRAIN, *bench.arguments([*options, "SOLVER.MAX_ITER", 20]))
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {path}: cannot be read as an image: ") and "truncated" in last
    assert last.endswith("; replace it, and --resume continues the training")


# ---- while a run is under way --------------------------------------------------------------------

GONE = "cannot be read as an image: No such file"
WORKERS = ["DATALOADER.NUM_WORKERS", 2, "SOLVER.MAX_ITER", 20]
# What happens (faulty_search.py), options of both runs, the status, and what the line shows.
UNDER_WAY = {
    "full disk, checkpoint": ("0 training full100000", [], 1, "/model_0000003.pth'; fix it and"),
    "full disk, matches": ("0 search full400", [], 1, ".npz'; fix it and"),
    "full disk, journal": ("0 matched full400", [], 1, "stage/journal.jsonl'; fix it and"),
    "pictures gone, training": ("0 training gone", [], 2, GONE),
    "pictures gone, workers": ("0 training gone", WORKERS, 2, GONE),
    "pictures gone, search": ("0 search gone", ["SEARCH.EVAL.CACHE_GB", 0.0], 2, GONE),
}


def search(folder: Path, out: str, fault: str, *options: Any) -> subprocess.CompletedProcess[str]:
    """A stage search in ``out``."""
    pairs = [*tiny_shapes(folder / "data"), "OUTPUT_DIR", str(folder / out)]
    flags = ["--config-file", str(tiny_yaml(folder / "search.yaml"))]
    flags += ["--resume"] if (folder / out).exists() else []
    environ = {"FAULT": fault, "IMAGES": str(folder / "data" / "images")}
    words = [*flags, *pairs, "SEARCH.PHASES", ("stage",), *options]
    return start(ROOT, "tests/faulty_search.py", *words, **environ)


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
    """One line; the journal is whole; fixed and resumed, the run ends as one that had no fault."""
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
