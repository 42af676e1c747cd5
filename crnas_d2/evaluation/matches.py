"""Which detections of a candidate hit, image by image: its AP under any weighting of the images.

A race compares candidates by a bootstrap over archval's images. Detections are matched once, by
COCOeval; a resampled archval only counts the images' matches and objects another number of times.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params

from crnas_d2.evaluation.coco import METRICS, CocoMetric

PARAMS = Params("bbox")  # COCOeval's: ten IoU thresholds, 101 recalls
AT_ONCE = 2**22  # weights (bootstraps x detections) in memory at a time: 32 MB an array


@dataclass(frozen=True, eq=False)
class Matches:
    """A candidate's matches on I images of C categories, at T IoU thresholds.

    N detections that count at one threshold at least: by category, best score first, equal scores in
    the order of the images.

    Attributes:
        metric: what they are matches for, such as ``bbox AP``.
        image_ids, category_ids: (I,) and (C,), ascending.
        objects: (I, C), the objects that count.
        image, category: (N,), indices into the two.
        score: (N,).
        hit: (T, N), whether the detection is matched to an object that counts.
        counted: (T, N), whether it is not ignored, as those on crowds and of other sizes are.
    """

    metric: str
    image_ids: np.ndarray
    category_ids: np.ndarray
    objects: np.ndarray
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    counted: np.ndarray

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """The metric, (B,) in 0..100; nan where no object counts.

        Integer weights: COCOeval's on a data set that holds each image so many times, but for the
        order of equal scores. Fractions: the same up to rounding, which decides where a recall meets
        one of the 101 points.

        Args:
            weights: (B, I), finite and not negative: how many times each image counts.

        Raises:
            ValueError: weights of another shape or below 0.
        """
        weights = np.asarray(weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[1] != len(self.image_ids):
            raise ValueError(f"weights of {weights.shape}; (B, {len(self.image_ids)}) are needed")
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError("weights are finite and not negative")
        there = weights.any(0)[self.image]  # the others would only add zeros
        found = np.empty(len(weights))
        rows = max(1, AT_ONCE // max(1, len(self.image)))
        for first in range(0, len(weights), rows):
            found[first : first + rows] = self._scores(weights[first : first + rows], there)
        return found

    def _scores(self, weights: np.ndarray, there: np.ndarray) -> np.ndarray:
        totals = weights @ self.objects  # (B, C)
        precisions = np.zeros(totals.shape)
        for number in range(len(self.category_ids)):
            mine = np.flatnonzero(there & (self.category == number))
            of_detections = weights[:, self.image[mine]]
            total = np.where(totals[:, number] > 0, totals[:, number], 1)  # else left out below
            detected: dict[bytes, np.ndarray] = {}  # mostly the same at all thresholds
            for hit, counted in zip(self.hit[:, mine], self.counted[:, mine]):
                key = counted.tobytes()
                if key not in detected:
                    detected[key] = np.cumsum(of_detections * counted, axis=1)
                precisions[:, number] += average_precision(of_detections, hit, detected[key], total)
        counts = totals > 0  # COCOeval leaves the other categories out of its mean
        with np.errstate(invalid="ignore"):
            mean = (precisions * counts).sum(1) / counts.sum(1)
        return 100.0 * mean / len(self.hit)

    def joined(self, other: Matches) -> Matches:
        """The matches of two portions of archval together, the same in either order.

        Raises:
            ValueError: of another metric or other categories, or an image is in both.
        """
        if self.metric != other.metric or self.category_ids.tolist() != other.category_ids.tolist():
            raise ValueError(f"matches of {self.metric} and {other.metric}, or of other categories")
        image_ids = np.concatenate([self.image_ids, other.image_ids])
        if len(np.unique(image_ids)) < len(image_ids):
            raise ValueError("the two have images in common")
        order = np.argsort(image_ids)
        image = np.argsort(order)[np.concatenate([self.image, other.image + len(self.image_ids)])]
        joined = Matches(
            metric=self.metric,
            image_ids=image_ids[order],
            category_ids=self.category_ids,
            objects=np.concatenate([self.objects, other.objects])[order],
            image=image,
            category=np.concatenate([self.category, other.category]),
            score=np.concatenate([self.score, other.score]),
            hit=np.concatenate([self.hit, other.hit], axis=1),
            counted=np.concatenate([self.counted, other.counted], axis=1),
        )
        return _in_order(joined)

    def to_bytes(self) -> bytes:
        """A compressed .npz; the same matches give the same bytes."""
        arrays = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        for name in ("hit", "counted"):
            arrays[name] = np.packbits(arrays[name], axis=1)
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Matches:
        """What ``to_bytes`` wrote.

        Raises:
            ValueError: it is something else, or cut off.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {field.name: file[field.name] for field in fields(cls)}
        except Exception as error:  # numpy and zipfile raise whatever comes
            raise ValueError(f"not the matches of a candidate ({error})") from error
        for name in ("hit", "counted"):
            bits = np.unpackbits(arrays[name], axis=1, count=len(arrays["score"]))
            arrays[name] = bits.astype(bool)
        return cls(**{**arrays, "metric": str(arrays["metric"])})


def match(
    metric: CocoMetric, detections: Sequence[dict[str, Any]], image_ids: Sequence[Any] | None = None
) -> Matches:
    """Matches of a candidate's detections for a metric.

    Args:
        detections: COCO results, as for the metric; those on other images are left out.
        image_ids: the portion of archval that was detected on; by default all of it.

    Raises:
        ValueError: an image that the metric does not have, or detections that it refuses.
    """
    images = sorted(metric.image_ids if image_ids is None else set(image_ids))
    unknown = set(images).difference(metric.image_ids)
    if unknown:
        raise ValueError(f"images that are not in the ground truth: {sorted(unknown)[:3]}")
    row_of = {image: row for row, image in enumerate(images)}
    column_of = {category: column for column, category in enumerate(metric.category_ids)}
    thresholds = len(PARAMS.iouThrs) if METRICS[metric.metric][0] is None else 1
    objects = np.zeros((len(images), len(metric.category_ids)), dtype=np.int32)
    parts = [(0, 0, np.zeros(0), *np.zeros((2, thresholds, 0), dtype=bool))]
    for entry in metric.matched(detections, images):
        row, column = row_of[entry["image_id"]], column_of[entry["category_id"]]
        objects[row, column] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        matched, ignored = (np.asarray(entry[k]) != 0 for k in ("dtMatches", "dtIgnore"))
        parts.append((row, column, np.asarray(entry["dtScores"], float), matched & ~ignored, ~ignored))
    counts = [len(score) for _, _, score, _, _ in parts]
    rows, columns, scores, hits, counted = zip(*parts)
    matches = Matches(
        metric=f"{metric.task} {metric.metric}",
        image_ids=np.asarray(images),
        category_ids=np.asarray(metric.category_ids),
        objects=objects,
        image=np.repeat(rows, counts),
        category=np.repeat(columns, counts),
        score=np.concatenate(scores),
        hit=np.concatenate(hits, axis=1),
        counted=np.concatenate(counted, axis=1),
    )
    return _in_order(matches)


def _in_order(matches: Matches) -> Matches:
    """Of detections in any order, but for those of one image and category with equal scores."""
    order = np.lexsort((matches.image, -matches.score, matches.category))  # by the last key first
    order = order[matches.counted[:, order].any(0)]
    return replace(
        matches,
        image=matches.image[order].astype(np.int32),
        category=matches.category[order].astype(np.int32),
        score=matches.score[order],
        hit=matches.hit[:, order],
        counted=matches.counted[:, order],
    )


def average_precision(
    weights: np.ndarray, hit: np.ndarray, detected: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """COCOeval's AP of one category at one IoU threshold: (B,) in 0..1.

    The mean over 101 recalls of the best precision at that recall or a higher one. Only hits matter:
    between them recall stands still and precision falls.

    Args:
        weights: (B, N), of the detections, best score first.
        hit: (N,).
        detected: (B, N), the weight of the detections that count, up to each.
        total: (B,), the weight of all objects, above 0.
    """
    at = np.flatnonzero(hit)
    found = np.cumsum(weights[:, at], axis=1)
    precision = found / (detected[:, at] + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(PARAMS.recThrs, found / total[:, None], side="right")  # recalls
    return (np.diff(reached, axis=1, prepend=0) * best).sum(1) / len(PARAMS.recThrs)


def bootstrap(seen: int, images: int, times: int, seed: int) -> np.ndarray:
    """Weights (times, seen) for ``Matches.scores``: each row completes a data set seen in part.

    Every image seen counts once, and the others are drawn from an urn that holds those seen and is
    given a second copy of whatever is drawn (Lo, A Bayesian bootstrap for a finite population, Annals
    of Statistics 16(4), 1988): the more is seen, the less is left to chance.

    Args:
        seen: of ``images``, at least 1.
        images: of the whole data set.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.multinomial(images - seen, share) for share in rng.dirichlet(np.ones(seen), times)]
    return 1.0 + np.array(draws)
