#!/usr/bin/env python
"""Matching and AP of one candidate against pycocotools: the same score, which is checked.

    python benchmarks/metric.py [--images 5000] [--classes 80] [--boxes 36000] [--detections 500000]
                                [--json PATH]

On generated boxes: the median of five runs of what a score takes after the detections (matches, their
file, and AP from the file), in CPU seconds, which other work on the machine disturbs less than wall
seconds; pycocotools runs once. Also how much memory ours took at most beyond the detections, and the
bytes of the file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
import time
import tracemalloc
from typing import Any

import numpy as np
from common import coco_content, parser_of, show, timed
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crnas_d2.evaluation.matches import Matches
from crnas_d2.evaluation.matching import Detections, GroundTruth, match

SIDE = 640  # of an image, pixels


def generated(
    images: int, classes: int, boxes: int, detections: int
) -> tuple[dict[str, Any], Detections]:
    """Boxes of 8 to 300 pixels, and detections: half near a box of their class, half of any class."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (boxes, 2)))
    truth = np.concatenate([rng.uniform(0, 1, (boxes, 2)) * (SIDE - sides), sides], axis=1)
    image = rng.integers(0, images, boxes)
    category = rng.integers(1, classes + 1, boxes)
    crowd = (np.arange(boxes) % 50 == 0).astype(int)
    rows = zip(*(column.tolist() for column in (image, category, truth, crowd)))
    content = coco_content(SIDE, images, classes, rows)
    of = rng.integers(0, boxes, detections)
    noise = rng.normal(0, 0.1, (detections, 4)) * np.tile(truth[of, 2:], 2)
    noise[:, 2:] = abs(noise[:, 2:])
    near = rng.random(detections) < 0.5
    classed = np.where(near, category[of], rng.integers(1, classes + 1, detections))
    scores = rng.random(detections).astype(np.float32)
    boxes_found = (truth[of] + noise).astype(np.float32)
    return content, Detections(image[of], classed - 1, scores, boxes_found)


def ours(truth: GroundTruth, found: Detections) -> tuple[float, int]:
    """The score, and the bytes of the file of matches."""
    file = match(truth, found, range(len(truth.image_ids))).to_bytes()
    return float(Matches.from_bytes(file).scores(np.ones((1, len(truth.image_ids))))[0]), len(file)


def pycocotools_score(content: dict[str, Any], found: Detections) -> float:
    columns = (found.row, found.column + 1, found.shapes, found.score)
    keys = ("image_id", "category_id", "bbox", "score")
    results = [dict(zip(keys, row)) for row in zip(*(c.tolist() for c in columns))]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def main() -> None:
    parser = parser_of(__doc__, config_file="")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=36000, help="of the ground truth, in all")
    parser.add_argument("--detections", type=int, default=500000, help="in all")
    args = parser.parse_args()
    setting = {k: getattr(args, k) for k in ("images", "classes", "boxes", "detections")}
    content, found = generated(**setting)
    truth = GroundTruth(content, "bbox", "AP")
    cpu_seconds = functools.partial(timed, clock=time.process_time)
    runs = [cpu_seconds(ours, truth, found) for _ in range(5)]
    tracemalloc.start()
    ours(truth, found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    baseline, expected = cpu_seconds(pycocotools_score, content, found)
    score, size = runs[0][1]
    if abs(score - expected) > 1e-9:
        raise SystemExit(f"the scores differ: ours {score}, pycocotools {expected}")
    seconds = statistics.median(seconds for seconds, _ in runs)
    setting["AP"] = expected
    show(args.json, baseline, seconds, setting, peak_bytes=peak, file_bytes=size)


if __name__ == "__main__":
    main()
