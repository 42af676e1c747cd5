"""Processes: detectron2's --num-gpus and --num-machines, or torchrun (on the CPU too, with gloo)."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from crnas_d2 import lines
from crnas_d2.engine.setup import read_config
from crnas_d2.errors import InputError
from detectron2.engine import launch

# A full disk or quota, a file size limit, a folder that cannot be written, a file in its place.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)


def under_torchrun() -> bool:
    """Whether torchrun, or another launcher with its variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_torchrun(device: str) -> None:
    """Enter the process group that the environment describes: nccl on GPUs, gloo on the CPU.

    Args:
        device: MODEL.DEVICE.
    """
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    lines.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def run(
    main: Callable[[argparse.Namespace], None],
    check: Callable[[argparse.Namespace], object],
    parser: argparse.ArgumentParser,
) -> None:
    """Parse the command line and run ``main`` in every process.

    Bad input leaves with status 2 and one line on standard error.

    Args:
        main: what each process does.
        check: raises InputError for bad input and writes nothing; called before others are started.
    """
    args = parser.parse_args()
    try:
        if under_torchrun():
            join_torchrun(read_config(args.config_file, args.opts).MODEL.DEVICE)
            main(args)
        elif args.num_gpus * args.num_machines > 1:
            there = torch.cuda.device_count()
            if args.num_gpus > there:
                raise InputError(
                    f"--num-gpus: {args.num_gpus}: there are {there}; for processes on the CPU use "
                    f"torchrun --nproc_per_node {args.num_gpus} {sys.argv[0]} ..."
                )
            check(args)
            launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        else:
            main(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error}; --resume goes on when that is mended", file=sys.stderr)
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
