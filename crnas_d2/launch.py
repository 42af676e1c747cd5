"""The processes of a script, from its command line to its exit status: torchrun's (RANK, WORLD_SIZE,
LOCAL_RANK ...), srun's (SLURM_PROCID, SLURM_STEP_* ...; MASTER_ADDR and MASTER_PORT, if set), or those
started here by --num-gpus, --num-machines, --machine-rank and --dist-url.

When a process dies, mp.spawn or torchrun ends the others on its machine; those on other machines end
when a collective operation fails, after DIST_TIMEOUT_MINUTES at the latest.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from crnas_d2 import compat
from crnas_d2.config import read_config
from crnas_d2.errors import InputError, MemoryIsFull
from crnas_d2.files import EARLY, write_to_log
from detectron2.utils import comm

Prepare = Callable[[argparse.Namespace], Any]
Work = Callable[[Any, argparse.Namespace], object]
# A disk that is full, broken, read-only or gone, and a path that cannot be written.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)
# Seconds before a rank prints an error that another rank may have caused or may print, too: by then the
# launcher has ended this rank, and one error stands alone. torchrun looks every 0.1 s, once every 5 s.
GRACE = 6
EPILOG = "\n--num-gpus: processes on this machine, also on the CPU; left out under torchrun and srun\n"


class Process(NamedTuple):
    """One of ``world_size`` processes; ranks are consecutive on each machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int  # processes on its machine
    url: str  # init_method of torch.distributed


def from_environment(environ: Mapping[str, str]) -> Process | None:
    """This process, if torchrun or srun started it. Raises InputError: tasks that are not in blocks."""
    world_size = int(environ.get("WORLD_SIZE") or 1)
    # Some clusters set RANK 0 and WORLD_SIZE 1 in every container.
    if "RANK" in environ and (world_size > 1 or "LOCAL_RANK" in environ):
        local = int(environ.get("LOCAL_RANK", "0")), int(environ.get("LOCAL_WORLD_SIZE", "1"))
        return Process(int(environ["RANK"]), world_size, *local, "env://")
    # Only srun sets the variables of a step; sbatch's script and a shell in a job have the job's.
    world_size = int(environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if world_size == 1 or "SLURM_PROCID" not in environ:
        return None
    rank, local_rank = int(environ["SLURM_PROCID"]), int(environ["SLURM_LOCALID"])
    tasks = environ["SLURM_STEP_TASKS_PER_NODE"]  # "4" or "2(x3)"; "2(x2),1" where machines differ
    local_world_size = int(re.split(r"[(,]", tasks)[0])
    if "," in tasks or rank % local_world_size != local_rank:
        raise InputError(
            f"SLURM_STEP_TASKS_PER_NODE: {tasks}: task {rank} is number {local_rank} on its machine; "
            "as many tasks on every machine are needed, with --distribution=block"
        )
    nodes = environ["SLURM_STEP_NODELIST"]  # "node[01-03,7],other": rank 0 is on the first
    host = environ.get("MASTER_ADDR") or re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).split(",")[0]
    number = int(environ["SLURM_JOB_ID"]) + int(environ["SLURM_STEP_ID"])
    port = environ.get("MASTER_PORT") or 20000 + number % 10000  # the same in all tasks
    return Process(rank, world_size, local_rank, local_world_size, f"tcp://{host}:{port}")


def from_options(args: argparse.Namespace) -> list[Process]:
    """This machine's processes by detectron2's options. Raises InputError: those that make no sense."""
    local, machines, url = args.num_gpus or 1, args.num_machines, args.dist_url  # 0 GPUs: the CPU
    for option, value in (("--num-gpus", local), ("--num-machines", machines)):
        if value < 1:
            raise InputError(f"{option}: {value}: at least 1 is needed")
    if not 0 <= args.machine_rank < machines:
        raise InputError(f"--machine-rank: {args.machine_rank}: allowed are 0 to {machines - 1}")
    if url == "auto" and machines == 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    if not re.fullmatch(r"tcp://[^/]+:\d+" + ("|file:///.+" if machines == 1 else ""), url):
        raise InputError(f"--dist-url: {url}: tcp://HOST:PORT is needed, which all machines can reach")
    first = args.machine_rank * local
    return [Process(first + i, machines * local, i, local, url) for i in range(local)]


def join(process: Process, device: str, minutes: float = 30) -> None:
    """Enter the process group: NCCL on GPUs, gloo on the CPU; ``minutes``: until a time-out."""
    backend, timeout = "gloo", timedelta(minutes=minutes)
    if torch.device(device).type == "cuda":
        backend = "nccl"  # srun may show each task its own GPU alone
        torch.cuda.set_device(process.local_rank % torch.cuda.device_count())
    dist.init_process_group(backend, process.url, timeout, process.world_size, process.rank)
    compat.create_local_process_group(process.local_world_size)
    if hasattr(dist, "set_timeout"):  # in older torch detectron2's gloo group keeps 30 minutes
        dist.set_timeout(timeout, comm._get_global_gloo_group())


def leave() -> None:
    """Leave, and drop detectron2's groups, too: a thread of gloo may abort the exit of its process."""
    dist.destroy_process_group()
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None


@contextmanager
def _exit_on_error() -> Iterator[None]:
    logging.getLogger().addHandler(EARLY)
    # detectron2 logs an error that ends training, too.
    logging.getLogger("detectron2.engine.train_loop").addFilter(lambda record: not record.exc_info)
    try:
        yield
    except Exception as error:
        line = _line(error)
        if comm.get_world_size() > 1 and (not line or comm.get_rank() > 0):
            time.sleep(GRACE)
        write_to_log(logging.ERROR, line or "the run ends with an error", error)
        print(f"error: {line}" if line else traceback.format_exc(), file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, InputError) else 1)


@_exit_on_error()
def run(prepare: Prepare, work: Work, parser: argparse.ArgumentParser) -> None:
    """Parse the command line; ``prepare`` on rank 0, then ``work`` in every process.

    ``prepare`` checks the arguments, raises InputError for bad input, and writes nothing; ``work`` gets
    what it returned, pickled on ranks above 0, and the arguments. Both are importable by their names.
    Exits with one line on standard error, and status 2 for bad input, or status 1 where the disk fails,
    memory is full or training diverges; with a traceback and status 1 after any other error.
    """
    parser.epilog = (parser.epilog or "") + EPILOG
    # None, so that --num-gpus 1 is seen, too. "auto": a free port, or an error with several machines.
    parser.set_defaults(num_gpus=None, dist_url="auto")
    args = parser.parse_args()
    for word in args.opts:
        if word.startswith("--"):
            raise InputError(f"{word}: options stand before KEY VALUE pairs")
    if not args.config_file:
        raise InputError("--config-file is needed")
    process = from_environment(os.environ)
    if process is None:
        _run_by_options(prepare, work, args)
        return
    for name in ("num_gpus", "num_machines", "machine_rank", "dist_url"):
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if value != parser.get_default(name):
            raise InputError(f"{option}: {value}: leave it out under torchrun and srun")
    _run_in_group(0, [process], prepare, work, args)


def _use_gpu(device: str) -> None:
    """Let the GPU with a number, as cuda:1, be the current one, whose name and memory are looked at.

    Raises InputError: there is no such GPU, or several processes would share it.
    """
    named, gpus = torch.device(device), torch.cuda.device_count()
    if named.type != "cuda" or named.index is None:
        return
    if (processes := comm.get_world_size()) > 1:
        why = f"{processes} processes take one GPU each; allowed is cuda"
        raise InputError(f"MODEL.DEVICE: {device}: {why}")
    if named.index >= gpus:
        raise InputError(f"MODEL.DEVICE: {device}: allowed are cuda:0 to cuda:{gpus - 1}")
    torch.cuda.set_device(named)


def _run_by_options(prepare: Prepare, work: Work, args: argparse.Namespace) -> None:
    processes = from_options(args)
    device, gpus = read_config(args.config_file, args.opts).MODEL.DEVICE, torch.cuda.device_count()
    if processes[0].world_size == 1:
        _use_gpu(device)
        work(prepare(args), args)
        return
    if torch.device(device).type == "cuda" and len(processes) > gpus:
        raise InputError(f"--num-gpus: {len(processes)}: there are {gpus}; allowed are 1 to {gpus}")
    try:
        mp.spawn(_run_in_group, (processes, prepare, work, args), nprocs=len(processes))
    except mp.ProcessExitedException as error:
        if error.exit_code < 0:  # else it has printed its error
            rank = processes[error.error_index].rank
            print(f"error: rank {rank} was killed by {error.signal_name}", file=sys.stderr)
        sys.exit(max(error.exit_code, 1))


@_exit_on_error()  # with mp.spawn alone a traceback would wait until all other processes have ended
def _run_in_group(
    i: int, processes: list[Process], prepare: Prepare, work: Work, args: argparse.Namespace
) -> None:
    cfg = read_config(args.config_file, args.opts)
    join(processes[i], cfg.MODEL.DEVICE, cfg.DIST_TIMEOUT_MINUTES)
    prepared: Any = None
    try:
        if comm.is_main_process():
            _use_gpu(cfg.MODEL.DEVICE)
            prepared = prepare(args)
    except InputError as error:
        prepared = error
    shared = comm.all_gather(prepared)[0]
    if isinstance(shared, InputError):
        raise shared if prepared else SystemExit(2)  # rank 0 prints it
    work(prepared or shared, args)
    leave()  # not after an error: it would wait for the others


def _line(error: Exception) -> str:
    """What is wrong in one line; empty: it takes a traceback."""
    if isinstance(error, InputError):
        # From a worker of a DataLoader the message ends with a traceback, whose last line it is.
        return str(error).splitlines()[-1].split(f"{InputError.__qualname__}: ")[-1]
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"{error}; fix it and continue with --resume"
    if isinstance(error, torch.cuda.OutOfMemoryError):  # not of a step or a score, which name a key
        return f"the GPU's memory is too small: {str(error).splitlines()[0]}"
    return str(error) if isinstance(error, (FloatingPointError, MemoryIsFull)) else ""
