"""From a script's command line to its processes, and from their errors to one line and a status.

Processes are started here (--num-gpus, --num-machines), by torchrun or by srun, and meet with NCCL on
GPUs and gloo on the CPU.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from crnas_d2 import compat
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.ranks import Place, given_place, local_places
from crnas_d2.watch import watched
from detectron2.engine.launch import DEFAULT_TIMEOUT

Main = Callable[[argparse.Namespace], None]

# A full disk or quota, a file size limit, a folder that cannot be written or is gone, a file in its
# place, a broken disk.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EIO, errno.ESTALE),
)
PROCESSES = """
Processes: --num-gpus is the number of processes on this machine, one a GPU; with MODEL.DEVICE cpu they
share the CPU. torchrun and srun start them as well; with srun, --kill-on-bad-exit=1 is advisable.
"""


def join(place: Place, device: str) -> None:
    """Enter the process group: nccl on GPUs, gloo on the CPU.

    Args:
        device: MODEL.DEVICE.
    """
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:  # srun may show each task its own GPU alone
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=place.url,
        world_size=place.world,
        rank=place.rank,
        timeout=DEFAULT_TIMEOUT,  # rank 0 computes the last metrics alone while the others wait
    )
    compat.create_local_process_group(place.local_world)


def run(
    main: Main,
    check: Callable[[argparse.Namespace], object],
    parser: argparse.ArgumentParser,
) -> None:
    """Parse the command line and run ``main`` in every process.

    Leaves with status 2 and one line on standard error for bad input, with status 1 and one line where
    the disk fails or training diverges.

    Args:
        main: what each process does; importable by its name.
        check: raises InputError for bad input and writes nothing; called before others are started.
    """
    parser.epilog = (parser.epilog or "") + PROCESSES
    status = _status(_run, main, check, parser.parse_args())
    if status:
        sys.exit(status)


def _run(main: Main, check: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    place = given_place(os.environ)
    if place is not None:
        return _work(place, main, args)
    places = local_places(args)
    if places[0].world == 1:
        main(args)
        return 0
    there = torch.cuda.device_count()
    on_gpu = torch.device(read_config(args.config_file, args.opts).MODEL.DEVICE).type == "cuda"
    if on_gpu and len(places) > there:
        raise InputError(f"--num-gpus: {len(places)}: there are {there}; allowed are 1 to {there}")
    check(args)
    try:
        mp.spawn(_spawned, (places, main, args), nprocs=len(places))
    except mp.ProcessExitedException as error:  # it has said why, unless it was killed
        if error.exit_code < 0:
            print(f"error: {error}", file=sys.stderr)
        return max(error.exit_code, 1)
    return 0


def _spawned(local_rank: int, places: list[Place], main: Main, args: argparse.Namespace) -> None:
    try:
        status = _status(_work, places[local_rank], main, args)
    except Exception:
        traceback.print_exc()  # now: mp.spawn would show that of the first process to end
        status = 1
    sys.exit(status)


def _work(place: Place, main: Main, args: argparse.Namespace) -> int:
    """One of several processes, from its start to its end."""
    join(place, read_config(args.config_file, args.opts).MODEL.DEVICE)
    host = urlparse(place.url).hostname or os.environ.get("MASTER_ADDR", "127.0.0.1")
    with watched(host):
        main(args)
    dist.destroy_process_group()  # after an error it would wait for the others
    return 0


def _status(call: Callable[..., int], *args: object) -> int:
    """What the call returns, or the status that its error has, of which one line is printed at once."""
    # detectron2 logs exceptions that end a training with their tracebacks.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_shorten)
    try:
        return call(*args)
    except Exception as error:
        line, status = _line_and_status(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        return status


def _line_and_status(error: BaseException) -> tuple[str, int]:
    """One line that says what is wrong, where that is enough, and the script's exit status."""
    if isinstance(error, InputError):
        # From a worker of a DataLoader the message ends with a traceback, whose last line it is.
        return str(error).splitlines()[-1].split(f"{InputError.__qualname__}: ")[-1], 2
    if isinstance(error, FloatingPointError):
        return str(error), 1
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"{error}; --resume goes on when that is mended", 1
    return "", 1


def _shorten(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[1] is not None:
        line, _ = _line_and_status(record.exc_info[1])
        if line:
            record.msg, record.args, record.exc_info = line, (), None
    return True
