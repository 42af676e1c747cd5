"""A search killed with SIGKILL and resumed is the search that was left alone, to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import command_line, tiny_shapes, tiny_yaml

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("counted_search.py")
CODES, DIGITS = 4, 3 + 9 * 4  # codes with 5 blocks in a space of depths 1, 2; greedy steps
PASSES = 2  # a candidate's forward passes over archval: 4 images in batches of 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and a config file for all runs."""
    folder = tmp_path_factory.mktemp("kill")
    tiny_shapes(folder / "data")
    tiny_yaml(folder / "search.yaml")
    return folder


def start(folder: Path, name: str, *options: Any, processes: int = 1) -> subprocess.Popen[bytes]:
    """A search in a process group of its own; resumed, if its folder exists."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    pairs = [*tiny_shapes(folder / "data"), "OUTPUT_DIR", str(folder / name), *options]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(SCRIPT)]
    command += ["--config-file", str(folder / "search.yaml")]
    command += ["--resume"] if (folder / name).exists() else []
    environ = {**os.environ, "COUNT_FILE": str(folder / f"{name}-passes.txt")}
    with open(folder / f"{name}.out", "ab") as log:
        output = {"stdout": log, "stderr": log, "start_new_session": True}
        return subprocess.Popen([*command, *command_line(pairs)], env=environ, **output)


def finish(folder: Path, name: str, *options: Any) -> Path:
    assert start(folder, name, *options).wait(timeout=600) == 0, (folder / f"{name}.out").read_text()
    return folder / name


def kill_at(process: subprocess.Popen[bytes], moment: Callable[[], bool], log: Path) -> None:
    """Kill the processes of a search as soon as a moment has come."""
    while not moment():
        assert process.poll() is None, log.read_text()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The run without a kill."""
    return finish(folder, "alone")


def lines(path: Path) -> list[str]:
    """The complete lines; a kill may have cut the last one."""
    return path.read_text().split("\n")[:-1] if path.is_file() else []


def journal(run: Path, step: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in lines(run / step / "journal.jsonl")]
    for record in records:
        assert record.pop("seconds") >= 0
    return records


def weights(run: Path, step: str) -> dict[str, bytes]:
    state = torch.load(run / step / "model_final.pth", weights_only=True)["model"]
    return {key: value.numpy().tobytes() for key, value in state.items()}


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "stage supernet": lambda run: (run / "stage" / "last_checkpoint").is_file(),
    "stage search": lambda run: len(lines(run / "stage" / "journal.jsonl")) >= 2,
    "dilation supernet": lambda run: (run / "dilation" / "last_checkpoint").is_file(),
    "dilation search": lambda run: len(lines(run / "dilation" / "journal.jsonl")) >= 11,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_search_loses_nothing(moment: str, folder: Path, alone: Path) -> None:
    name = moment.replace(" ", "-")
    run, passes = folder / name, folder / f"{name}-passes.txt"
    kill_at(start(folder, name), lambda: MOMENTS[moment](run), folder / f"{name}.out")
    assert not (run / "found.yaml").exists()
    scored = len(list(run.glob("*/matches/0/*.npz")))
    passes.unlink(missing_ok=True)

    finish(folder, name)
    for step, count in (("stage", CODES), ("dilation", DIGITS)):
        assert journal(run, step) == journal(alone, step)
        assert len(journal(run, step)) == count
        assert weights(run, step) == weights(alone, step)
    assert (run / "found.yaml").read_bytes() == (alone / "found.yaml").read_bytes()
    # What was detected before the kill was not detected again, journalled or not.
    assert len(lines(passes)) == (CODES + DIGITS - scored) * PASSES


def test_a_complete_search_has_nothing_to_do(folder: Path, alone: Path) -> None:
    """Resumed, it neither trains nor scores, and leaves found.yaml as it is."""
    passes = folder / "alone-passes.txt"
    assert len(lines(passes)) == (CODES + DIGITS) * PASSES
    before = (alone / "found.yaml").read_bytes(), (alone / "stage" / "model_final.pth").stat()
    passes.unlink()
    finish(folder, "alone")
    assert not lines(passes)
    after = (alone / "found.yaml").read_bytes(), (alone / "stage" / "model_final.pth").stat()
    assert after[0] == before[0] and after[1].st_mtime_ns == before[1].st_mtime_ns
