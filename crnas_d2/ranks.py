"""A process's place among all: from torchrun's variables, SLURM's, or detectron2's options.

    torchrun      RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    srun          SLURM_PROCID, SLURM_NTASKS, ...; MASTER_ADDR and MASTER_PORT, if set, come first
    detectron2    --num-gpus, --num-machines, --machine-rank, --dist-url

They are asked in this order.
"""

from __future__ import annotations

import argparse
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from crnas_d2.errors import InputError


@dataclass(frozen=True)
class Place:
    """One process among ``world``, which are numbered machine by machine.

    Attributes:
        rank: 0 .. world - 1.
        local_rank: 0 .. local_world - 1, on this machine.
        url: where they all meet, as torch.distributed.init_process_group takes it.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    url: str


def given_place(environ: Mapping[str, str]) -> Place | None:
    """The place that whoever started this process gave it; None: nobody did.

    Raises:
        InputError: tasks that SLURM has dealt unequally or in turns to the machines.
    """
    world = int(environ.get("WORLD_SIZE") or 1)
    # Containers of a cluster may set RANK 0 and WORLD_SIZE 1: for one process that is no place.
    if "RANK" in environ and (world > 1 or "LOCAL_RANK" in environ):
        return Place(
            rank=int(environ["RANK"]),
            world=world,
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            local_world=int(environ.get("LOCAL_WORLD_SIZE", "1")),
            url="env://",
        )
    return _slurm_place(environ)


def _slurm_place(environ: Mapping[str, str]) -> Place | None:
    """The place of a task of srun.

    A script of sbatch and a shell inside a job see SLURM_NTASKS, too, but are no task: srun alone sets
    the variables of a step. A step's own variables come before those of its job.
    """

    def of_step(name: str, default: str = "") -> str:
        return environ.get(f"SLURM_STEP_{name}") or environ.get(f"SLURM_{name}", default)

    world = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS", "1"))
    if world < 2 or "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        return None
    rank, local_rank = int(environ["SLURM_PROCID"]), int(environ.get("SLURM_LOCALID", "0"))
    tasks = of_step("TASKS_PER_NODE", environ.get("SLURM_NTASKS_PER_NODE", str(world)))
    numbers = {int(number) for number in re.findall(r"(\d+)(?:\(x\d+\))?", tasks)}
    local_world = max(numbers)
    if len(numbers) > 1 or world % local_world or rank % local_world != local_rank:
        raise InputError(
            f"SLURM_TASKS_PER_NODE: {tasks}: task {rank} is number {local_rank} on its machine; the "
            "same number on every machine is needed, dealt by --distribution=block"
        )
    host = environ.get("MASTER_ADDR") or first_host(of_step("NODELIST"))
    number = int(environ.get("SLURM_JOB_ID", "0")) + int(environ["SLURM_STEP_ID"])
    port = environ.get("MASTER_PORT") or 20000 + number % 10000  # the same for all tasks
    return Place(rank, world, local_rank, local_world, f"tcp://{host}:{port}")


def first_host(nodes: str) -> str:
    """The first of SLURM's nodes, ``node[01-03,7],other``; this machine, if there is none."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).split(",")[0] or "127.0.0.1"


def local_places(args: argparse.Namespace) -> list[Place]:
    """The places of the processes that detectron2's options ask for on this machine.

    Raises:
        InputError: numbers that make no sense, or no address where several machines can meet.
    """
    here, machines = args.num_gpus or 1, args.num_machines  # 0 GPUs: one process on the CPU
    if here < 1 or machines < 1:
        key, value = ("--num-gpus", here) if here < 1 else ("--num-machines", machines)
        raise InputError(f"{key}: {value}: at least 1 is needed")
    if not 0 <= args.machine_rank < machines:
        raise InputError(
            f"--machine-rank: {args.machine_rank}: allowed are 0 to {machines - 1}, "
            f"with --num-machines {machines}"
        )
    url = args.dist_url
    if url == "auto" and machines == 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    if not re.fullmatch(r"tcp://[^/]+:\d+" + ("|file:///.+" if machines == 1 else ""), url):
        raise InputError(
            f"--dist-url: {url}: tcp://HOST:PORT is needed, with a host that every machine reaches"
        )
    first = args.machine_rank * here
    return [Place(first + i, machines * here, i, here, url) for i in range(here)]
