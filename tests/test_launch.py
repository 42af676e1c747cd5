"""How processes find each other, and what happens when one of them dies."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from detectors import command_line, tiny_shapes, tiny_yaml

from crnas_d2.errors import InputError
from crnas_d2.ranks import Place, first_host, given_place, local_places

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
BATCH_SCRIPT = {  # the variables of a script of sbatch --nodes 2 --ntasks 4
    **{"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)"},
    **{"SLURM_JOB_NODELIST": "n[07-08]", "SLURM_NODELIST": "n[07-08]"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
}
TASK = {**BATCH_SCRIPT, "SLURM_STEP_ID": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
STEP = {  # srun --nodes 1 --ntasks 2 inside that job
    **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"},
    **{"SLURM_STEP_NODELIST": "n08", "SLURM_PROCID": "1"},
}
THIRD = Place(3, 4, 1, 2, "tcp://n07:23458")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, None, id="plain"),
        pytest.param(TORCHRUN, Place(3, 4, 1, 2, "env://"), id="torchrun"),
        pytest.param({**TASK, **TORCHRUN}, Place(3, 4, 1, 2, "env://"), id="torchrun inside srun"),
        pytest.param({"RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2, 0, 1, "env://"), id="bare"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "1"}, None, id="container"),
        pytest.param({"WORLD_SIZE": ""}, None, id="empty"),
        pytest.param(
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            Place(0, 1, 0, 1, "env://"),
            id="torchrun of one",
        ),
        pytest.param(TASK, THIRD, id="srun"),
        pytest.param({**TASK, **STEP}, Place(1, 2, 1, 2, "tcp://n08:23458"), id="step of a job"),
        pytest.param(
            {**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4711"},
            Place(3, 4, 1, 2, "tcp://10.0.0.1:4711"),
            id="srun with an address",
        ),
        pytest.param(BATCH_SCRIPT, None, id="script of sbatch"),
        pytest.param({**TASK, "SLURM_NTASKS": "1"}, None, id="one task"),
        pytest.param(
            {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None, id="shell of salloc"
        ),
        pytest.param(
            {k: v for k, v in TASK.items() if k != "SLURM_PROCID"}, None, id="no task of the step"
        ),
    ],
)
def test_a_given_place(environ: dict[str, str], expected: Place | None) -> None:
    assert given_place(environ) == expected


def test_every_task_of_a_job_has_a_place_of_its_own() -> None:
    places = [
        given_place({**TASK, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2)})
        for rank in range(4)
    ]
    assert [(p.rank, p.local_rank) for p in places if p] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert {(p.world, p.local_world, p.url) for p in places if p} == {(4, 2, "tcp://n07:23458")}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"SLURM_TASKS_PER_NODE": "3,1"}, id="unequal"),
        pytest.param({"SLURM_NTASKS": "5"}, id="one too many"),
        pytest.param({"SLURM_PROCID": "2"}, id="dealt in turns"),
    ],
)
def test_tasks_that_are_dealt_otherwise(changed: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"SLURM_TASKS_PER_NODE: .* --distribution=block"):
        given_place({**TASK, **changed})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[01-03,7],other", "node01"),
        ("node[7,09-11]", "node7"),
        ("rack[1-2]n[03-04]-ib,x", "rack1n03-ib"),
        ("a-b[2]", "a-b2"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def options(**changed: Any) -> argparse.Namespace:
    given = {"num_gpus": 2, "num_machines": 3, "machine_rank": 1, "dist_url": "tcp://a:1"}
    return argparse.Namespace(**{**given, **changed})


def test_places_by_options() -> None:
    url = "tcp://a:1"
    assert local_places(options()) == [Place(2, 6, 0, 2, url), Place(3, 6, 1, 2, url)]
    alone = {"num_machines": 1, "machine_rank": 0}
    assert local_places(options(num_gpus=0, **alone)) == [Place(0, 1, 0, 1, url)]
    found = {place.url for place in local_places(options(dist_url="auto", **alone))}
    assert len(found) == 1 and found.pop().startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"num_gpus": -1}, "--num-gpus: -1: "),
        ({"num_machines": 0}, "--num-machines: 0: "),
        ({"machine_rank": 3}, "--machine-rank: 3: allowed are 0 to 2"),
        ({"machine_rank": -1}, "--machine-rank: -1: "),
        ({"dist_url": "auto"}, "--dist-url: auto: "),
        ({"dist_url": "10.0.0.1:80"}, "--dist-url: 10.0.0.1:80: tcp://HOST:PORT is needed"),
    ],
)
def test_options_that_make_no_sense(changed: dict[str, Any], shown: str) -> None:
    with pytest.raises(InputError) as caught:
        local_places(options(**changed))
    assert str(caught.value).startswith(shown)


# ---- real processes ------------------------------------------------------------------------------

SCRIPT = Path(__file__).with_name("faulty_search.py")
MINUTE = 60.0
PLAIN = [sys.executable, "-W", "ignore"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and a config file for all runs."""
    folder = tmp_path_factory.mktemp("launch")
    tiny_shapes(folder / "data")
    tiny_yaml(folder / "search.yaml")
    return folder


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@contextmanager
def started(
    bench: Path, out: Path, before: list[str], flags: list[str], fault: str, **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """A search, which dies with the test at the latest."""
    pairs = [*tiny_shapes(bench / "data"), "OUTPUT_DIR", str(out)]
    pairs += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1]
    pairs += ["SEARCH.PHASES", ("stage",)]
    process = subprocess.Popen(
        [*before, str(SCRIPT), "--config-file", str(bench / "search.yaml"), *flags]
        + command_line(pairs),
        env={**os.environ, "FAULT": fault, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def ended(process: subprocess.Popen[str]) -> tuple[str, float]:
    """Its output, and seconds from its third iteration or candidate, where faults are."""
    text, at_fault = "", None
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if "fault " in line and at_fault is None:
            at_fault = time.monotonic()
    process.wait(timeout=MINUTE)
    assert at_fault is not None, text
    return text, time.monotonic() - at_fault


LAUNCHERS = {
    "torchrun": ([*PLAIN, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], []),
    "--num-gpus": (PLAIN, ["--num-gpus", "2", "--dist-url", "auto"]),
}
OWN_ERROR = {"raise": "LookupError: rank {} has an error of its own", "kill": "SIGKILL"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "rank", "place", "kind"),
    [
        ("torchrun", 0, "training", "raise"),
        ("torchrun", 1, "search", "kill"),
        ("--num-gpus", 1, "training", "kill"),
        ("--num-gpus", 0, "search", "raise"),
    ],
)
def test_one_that_dies_takes_the_run_down(
    launcher: str, rank: int, place: str, kind: str, bench: Path, tmp_path: Path
) -> None:
    """Within a minute; its own error is the first, and what was scored is in the journal."""
    out = tmp_path / "out"
    with started(bench, out, *LAUNCHERS[launcher], f"{rank} {place} {kind}") as process:
        text, seconds = ended(process)
    assert seconds < MINUTE
    assert process.returncode not in (0, None)
    assert OWN_ERROR[kind].format(rank) in text
    errors = [line for line in text.splitlines() if "Error: " in line or "error: " in line]
    first = OWN_ERROR[kind].format(rank) if kind == "raise" else f"error: process {rank} has died"
    assert first in errors[0], text
    if place == "search":  # the first group was done before the third one began
        scored = (out / "stage" / "journal.jsonl").read_text().splitlines()
        assert {json.loads(line)["phase"] for line in scored} == {"stage"}


@pytest.mark.slow
def test_nobody_waits_for_one_that_computes_alone(bench: Path, tmp_path: Path) -> None:
    """As tasks of srun, which looks after nobody: rank 0 is in no operation with the others."""
    task = {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2", "SLURM_STEP_ID": "0"}
    task |= {"SLURM_JOB_ID": str(os.getpid()), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    task["ASLEEP"] = str(tmp_path / "asleep")
    fault = "0 training sleep,1 training alone"
    first = {**task, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    second = {**task, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    out = tmp_path / "out"
    with started(bench, out, PLAIN, [], fault, **first) as zero:
        with started(bench, out, PLAIN, [], fault, **second) as one:
            text, seconds = ended(zero)
            assert one.wait(timeout=MINUTE) == -signal.SIGKILL
    assert seconds < MINUTE and zero.returncode == 1
    assert "error: process 1 has died" in text


@pytest.mark.slow
def test_a_loss_that_one_process_has_ends_all(bench: Path, tmp_path: Path) -> None:
    """At the same iteration, before anybody steps."""
    out = tmp_path / "out"
    with started(bench, out, *LAUNCHERS["--num-gpus"], "1 training nan") as process:
        text, seconds = ended(process)
    assert seconds < MINUTE and process.returncode == 1
    errors = [line for line in text.splitlines() if "error: " in line]
    assert "error: iteration 2, resnet/" in errors[0]
    checkpoint = out / "stage" / "model_0000001.pth"
    assert errors[0].endswith(f": the loss is nan; last checkpoint: {checkpoint}")
    assert "Traceback" not in text and checkpoint.is_file()


def machines(launcher: str) -> list[tuple[list[str], list[str]]]:
    """The two launches of two machines with two processes each."""
    port = free_port()
    if launcher == "torchrun":
        node = [*PLAIN, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "2"]
        node += ["--master_addr", "127.0.0.1", "--master_port", port, "--node_rank"]
        return [([*node, str(rank)], []) for rank in (0, 1)]
    flags = ["--num-gpus", "2", "--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{port}"]
    return [(PLAIN, [*flags, "--machine-rank", str(rank)]) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines(launcher: str, bench: Path, tmp_path: Path) -> None:
    """Three iterations and four candidates; one process scores them the same from the checkpoint."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    first, second = machines(launcher)
    with started(bench, out, *first, "") as one, started(bench, out, *second, "") as two:
        text = one.communicate(timeout=5 * MINUTE)[0]
        assert two.wait(timeout=MINUTE) == 0 == one.returncode, text
    assert "4 processes on cpu" in text
    shutil.copytree(out, alone)
    (alone / "stage" / "journal.jsonl").unlink()
    with started(bench, alone, PLAIN, ["--resume"], "") as process:
        text = process.communicate(timeout=5 * MINUTE)[0]
    assert process.returncode == 0, text
    scores = [
        [
            (record["architecture"], record["score"])
            for record in map(json.loads, (run / "stage" / "journal.jsonl").read_text().splitlines())
        ]
        for run in (out, alone)
    ]
    assert len(scores[0]) == 4 and scores[0] == scores[1]
    assert max(score for _, score in scores[0]) > 0
