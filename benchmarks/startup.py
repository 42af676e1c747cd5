#!/usr/bin/env python
"""Time and memory of a search's start on a data set of COCO's size: up to the first training step.

    python benchmarks/startup.py [--images 118000] [--boxes 860000] [--processes 1 2] [--json PATH]

The JSON is generated, its pictures are hard links to a few JPEGs; the network is small. Seconds are those
until the first checkpoint, which is due after one iteration; memory is the largest resident set of each
rank (VmHWM), so this runs on Linux only. To compare two versions, run it in the checkout of each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SIDE = 64  # of a picture, pixels
LINKS = 50_000  # to one file; file systems have a limit
CONFIG = """
_BASE_: {root}/configs/Shapes/faster_rcnn_R_18.yaml
DATASETS: {{TRAIN_JSON: train.json, TRAIN_IMAGES: images, TEST_JSON: "", TEST_IMAGES: ""}}
MODEL: {{DEVICE: cpu, FPN: {{OUT_CHANNELS: 8}}}}
INPUT: {{MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 64}}
SOLVER: {{MAX_ITER: 100, STEPS: [], CHECKPOINT_PERIOD: 1}}
SEARCH: {{BUDGETS: [8]}}
"""


def make_data(folder: Path, images: int, boxes: int) -> None:
    """train.json with every box somewhere in its picture, and as many names of one JPEG."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    picture = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    for number in range(images):
        path = folder / "images" / f"{number}.jpg"
        if number % LINKS == 0:
            picture.save(path)
        else:
            os.link(path.with_name(f"{number - number % LINKS}.jpg"), path)
    corners = rng.integers(0, SIDE // 2, (boxes, 2)).tolist()
    owners = rng.integers(0, images, boxes).tolist()
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE} for i in range(images)
        ],
        "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(80)],
        "annotations": [
            {
                **{"id": i + 1, "image_id": owners[i], "category_id": 1 + i % 80, "iscrowd": 0},
                **{"bbox": [*corner, 16.5, 20.25], "area": 334.125},
            }
            for i, corner in enumerate(corners)
        ],
    }
    (folder / "train.json").write_text(json.dumps(content))


def peaks(group: int) -> list[float]:
    """The largest resident sets so far, in GB, of the processes of a group, largest first."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getpgid(int(status.parent.name)) == group:
                kilobytes = status.read_text().split("VmHWM:")[1].split()[0]
                found.append(int(kilobytes) / 1e6)
        except (OSError, IndexError):  # it has ended, or is no process with memory
            continue
    return sorted(found, reverse=True)


def start(folder: Path, processes: int) -> dict[str, object]:
    """Start a search, and stop it after one iteration."""
    out = folder / f"out{processes}"
    command = [sys.executable, str(ROOT / "search_net.py"), "--config-file", "search.yaml"]
    command += ["--num-gpus", str(processes), "OUTPUT_DIR", str(out)]
    begun = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        run = subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=log, stderr=log)
    try:
        while not (out / "stage" / "last_checkpoint").exists():
            if run.poll() is not None:
                sys.exit((folder / "log.txt").read_text()[-2000:])
            time.sleep(0.1)
        seconds = time.perf_counter() - begun
        return {"processes": processes, "seconds": round(seconds, 1), "peaks_gb": peaks(run.pid)}
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, args.images, args.boxes)
        (folder / "search.yaml").write_text(CONFIG.format(root=ROOT))
        for processes in args.processes:
            results.append(start(folder, processes))
            print(results[-1], flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
