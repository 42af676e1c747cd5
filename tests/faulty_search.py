"""search_net.py, one process of which fails.

FAULT="1 training kill" python faulty_search.py --config-file ... KEY VALUE ...

FAULT names the rank, the place (training: the third iteration; search: the third group of candidates)
and what happens there:

    raise, kill    the process dies
    nan            the loss is not finite
    full400        from then on no file may grow beyond 400 bytes
    gone           the folder IMAGES is gone
    sleep, alone   it computes alone for a long time (and says so in the file ASLEEP); the other one
                   dies as soon as it does: "0 training sleep,1 training alone"
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import search_net
from crnas_d2.engine.trainer import StepTrainer
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.launch import run
from crnas_d2.pipeline import run as pipeline_run
from crnas_d2.pipeline.checks import plan_search
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

step, detect = StepTrainer.run_step, ArchvalScorer._detect
groups = 0


def faults_at(place: str) -> list[str]:
    faults = [fault.split() for fault in os.environ["FAULT"].split(",") if fault]
    return [kind for rank, where, kind in faults if where == place and int(rank) == comm.get_rank()]


def fail(kinds: list[str]) -> None:
    if kinds:
        print("fault", *kinds, flush=True)
    if "raise" in kinds:
        raise LookupError(f"rank {comm.get_rank()} has an error of its own")
    if "sleep" in kinds:
        Path(os.environ["ASLEEP"]).touch()
        time.sleep(600)
    while "alone" in kinds and not os.path.exists(os.environ["ASLEEP"]):
        time.sleep(0.01)
    if "kill" in kinds or "alone" in kinds:
        os.kill(os.getpid(), signal.SIGKILL)
    if "gone" in kinds:
        os.rename(os.environ["IMAGES"], os.environ["IMAGES"] + ".gone")
    for kind in kinds:
        if kind.startswith("full"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(kind[4:]), resource.RLIM_INFINITY))


def faulty_step(self: StepTrainer) -> None:
    kinds = faults_at("training") if self.iter == 2 else []
    fail(kinds)
    if "nan" in kinds:
        for parameter in self.model.roi_heads.parameters():
            parameter.data.fill_(float("nan"))
    step(self)


def faulty_detect(self: ArchvalScorer, *args: Any) -> Any:
    global groups
    groups += 1
    if groups == 3:
        fail(faults_at("search"))
    return detect(self, *args)


# Not below __name__: processes that are started by --num-gpus import this file as well.
StepTrainer.run_step, ArchvalScorer._detect = faulty_step, faulty_detect
pipeline_run.GROUP_SIZE = 1

if __name__ == "__main__":
    run(search_net.main, plan_search, default_argument_parser())
