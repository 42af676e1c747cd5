"""A search killed at twenty random moments, and one resumed with other numbers of processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_kill import finish, folder, journal, kill_at, start, weights  # noqa: F401

pytestmark = pytest.mark.slow
KILLS = 20
STEPS = ("stage", "dilation")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[Path, float, float]:  # noqa: F811
    """The run without a kill; seconds until it began to write, and until it ended."""
    begin = time.monotonic()
    process = start(folder, "undisturbed")
    while not (folder / "undisturbed" / "config.yaml").exists():
        assert process.poll() is None, (folder / "undisturbed.out").read_text()
        time.sleep(0.01)
    writing = time.monotonic() - begin
    assert process.wait(timeout=600) == 0, (folder / "undisturbed.out").read_text()
    return folder / "undisturbed", writing, time.monotonic() - begin


def assert_same(run: Path, expected: Path, steps: tuple[str, ...] = STEPS) -> None:
    for step in steps:
        assert journal(run, step) == journal(expected, step)
        assert weights(run, step) == weights(expected, step)
    assert (run / "found.yaml").read_bytes() == (expected / "found.yaml").read_bytes()


def test_twenty_kills(folder: Path, undisturbed: tuple[Path, float, float]) -> None:  # noqa: F811
    """Between the first file and the last; every score stays in the journal, in order and once."""
    expected, earliest, latest = undisturbed
    moments = random.Random(20)
    kills, runs, scored = 0, 0, dict.fromkeys(STEPS, 0)
    while kills < KILLS:
        run = folder / f"killed-{runs}"
        process = start(folder, run.name)
        try:
            process.wait(timeout=moments.uniform(earliest, latest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        if status == -signal.SIGKILL:
            kills += 1
            for step in STEPS:
                records = journal(run, step)
                assert records == journal(expected, step)[: len(records)]
                assert len(records) >= scored[step]
                scored[step] = len(records)
        else:  # it ended before the kill: the next ones are for another run
            assert status == 0, (folder / f"{run.name}.out").read_text()
            assert_same(run, expected)
            runs, scored = runs + 1, dict.fromkeys(STEPS, 0)
    assert_same(finish(folder, f"killed-{runs}"), expected)


def test_the_number_of_processes_may_change(folder: Path) -> None:  # noqa: F811
    """One, two, one: the scores of a dilation search are those of one process throughout."""
    alone = ["SEARCH.PHASES", ("dilation",)]
    expected, run, log = finish(folder, "one", *alone), folder / "changing", folder / "changing.out"
    for processes, least in ((1, 5), (2, 18)):
        process = start(folder, "changing", *alone, processes=processes)
        kill_at(process, lambda: len(journal(run, "dilation")) >= least, log)  # noqa: B023
        records = journal(run, "dilation")
        assert records == journal(expected, "dilation")[: len(records)]
        assert len(records) < len(journal(expected, "dilation"))
    assert_same(finish(folder, "changing", *alone), expected, ("dilation",))
