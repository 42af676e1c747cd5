#!/usr/bin/env python
"""The COCO metric of one candidate by hotcoco against pycocotools: the same numbers, which is checked.

    python benchmarks/metric.py [--images 2500] [--classes 80] [--boxes 18000] [--detections 240000]
                                [--json PATH]

On generated boxes: the median of five calls of hotcoco against one of pycocotools, which takes its
time. The ratio is that of CPU seconds (all threads), which other work on the machine disturbs less
than wall seconds; those are printed beside it, and so is the longest that another Python thread,
which would forward a network meanwhile, had to wait while hotcoco ran.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from typing import Any

import numpy as np
from common import show

from crnas_d2.evaluation.coco import CocoMetric

SIDE = 640  # of an image, pixels
PAUSE = 0.0005  # seconds that the other thread sleeps between two looks at the clock


def generated(
    images: int, classes: int, boxes: int, detections: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes of 8 to 300 pixels, and detections: half near a box of their class, half of any class."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (boxes, 2)))
    truth = np.concatenate([rng.uniform(0, 1, (boxes, 2)) * (SIDE - sides), sides], axis=1)
    image = rng.integers(1, images + 1, boxes)
    category = rng.integers(1, classes + 1, boxes)
    content = {
        "images": [{"id": i + 1, "height": SIDE, "width": SIDE} for i in range(images)],
        "categories": [{"id": i + 1} for i in range(classes)],
        "annotations": [
            {
                **{"id": i + 1, "image_id": int(image[i]), "category_id": int(category[i])},
                **{"bbox": box, "area": box[2] * box[3], "iscrowd": int(i % 50 == 0)},
            }
            for i, box in enumerate(truth.tolist())
        ],
    }
    of = rng.integers(0, boxes, detections)
    noise = rng.normal(0, 0.1, (detections, 4)) * np.tile(truth[of, 2:], 2)
    noise[:, 2:] = abs(noise[:, 2:])
    near = rng.random(detections) < 0.5
    classed = np.where(near, category[of], rng.integers(1, classes + 1, detections))
    scores = rng.random(detections).astype(np.float32)
    columns = (image[of], classed, truth[of] + noise, scores)
    keys = ("image_id", "category_id", "bbox", "score")
    return content, [dict(zip(keys, row)) for row in zip(*(c.tolist() for c in columns))]


class Waiting:
    """Another thread that wants to run every half millisecond; ``longest`` is what it had to wait."""

    def __enter__(self) -> Waiting:
        self.longest, self._over = 0.0, False
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        last = time.perf_counter()
        while not self._over:
            time.sleep(PAUSE)
            last, before = time.perf_counter(), last
            self.longest = max(self.longest, last - before - PAUSE)

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()


def timed(metric: CocoMetric, detections: list[dict[str, Any]]) -> tuple[float, float, list[float]]:
    """CPU and wall seconds of one call, and the twelve numbers."""
    wall, cpu = time.perf_counter(), time.process_time()
    numbers = metric.all_numbers(detections)
    return time.process_time() - cpu, time.perf_counter() - wall, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=18000, help="of the ground truth, in all")
    parser.add_argument("--detections", type=int, default=240000, help="in all")
    parser.add_argument("--json", help="write the result there")
    args = parser.parse_args()
    setting = {k: getattr(args, k) for k in ("images", "classes", "boxes", "detections")}
    content, detections = generated(**setting)
    fast = CocoMetric(content, "bbox", "AP", "hotcoco")
    plain = CocoMetric(content, "bbox", "AP", "pycocotools")
    runs = [timed(fast, detections) for _ in range(5)]
    with Waiting() as other:
        fast(detections)
    baseline, baseline_wall, expected = timed(plain, detections)
    for _, _, numbers in runs:
        if np.abs(np.subtract(numbers, expected)).max() > 1e-9:
            raise SystemExit(f"the numbers differ: hotcoco {numbers}, pycocotools {expected}")
    ours = statistics.median(cpu for cpu, _, _ in runs)
    ours_wall = statistics.median(wall for _, wall, _ in runs)
    result = {
        "ratio": ours / baseline,
        "baseline": baseline,
        "ours": ours,
        "ratio_wall": ours_wall / baseline_wall,
        "baseline_wall": baseline_wall,
        "ours_wall": ours_wall,
        "other_thread_waited": other.longest,
        "setting": {**setting, "AP": 100 * expected[0]},
    }
    show(result, args.json)
    print(f"hotcoco takes 1/{baseline / ours:.0f} of the time; all twelve numbers are equal")


if __name__ == "__main__":
    main()
