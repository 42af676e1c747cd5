"""search_net.py, one rank of which fails.

FAULT="1 training kill" python faulty_search.py --config-file ... KEY VALUE ...

FAULT names the rank, the moment (training: the third iteration; search: before the third candidate
detects; matched: after it) and what happens:

    raise, kill    the process dies
    disk, files    it raises an OSError: of the disk (EIO), of too many open files (EMFILE)
    nan            the loss is not finite
    full400        from then on no file may grow beyond 400 bytes
    gone           the folder IMAGES is gone
    sleep, alone   it computes alone for a long time (and creates the file ASLEEP); the other rank dies
                   as soon as it does: "0 training sleep,1 training alone"
"""

from __future__ import annotations

import errno
import functools
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
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.launch import run
from crnas_d2.pipeline import search_hook
from detectron2.utils import comm

step, detect = StepTrainer.run_step, ArchvalScorer.detect
detected = 0


def faults_at(moment: str) -> list[str]:
    faults = [fault.split() for fault in os.environ["FAULT"].split(",") if fault]
    return [kind for rank, when, kind in faults if when == moment and int(rank) == comm.get_rank()]


def fail(kinds: list[str]) -> None:
    """Do what FAULT says. "fault" on the screen tells the test when."""
    if kinds:
        print("fault", *kinds, flush=True)
    if "raise" in kinds:
        raise LookupError(f"rank {comm.get_rank()} has an error of its own")
    for kind, number in (("disk", errno.EIO), ("files", errno.EMFILE)):
        if kind in kinds:
            raise OSError(number, os.strerror(number), "/some/file")
    if "sleep" in kinds:
        Path(os.environ["ASLEEP"]).touch()
        time.sleep(120)
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


def faulty_detect(self: ArchvalScorer, *args: Any) -> None:
    global detected
    detected += 1
    if detected == 3:
        fail(faults_at("search"))
    detect(self, *args)
    if detected == 3:
        fail(faults_at("matched"))


# Not below __name__: the processes that --num-gpus starts import this file, too.
StepTrainer.run_step, ArchvalScorer.detect = faulty_step, faulty_detect
search_hook.Race = functools.partial(search_hook.Race, group_size=1)

if __name__ == "__main__":
    run(search_net.prepare, search_net.work, search_net.options())
