"""OUTPUT_DIR/starts.jsonl: a line each time that a search is started, for its report.

With which command, versions and processes; the base configs of its networks; what was expected of it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

import crnas_d2
import detectron2
from crnas_d2.pipeline.estimate import Estimate
from crnas_d2.pipeline.plan import Plan
from detectron2.utils import comm

STARTS = "starts.jsonl"
NEEDED = ("DETECTRON2_DATASETS", "CUDA_VISIBLE_DEVICES")  # to start it again
LAUNCHERS = {"TORCHELASTIC_RUN_ID": "by torchrun", "SLURM_PROCID": "by srun"}


def record_start(plan: Plan, expected: Estimate | None, resume: bool) -> None:
    """Append a line, on rank 0; a run that is not resumed begins the file anew."""
    device = plan.cfg.MODEL.DEVICE
    packages = (crnas_d2, detectron2, torch, torchvision)
    line: dict[str, Any] = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "environment": {name: os.environ[name] for name in NEEDED if name in os.environ},
        "launcher": next((of for name, of in LAUNCHERS.items() if name in os.environ), "by itself"),
        "folder": os.getcwd(),
        "processes": comm.get_world_size(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "versions": {
            "Python": sys.version.split()[0],
            **{package.__name__: package.__version__ for package in packages},
            **_commit(),
        },
        "bases": {budget.name: str(Path(path).resolve()) for budget, path in plan.bases.items()},
        "estimate": {work.name: seconds for work, seconds in expected.works} if expected else None,
    }
    with open(Path(plan.cfg.OUTPUT_DIR, STARTS), "a" if resume else "w", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _commit() -> dict[str, str]:
    """Of crnas_d2, where it runs from a clone."""
    clone = Path(crnas_d2.__file__).parent.parent
    if not (clone / ".git").exists():
        return {}
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(clone), "describe", "--always", "--dirty"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return {"commit": found.stdout.strip()}
    return {}
