"""Which detections of a candidate hit, image by image: its AP under any weighting of the images.

Resampled images only count another number of times, so comparisons need no second look at an image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from crnas_d2.evaluation.ground_truth import PARAMS, thresholds_of

AT_ONCE = 2**22  # weights (bootstraps x detections) in memory at a time: 32 MB an array


@dataclass(frozen=True, eq=False)
class Matches:
    """A candidate's matches on I images of C categories.

    N detections that count at one IoU threshold at least: by category, best score first, equal scores
    in the order of the images. Bit t of ``hit`` and ``counted`` is of IoU threshold number t.
    """

    task: str
    metric: str
    image_ids: np.ndarray  # (I,), ascending
    category_ids: np.ndarray  # (C,), ascending
    objects: np.ndarray  # (I, C), those that count
    image: np.ndarray  # (N,), index
    category: np.ndarray  # (N,), index
    score: np.ndarray  # (N,), float32
    hit: np.ndarray  # (N,), uint16: whether it is matched to an object that counts
    counted: np.ndarray  # (N,), uint16: whether it is not ignored

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """The metric, (B,) in 0..100; nan where no object counts.

        Args:
            weights: (B, I), how many times each image counts, else a ValueError. Integers give
                COCOeval's number on a data set that holds each image so many times, but for the order
                of equal scores.
        """
        weights = np.asarray(weights, dtype=np.float64)
        fit = weights.ndim == 2 and weights.shape[1] == len(self.image_ids)
        if not fit or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(
                f"weights: (B, {len(self.image_ids)}), finite and not negative, are needed"
            )
        there = weights.any(0)[self.image]  # the others would only add zeros
        pieces = np.array_split(weights, 1 + len(weights) * len(self.image) // AT_ONCE)
        return np.concatenate([self._scores(some, there) for some in pieces])

    def _scores(self, weights: np.ndarray, there: np.ndarray) -> np.ndarray:
        totals = weights @ self.objects  # (B, C)
        precisions = np.zeros(totals.shape)
        thresholds = len(thresholds_of(self.metric))
        for number in range(len(self.category_ids)):
            mine = np.flatnonzero(there & (self.category == number))
            of_detections = weights[:, self.image[mine]]
            total = np.where(totals[:, number] > 0, totals[:, number], 1)  # else left out below
            detected: dict[bytes, np.ndarray] = {}  # mostly the same at all thresholds
            for t in range(thresholds):
                hit, counted = (bits[mine] >> t & 1 for bits in (self.hit, self.counted))
                key = counted.tobytes()
                if key not in detected:
                    detected[key] = np.cumsum(of_detections * counted, axis=1)
                precisions[:, number] += average_precision(of_detections, hit, detected[key], total)
        counts = totals > 0  # COCOeval leaves the other categories out of its mean
        with np.errstate(invalid="ignore"):
            mean = (precisions * counts).sum(1) / counts.sum(1)
        return 100.0 * mean / thresholds

    @classmethod
    def joined(cls, parts: Sequence[Matches]) -> Matches:
        """The matches of portions of archval together, the same in any order of the parts.

        Raises:
            ValueError: of different metrics or categories, or an image is in two parts.
        """
        if len({(part.task, part.metric, *part.category_ids.tolist()) for part in parts}) > 1:
            raise ValueError("matches for different metrics or of different categories")
        whole = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name not in ("task", "metric", "category_ids")
        }
        order = np.argsort(whole["image_ids"])
        if len(np.unique(whole["image_ids"])) < len(order):
            raise ValueError("two parts have images in common")
        starts = np.cumsum([0, *(len(part.image_ids) for part in parts[:-1])])
        of_part = np.repeat(starts, [len(part.image) for part in parts])
        whole["image"] = np.argsort(order)[whole["image"] + of_part]
        for name in ("image_ids", "objects"):
            whole[name] = whole[name][order]
        return replace(parts[0], **whole).in_order()

    def in_order(self) -> Matches:
        """Of detections in any order, but for those of one image and category with equal scores."""
        order = np.lexsort((self.image, -self.score, self.category))  # by the last key first
        order = order[self.counted[order] > 0]
        kinds = dict(image="int32", category="int16", score="float32", hit="uint16", counted="uint16")
        found = {name: getattr(self, name)[order].astype(kind) for name, kind in kinds.items()}
        return replace(self, **found)

    def to_bytes(self) -> bytes:
        """A compressed .npz; the same matches give the same bytes."""
        file = io.BytesIO()
        np.savez_compressed(file, **{f.name: np.asarray(getattr(self, f.name)) for f in fields(self)})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Matches:
        """What ``to_bytes`` wrote; a ValueError if it is something else, or cut off."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {field.name: file[field.name] for field in fields(cls)}
        except Exception as error:  # numpy and zipfile raise whatever comes
            raise ValueError(f"not the matches of a candidate ({error})") from error
        return cls(**{**arrays, "task": str(arrays["task"]), "metric": str(arrays["metric"])})


def average_precision(
    weights: np.ndarray, hit: np.ndarray, detected: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """COCOeval's AP of one category at one IoU threshold: (B,) in 0..1.

    The mean over 101 recalls of the best precision at that recall or a higher one. Only hits matter:
    between them recall stands still and precision falls.

    Args:
        weights, hit: (B, N) and (N,), of the detections, best score first.
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
    """Weights (times, seen): each row completes a data set of ``images``, at least 1 of them seen.

    Every image seen counts once, and the others are drawn from an urn that holds those seen and is
    given a second copy of whatever is drawn (Lo, A Bayesian bootstrap for a finite population, Annals
    of Statistics 16(4), 1988): the more is seen, the less is left to chance.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.multinomial(images - seen, share) for share in rng.dirichlet(np.ones(seen), times)]
    return 1.0 + np.array(draws)
