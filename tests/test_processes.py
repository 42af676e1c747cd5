"""Searches of several real processes: what happens when one of them dies, and on two machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from detectors import command_line, tiny_shapes, tiny_yaml

pytestmark = pytest.mark.slow
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


@contextmanager
def started(
    bench: Path,
    out: Path,
    before: list[str],
    flags: list[str],
    fault: str,
    device: str = "cpu",
    **environ: str,
) -> Iterator[subprocess.Popen[str]]:
    """A search, which is killed when the test ends."""
    pairs = [*tiny_shapes(bench / "data"), "OUTPUT_DIR", str(out)]
    pairs += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1]
    pairs += ["SEARCH.PHASES", ("stage",), "MODEL.DEVICE", device]
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
        with suppress(ProcessLookupError):  # the whole group has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ended(process: subprocess.Popen[str]) -> tuple[str, float]:
    """Its output, and seconds from the fault to its end."""
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
    "--num-gpus": (PLAIN, ["--num-gpus", "2"]),
}
REASON = {
    ("torchrun", "raise"): "LookupError: rank {} has an error of its own",
    ("torchrun", "kill"): "failed (exitcode: -9) local_rank: {} ",
    ("--num-gpus", "raise"): "LookupError: rank {} has an error of its own",
    ("--num-gpus", "kill"): "error: rank {} was killed by SIGKILL",
}


@pytest.mark.parametrize(
    ("launcher", "rank", "moment", "kind"),
    [
        ("torchrun", 0, "training", "raise"),
        ("torchrun", 1, "search", "kill"),
        ("--num-gpus", 1, "training", "kill"),
        ("--num-gpus", 0, "search", "raise"),
    ],
)
def test_a_rank_that_dies_ends_the_run(
    launcher: str, rank: int, moment: str, kind: str, bench: Path, tmp_path: Path
) -> None:
    """Within a minute. Only its own error is shown, and what was scored is in the journal."""
    out = tmp_path / "out"
    with started(bench, out, *LAUNCHERS[launcher], f"{rank} {moment} {kind}") as process:
        text, seconds = ended(process)
    assert seconds < MINUTE and process.returncode not in (0, None)
    assert REASON[launcher, kind].format(rank) in text
    assert text.count("Traceback (most recent") == (kind == "raise") + (launcher == "torchrun"), text
    if kind == "raise":
        log = (out / ("log.txt" if rank == 0 else f"log.txt.rank{rank}")).read_text()
        assert "in fail\n" in log and REASON[launcher, kind].format(rank) in log
    if moment == "search":  # two candidates were scored before the third one
        scored = (out / "stage" / "journal.jsonl").read_text().splitlines()
        assert {json.loads(line)["phase"] for line in scored} == {"stage"}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_computes_alone_is_ended(launcher: str, bench: Path, tmp_path: Path) -> None:
    """Rank 0 is in no operation with rank 1 when that is killed."""
    fault = "0 training sleep,1 training alone"
    asleep = str(tmp_path / "asleep")
    with started(bench, tmp_path / "out", *LAUNCHERS[launcher], fault, ASLEEP=asleep) as process:
        text, seconds = ended(process)
    assert seconds < MINUTE and process.returncode == 1
    assert REASON[launcher, "kill"].format(1) in text


@pytest.mark.parametrize(("kind", "shown"), [("disk", "error: [Errno 5] "), ("files", "OSError: ")])
def test_errors_of_the_disk_are_one_line(kind: str, shown: str, bench: Path, tmp_path: Path) -> None:
    """Their traceback is in log.txt; other errors of the system keep it on the screen, too."""
    out = tmp_path / "out"
    with started(bench, out, *LAUNCHERS["--num-gpus"], f"0 training {kind}") as process:
        text, _ = ended(process)
    (last,) = [line for line in text.splitlines() if "rror: " in line]
    assert process.returncode == 1 and last.startswith(shown) and "'/some/file'" in last
    assert text.count("Traceback") == (kind == "files")
    assert last.endswith("; fix it and continue with --resume") == (kind == "disk")
    log = (out / "log.txt").read_text()
    assert log.count("Traceback") == 1 and "in fail\n" in log and "OSError: [Errno" in log


def test_a_loss_of_one_rank_ends_all(bench: Path, tmp_path: Path) -> None:
    """At the same iteration, before any rank steps."""
    out = tmp_path / "out"
    with started(bench, out, *LAUNCHERS["--num-gpus"], "1 training nan") as process:
        text, seconds = ended(process)
    assert seconds < MINUTE and process.returncode == 1
    (error,) = [line for line in text.splitlines() if "error: " in line]
    assert "error: iteration 2, resnet/" in error
    checkpoint = out / "stage" / "model_0000001.pth"
    assert error.endswith(f": the loss is nan; last checkpoint: {checkpoint}")
    assert "Traceback" not in text and checkpoint.is_file()


def test_a_gpu_that_is_not_there(bench: Path, tmp_path: Path) -> None:
    """One line on the screen and in log.txt, however many ranks and configs there are."""
    out, hidden = tmp_path / "out", {"CUDA_VISIBLE_DEVICES": ""}
    launcher = LAUNCHERS["--num-gpus"]
    with started(bench, out, *launcher, "0 training disk", device="cuda", **hidden) as process:
        text, _ = ended(process)
    line = "MODEL.DEVICE: 'cuda': torch sees no CUDA GPU; running on the CPU"
    assert text.count(f"warning: {line}\n") == text.count("torch sees no") == 1
    assert (out / "log.txt").read_text().count(f" WARNING: {line}\n") == 1
    assert "torch sees no" not in (out / "log.txt.rank1").read_text()


def machines(launcher: str) -> list[tuple[list[str], list[str]]]:
    """The commands of two machines with two processes each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    if launcher == "torchrun":
        node = [*PLAIN, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "2"]
        node += ["--master_addr", "127.0.0.1", "--master_port", port, "--node_rank"]
        return [([*node, str(rank)], []) for rank in (0, 1)]
    flags = ["--num-gpus", "2", "--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{port}"]
    return [(PLAIN, [*flags, "--machine-rank", str(rank)]) for rank in (0, 1)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines(launcher: str, bench: Path, tmp_path: Path) -> None:
    """Four candidates; one process gives them the same scores from the same checkpoint."""
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
