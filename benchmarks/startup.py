#!/usr/bin/env python
"""Time and memory of a search's start on a data set of COCO's size: up to the first training step.

    python benchmarks/startup.py [--images 118000] [--boxes 860000] [--processes 1 2] [--json PATH]
    python benchmarks/startup.py --plan [--points 25]

--plan measures search_net.py --plan to its end instead; --points gives each box a polygon of so many
points, and the network masks. The JSON is generated, its pictures are hard links to a few JPEGs; the
network is small. Seconds are those until the first checkpoint, which is due after one iteration. Memory
is the peak of what each process has for itself (RssAnon, read ten times a second; Linux only), in the
order in which they started: with two processes the launcher, a helper process of Python's, rank 0, rank
1. To compare versions, run it in the checkout of each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import coco_content, parser_of
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SIDE = 64  # of a picture, pixels
LINKS = 50_000  # to one file; file systems have a limit
CONFIG = """
_BASE_: {root}/configs/Shapes/faster_rcnn_R_18.yaml
DATASETS: {{TRAIN_JSON: train.json, TRAIN_IMAGES: images, TEST_JSON: "", TEST_IMAGES: ""}}
MODEL: {{DEVICE: cpu, FPN: {{OUT_CHANNELS: 8}}, MASK_ON: {masks}}}
INPUT: {{MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 64}}
SOLVER: {{MAX_ITER: 100, STEPS: [], CHECKPOINT_PERIOD: 1}}
SEARCH: {{BUDGETS: [8]}}
"""


def make_data(folder: Path, images: int, boxes: int, points: int) -> None:
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
    rows = [(owners[i], 1 + i % 80, [*corner, 16.5, 20.25], 0) for i, corner in enumerate(corners)]
    content = coco_content(SIDE, images, 80, rows)
    if points:
        angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
        circle = 0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        for a in content["annotations"]:
            polygon = np.array(a["bbox"][:2]) + circle * a["bbox"][2:]
            a["segmentation"] = [polygon.round(2).ravel().tolist()]
    (folder / "train.json").write_text(json.dumps(content))


def note_peaks(group: int, peaks: dict[int, float]) -> None:
    """Raise ``peaks``, in GB by process, to the memory that the processes of a group have now."""
    for status in Path("/proc").glob("[0-9]*/status"):
        process = int(status.parent.name)
        try:
            if os.getpgid(process) == group:
                kilobytes = int(status.read_text().split("RssAnon:")[1].split()[0])
                peaks[process] = max(peaks.get(process, 0.0), kilobytes / 1e6)
        except (OSError, IndexError):  # it has ended, or has no memory of its own
            continue


def start(folder: Path, processes: int, plan: bool) -> dict[str, object]:
    """Start a search, and stop it after one iteration; or its plan."""
    out = folder / f"out{processes}"
    command = [sys.executable, str(ROOT / "search_net.py"), "--config-file", "search.yaml"]
    command += ["--plan"] if plan else ["--num-gpus", str(processes)]
    command += ["OUTPUT_DIR", str(out)]
    peaks: dict[int, float] = {}
    begun = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        run = subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=log, stderr=log)
    try:
        while not (out / "stage" / "last_checkpoint").exists():
            if run.poll() == 0 and plan:
                break
            if run.poll() is not None:
                sys.exit((folder / "log.txt").read_text()[-2000:])
            note_peaks(run.pid, peaks)
            time.sleep(0.1)
        seconds = round(time.perf_counter() - begun, 1)
        in_order = [round(peaks[process], 2) for process in sorted(peaks)]
        return {"processes": processes, "seconds": seconds, "peaks_gb": in_order}
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def main() -> None:
    parser = parser_of(__doc__, config_file="")
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--points", type=int, default=0)
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, args.images, args.boxes, args.points)
        (folder / "search.yaml").write_text(CONFIG.format(root=ROOT, masks=bool(args.points)))
        for processes in [1] if args.plan else args.processes:
            results.append(start(folder, processes, args.plan))
            print(results[-1], flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
