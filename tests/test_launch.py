"""How processes are numbered and find each other, and how a command line is refused."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from detectors import ROOT, tiny_yaml

from crnas_d2 import launch
from crnas_d2.errors import InputError
from crnas_d2.launch import Process, from_environment, from_options
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
BATCH_SCRIPT = {  # the variables of a script of sbatch --nodes 2 --ntasks 4
    **{"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)"},
    **{"SLURM_JOB_NODELIST": "n[07-08]", "SLURM_NODELIST": "n[07-08]"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
}
TASK = {  # rank 3 of srun in that script
    **{**BATCH_SCRIPT, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "2"},
    **{"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
    "SLURM_STEP_NODELIST": "n[07-08]",
}
STEP = {  # srun --nodes 1 --ntasks 2 in that script
    **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"},
    **{"SLURM_STEP_NODELIST": "n08", "SLURM_PROCID": "1"},
}
RANK_3 = Process(3, 4, 1, 2, "tcp://n07:23458")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, None, id="plain"),
        pytest.param(TORCHRUN, Process(3, 4, 1, 2, "env://"), id="torchrun"),
        pytest.param({**TASK, **TORCHRUN}, Process(3, 4, 1, 2, "env://"), id="torchrun inside srun"),
        pytest.param({"RANK": "1", "WORLD_SIZE": "2"}, Process(1, 2, 0, 1, "env://"), id="bare"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "1"}, None, id="container"),
        pytest.param({"WORLD_SIZE": ""}, None, id="empty"),
        pytest.param(
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            Process(0, 1, 0, 1, "env://"),
            id="torchrun of one",
        ),
        pytest.param(TASK, RANK_3, id="srun"),
        pytest.param({**TASK, **STEP}, Process(1, 2, 1, 2, "tcp://n08:23458"), id="smaller step"),
        pytest.param(
            {**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4711"},
            Process(3, 4, 1, 2, "tcp://10.0.0.1:4711"),
            id="srun with an address",
        ),
        pytest.param(BATCH_SCRIPT, None, id="script of sbatch"),
        pytest.param(
            {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None, id="shell of salloc"
        ),
        pytest.param(
            {k: v for k, v in TASK.items() if k != "SLURM_PROCID"}, None, id="no task of the step"
        ),
    ],
)
def test_a_process_of_torchrun_or_srun(environ: dict[str, str], expected: Process | None) -> None:
    assert from_environment(environ) == expected


def test_the_tasks_of_a_job_agree() -> None:
    found = [
        from_environment({**TASK, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2)})
        for rank in range(4)
    ]
    assert [(p.rank, p.local_rank) for p in found if p] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert {(p.world_size, p.local_world_size, p.url) for p in found if p} == {(4, 2, RANK_3.url)}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"SLURM_STEP_TASKS_PER_NODE": "3,1"}, id="unequal"),
        pytest.param({"SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}, id="one too many"),
        pytest.param({"SLURM_PROCID": "2"}, id="cyclic"),
    ],
)
def test_tasks_in_another_order(changed: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"SLURM_STEP_TASKS_PER_NODE: .* --distribution=block"):
        from_environment({**TASK, **changed})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[01-03,7],other", "node01"),
        ("node[7,09-11]", "node7"),
        ("rack[1-2]n[03-04]-ib,x", "rack1n03-ib"),
        ("a-b[2]", "a-b2"),
    ],
)
def test_the_first_host(nodes: str, first: str) -> None:
    process = from_environment({**TASK, "SLURM_STEP_NODELIST": nodes})
    assert process is not None and process.url == f"tcp://{first}:23458"


def options(**changed: Any) -> argparse.Namespace:
    given = {"num_gpus": 2, "num_machines": 3, "machine_rank": 1, "dist_url": "tcp://a:1"}
    return argparse.Namespace(**{**given, **changed})


def test_processes_by_options() -> None:
    url = "tcp://a:1"
    assert from_options(options()) == [Process(2, 6, 0, 2, url), Process(3, 6, 1, 2, url)]
    alone = {"num_machines": 1, "machine_rank": 0}
    for none in (0, None):
        assert from_options(options(num_gpus=none, **alone)) == [Process(0, 1, 0, 1, url)]
    found = {process.url for process in from_options(options(dist_url="auto", **alone))}
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
        from_options(options(**changed))
    assert str(caught.value).startswith(shown)


# ---- the command line ----------------------------------------------------------------------------


def called(monkeypatch: pytest.MonkeyPatch, capsys: Any, *words: str) -> tuple[int, str]:
    """The status and standard error of a script with this command line, which does nothing."""
    monkeypatch.setattr(sys, "argv", ["train_net.py", *words])
    try:
        launch.run(lambda args: None, lambda prepared, args: None, default_argument_parser())
    except SystemExit as left:
        return int(left.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


CONFIG = ["--config-file", "any.yaml"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([*CONFIG, "SEED", "1", "--resume"], "--resume: options stand before KEY VALUE pairs"),
        ([*CONFIG, "SEED", "1", "--num-gpus", "2"], "--num-gpus: options stand before"),
        ([*CONFIG, "SEED", "1", "--num-gpus=2"], "--num-gpus=2: options stand before"),
        ([], "--config-file is needed"),
        (["--num-gpus", "2", "SEED", "1"], "--config-file is needed"),
    ],
)
def test_a_command_line_in_another_order(
    words: list[str], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    status, error = called(monkeypatch, capsys, *words)
    assert status == 2 and error.startswith(f"error: {shown}") and error.count("\n") == 1


@pytest.mark.parametrize("environ", [TORCHRUN, TASK], ids=["torchrun", "srun"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--num-gpus", "1"), ("--num-gpus", "8"), ("--num-machines", "2")),
        *(("--machine-rank", "1"), ("--dist-url", "tcp://a:1")),
    ],
)
def test_options_that_torchrun_and_srun_replace(
    option: str, value: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    joined = []
    monkeypatch.setattr(launch, "_run_in_group", lambda i, those, *_: joined.append(those[i]))
    for name in environ:
        monkeypatch.setenv(name, environ[name])
    assert called(monkeypatch, capsys, *CONFIG) == (0, "")
    assert [process.rank for process in joined] == [3]
    expected = f"error: {option}: {value}: leave it out under torchrun and srun\n"
    assert called(monkeypatch, capsys, *CONFIG, option, value) == (2, expected)


@pytest.mark.parametrize(
    ("device", "processes", "found"),
    [
        ("cuda", 1, []),
        ("cpu", 1, []),
        ("cpu:0", 2, []),
        ("cuda", 2, []),
        ("cuda:1", 1, [torch.device("cuda:1")]),
        ("cuda:2", 1, "allowed are cuda:0 to cuda:1"),
        ("cuda:0", 2, "2 processes take one GPU each; allowed is cuda"),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_a_gpu_by_its_number(
    device: str,
    processes: int,
    found: Any,
    grouped: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It is the current one before anything is looked at; grouped: as under torchrun."""
    events: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", events.append)
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    monkeypatch.setattr(comm, "all_gather", lambda prepared: [prepared])
    monkeypatch.setattr(launch, "join", print)
    monkeypatch.setattr(launch, "leave", print)
    args = default_argument_parser().parse_args(["--dist-url", "auto", "MODEL.DEVICE", device])
    args.config_file = str(tiny_yaml(tmp_path / "any.yaml"))
    parts = (lambda _: events.append("prepared"), lambda *_: None, args)
    run = (launch._run_in_group, 0, [RANK_3]) if grouped else (launch._run_by_options,)
    if isinstance(found, list):
        run[0](*run[1:], *parts)
        assert events == [*found, "prepared"]
        return
    with pytest.raises((InputError, SystemExit)):
        run[0](*run[1:], *parts)
    with pytest.raises(InputError, match=f"^MODEL.DEVICE: {device}: {found}$"):
        launch._use_gpu(device)
    assert not events


def test_a_full_memory_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, launch._exit_on_error():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1
    assert line == "error: the GPU's memory is too small: CUDA out of memory. Tried to allocate 2 GiB."


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("error", [LookupError("a"), InputError("a"), OSError(errno.ENOSPC, "a")])
def test_an_unexpected_error_of_one_of_several_ranks_waits(
    world_size: int, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """So that the launcher can end a rank that only fails because another one died."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)

    with pytest.raises(SystemExit) as left, launch._exit_on_error():
        raise error
    assert left.value.code == (2 if isinstance(error, InputError) else 1)
    unexpected, shown = isinstance(error, LookupError), capsys.readouterr().err
    assert slept == [launch.GRACE] * (world_size - 1 if unexpected else 0)
    assert shown.startswith("Traceback") if unexpected else shown.count("\n") == 1


# ---- what the checks log ----

SCRIPT = """
import logging
from crnas_d2 import launch
from crnas_d2.config import read_config
from crnas_d2.engine.setup import start_run
from crnas_d2.errors import InputError
from detectron2.engine import default_argument_parser

def prepare(args):
    for name in ("crnas_d2.checks", "another.package"):
        logging.getLogger(name).warning("take care")
    cfg = read_config(args.config_file, args.opts)
    if cfg.SEED == 1:
        raise InputError("SEED: 1: bad")
    return cfg

if __name__ == "__main__":
    launch.run(prepare, start_run, default_argument_parser())
"""


@pytest.mark.parametrize(("processes", "seed"), [(1, 0), (2, 0), (1, 1)])
def test_warnings_of_the_checks_are_in_the_log(processes: int, seed: int, tmp_path: Path) -> None:
    """And once on the screen; bad input is one line, and no file is written."""
    (tmp_path / "run.py").write_text(SCRIPT)
    config, out = tiny_yaml(tmp_path / "any.yaml"), tmp_path / "out"
    command = [sys.executable, "-W", "ignore", str(tmp_path / "run.py")]
    command += ["--num-gpus", str(processes), "--config-file", str(config)]
    command += ["OUTPUT_DIR", str(out), "SEED", str(seed)]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.getenv('PYTHONPATH', ROOT)}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 2 * seed, done.stderr
    assert (done.stdout + done.stderr).count("take care") == 2 * (1 - seed)
    if seed:
        assert done.stderr == "error: SEED: 1: bad\n" and not out.exists()
    else:
        log = (out / "log.txt").read_text()
        assert log.count("crnas_d2.checks WARNING: take care\n") == 1
        assert log.count("another.package WARNING: take care\n") == 1


# ---- the group -----------------------------------------------------------------------------------


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def join_and_leave(rank: int, url: str, out: Path) -> None:
    before = threads()
    launch.join(Process(rank, 2, rank, 2, url), "cpu", minutes=1)
    comm.synchronize()
    inside = threads()
    launch.leave()
    (out / str(rank)).write_text(f"{inside > before} {threads() - before}")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are read from /proc")
def test_leaving_the_group_ends_the_threads_of_gloo(tmp_path: Path) -> None:
    """One that is left can need the interpreter while it exits: "terminate called ...", status -6."""
    mp.spawn(join_and_leave, (f"file://{tmp_path}/meet", tmp_path), nprocs=2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["True 0"] * 2


# ---- the time-out --------------------------------------------------------------------------------


def wait_for_rank_1(rank: int, url: str, out: Path) -> None:
    """Rank 0 waits for rank 1, which takes part in nothing, and writes for how many seconds."""
    launch.join(Process(rank, 2, rank, 2, url), "cpu", minutes=0.05)
    if rank == 1:
        time.sleep(40)
        return
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        comm.synchronize()
    out.write_text(str(time.monotonic() - start))
    os._exit(1)  # mp.spawn ends rank 1


def test_a_collective_operation_times_out(tmp_path: Path) -> None:
    out = tmp_path / "seconds"
    with pytest.raises(mp.ProcessExitedException):
        mp.spawn(wait_for_rank_1, (f"file://{tmp_path}/meet", out), nprocs=2)
    assert 2.5 < float(out.read_text()) < 30


def test_the_time_out_is_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Joined(BaseException):
        pass

    def join(process: Process, device: str, minutes: float) -> None:
        raise Joined(process, device, minutes)

    monkeypatch.setattr(launch, "join", join)
    pairs = ["MODEL.DEVICE", "cpu", "DIST_TIMEOUT_MINUTES", "7"]
    args = argparse.Namespace(config_file=str(tiny_yaml(tmp_path / "any.yaml")), opts=pairs)
    with pytest.raises(Joined) as joined:
        launch._run_in_group(0, [RANK_3], print, print, args)
    assert joined.value.args == (RANK_3, "cpu", 7)
