"""A search killed at twenty random moments, and one resumed with other numbers of processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectors import command_line, tiny_shapes
from test_kill import SCRIPT, finish, folder, journal, lines, start, weights  # noqa: F401

pytestmark = pytest.mark.slow
KILLS = 20
STEPS = ("stage", "dilation")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[Path, float, float]:  # noqa: F811
    """The run without a kill; seconds until it began to write, and until it ended."""
    begin = time.monotonic()
    process = start(folder, "undisturbed", resume=False)
    while not (folder / "undisturbed" / "config.yaml").exists():
        assert process.poll() is None, (folder / "undisturbed.out").read_text()
        time.sleep(0.01)
    writing = time.monotonic() - begin
    assert process.wait(timeout=600) == 0, (folder / "undisturbed.out").read_text()
    return folder / "undisturbed", writing, time.monotonic() - begin


def assert_same(run: Path, expected: Path) -> None:
    for step in STEPS:
        assert journal(run, step) == journal(expected, step)
        assert weights(run, step) == weights(expected, step)
    assert (run / "found.yaml").read_bytes() == (expected / "found.yaml").read_bytes()


def whole_records(path: Path) -> list[dict[str, Any]]:
    """The records of a journal whose last line may be cut."""
    records = [json.loads(line) for line in lines(path)]
    for record in records:
        del record["seconds"]
    return records


def test_twenty_kills(folder: Path, undisturbed: tuple[Path, float, float]) -> None:  # noqa: F811
    """Between the first file and the last; every score stays in the journal, in order and once."""
    expected, earliest, latest = undisturbed
    moments = random.Random(20)
    kills, runs, scored = 0, 0, dict.fromkeys(STEPS, 0)
    while kills < KILLS:
        run = folder / f"killed-{runs}"
        process = start(folder, run.name, resume=run.exists())
        try:
            process.wait(timeout=moments.uniform(earliest, latest))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        status = process.wait()
        if status == -signal.SIGKILL:
            kills += 1
            for step in STEPS:
                records = whole_records(run / step / "journal.jsonl")
                assert records == journal(expected, step)[: len(records)]
                assert len(records) >= scored[step]
                scored[step] = len(records)
        else:  # it ended before the kill: the next ones are for another run
            assert status == 0, (folder / f"{run.name}.out").read_text()
            assert_same(run, expected)
            runs, scored = runs + 1, dict.fromkeys(STEPS, 0)
    run = folder / f"killed-{runs}"
    assert_same(finish(folder, run.name, resume=run.exists()), expected)


def dilation_search(folder: Path, name: str, processes: int) -> subprocess.Popen[bytes]:  # noqa: F811
    """A dilation search alone; resumed, if its folder exists."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    options = [*tiny_shapes(folder / "data"), "OUTPUT_DIR", str(folder / name)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(SCRIPT)]
    command += ["--config-file", str(folder / "search.yaml")]
    command += ["--resume"] if (folder / name).exists() else []
    log = open(folder / f"{name}.out", "ab")
    return subprocess.Popen(
        [*command, *command_line([*options, "SEARCH.PHASES", ("dilation",)])],
        env={**os.environ, "COUNT_FILE": str(folder / f"{name}-passes.txt")},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def test_the_number_of_processes_may_change(folder: Path) -> None:  # noqa: F811
    """One, two, one: the scores are those of one process throughout."""
    assert dilation_search(folder, "one", 1).wait(timeout=600) == 0
    expected, run = folder / "one", folder / "changing"
    path = run / "dilation" / "journal.jsonl"
    moments: list[tuple[int, Callable[[], bool]]] = [
        (1, lambda: len(lines(path)) >= 5),
        (2, lambda: len(lines(path)) >= 18),
    ]
    for processes, reached in moments:
        process = dilation_search(folder, "changing", processes)
        while not reached():
            assert process.poll() is None, (folder / "changing.out").read_text()
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        records = whole_records(path)
        assert records == journal(expected, "dilation")[: len(records)]
        assert len(records) < len(journal(expected, "dilation"))
    assert dilation_search(folder, "changing", 1).wait(timeout=600) == 0
    assert journal(run, "dilation") == journal(expected, "dilation")
    assert weights(run, "dilation") == weights(expected, "dilation")
    assert (run / "found.yaml").read_bytes() == (expected / "found.yaml").read_bytes()
