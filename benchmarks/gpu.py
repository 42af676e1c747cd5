#!/usr/bin/env python
"""All figures that a GPU is wanted for, in one call of a few minutes.

    python benchmarks/gpu.py [--minutes 9] [--tiny] [--json PATH]

It runs the other benchmarks, each in a process of its own, at the paper's sizes (800 pixels, batch 8 on
one GPU), and prints what they found in one table: a supernet's training step against a subnet's, in
float32 and mixed precision; peak memory, as it is and with MODEL.CRNAS.RECOMPUTE; a search against
detectron2's test loop. What is left of the minutes is shared by the runs that are left, and one that
takes longer is ended and said to be unfinished. --tiny tries it with small networks on a CPU, without
the runs in mixed precision, since detectron2's own trainer has that on a GPU only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import detectron2
from crnas_d2.data.shapes import make_shapes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAPER = ["--config-file", str(ROOT / "configs" / "Search" / "resnet.yaml")]
SHAPES = ["--config-file", str(ROOT / "configs" / "Shapes" / "search.yaml")]
# KEY VALUE pairs: one GPU of the eight of the paper's 16 images; batches larger than needed waste time.
BATCH = ["SOLVER.IMS_PER_BATCH", "8"]
AMP = ["SOLVER.AMP.ENABLED", "True"]
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.CRNAS.STEM_CHANNELS", "8", "MODEL.CRNAS.WIDTHS", "[8, 12, 16, 24]"),
    *("MODEL.CRNAS.STAGE_SPACE", "[[1, 2], [1, 2], [4, 5], [1, 2]]", "SEARCH.BUDGETS", "[8]"),
    *("MODEL.CRNAS.STAGE_CODE", "[2, 2, 4, 2]"),
    *("MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("INPUT.MIN_SIZE_TRAIN", "[96]", "INPUT.MIN_SIZE_TEST", "96", "SOLVER.IMS_PER_BATCH", "2"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
]


def runs(tiny: bool, folder: Path) -> dict[str, list[str]]:
    """Arguments of each, by the name of its row; ``folder``: of generated pictures."""
    steps = ["train_step.py", "--steps", "2" if tiny else "20", *PAPER]
    memory, search = ["memory.py", *PAPER], ["search.py", "--step", "stage", *SHAPES]
    search += ["--images", "8", "--train-steps", "100"]
    for side, split in (("TRAIN", "train"), ("TEST", "val")):
        search += [f"DATASETS.{side}_JSON", str(folder / f"{split}.json")]
        search += [f"DATASETS.{side}_IMAGES", str(folder / "images")]
    size = TINY if tiny else BATCH
    of_search = ["MODEL.DEVICE", "cpu"] if tiny else []
    found = {
        "step": [*steps, *size],
        "step, mixed precision": [*steps, *size, *AMP],
        "memory": [*memory, *size],
        "memory, recomputed": [*memory, *size, "MODEL.CRNAS.RECOMPUTE", "True"],
        "memory, mixed precision": [*memory, *size, *AMP],
        "search": [*search, *of_search],
    }
    return {name: run for name, run in found.items() if not (tiny and "mixed" in name)}


def measured(arguments: list[str], seconds: float) -> dict[str, Any]:
    """What a benchmark found, or why it found nothing."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        script, *rest = arguments
        command = [sys.executable, str(HERE / script), "--json", str(file), *rest]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return {"problem": f"not finished after {seconds:.0f} s"}
        if done.returncode or not file.is_file():
            errors = re.findall(r"^[\w.]*(?:Error|Exception).*$|^error: .*$", done.stderr, re.MULTILINE)
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            return {"problem": (errors or last or [f"status {done.returncode}"])[-1]}
        return dict(json.loads(file.read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--tiny", action="store_true", help="small networks, on the CPU")
    parser.add_argument("--json", help="write the results there")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda and not args.tiny else "cpu"
    print(f"{device}, torch {torch.__version__}, detectron2 {detectron2.__version__}")
    end, found = time.monotonic() + 60 * args.minutes, {}
    with tempfile.TemporaryDirectory() as folder:
        make_shapes(folder, 60, 4)
        left = list(runs(args.tiny, Path(folder)).items())
        while left:
            name, arguments = left.pop(0)
            seconds = (end - time.monotonic()) / (len(left) + 1)
            started = time.monotonic()
            found[name] = {**measured(arguments, seconds), "seconds": time.monotonic() - started}
            print(f"{name}: {found[name].get('problem', 'done')}", flush=True)
    columns = ("ratio", "ratio_wall", "ratio_pinned", "baseline", "ours", "images_per_second")
    columns += ("seconds", "problem")
    rows = [{"run": name, **{c: of.get(c) for c in columns}} for name, of in found.items()]
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))
    for name, of in found.items():
        print(f"{name}: {of.get('setting', '')}")
    if args.json:
        Path(args.json).write_text(json.dumps({"device": device, **found}), encoding="utf-8")


if __name__ == "__main__":
    main()
