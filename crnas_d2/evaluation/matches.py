"""Which detections of a candidate hit, image by image: its AP under any weighting of the images.

Resampling changes only how often each image counts, so no image is looked at twice.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params

PARAMS = Params("bbox")  # COCOeval's: ten IoU thresholds, 101 recalls, area ranges in square pixels
ALL, SMALL, MEDIUM, LARGE = PARAMS.areaRng
# Name: IoU thresholds that it is the mean over, ascending, and area range; in COCOeval.stats' order.
METRICS = {
    "AP": (PARAMS.iouThrs, ALL),
    "AP50": (PARAMS.iouThrs[:1], ALL),
    "AP75": (PARAMS.iouThrs[5:6], ALL),
    "APs": (PARAMS.iouThrs, SMALL),
    "APm": (PARAMS.iouThrs, MEDIUM),
    "APl": (PARAMS.iouThrs, LARGE),
}
GROUPS = 20  # of images, for the standard error of a score
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
        """The metric, (B,) in 0..100, given how many times each image counts, (B, I): COCOeval's number
        on such a data set, but for the order of equal scores; nan where no object counts.
        """
        weights = np.asarray(weights, dtype=float)
        pieces = np.array_split(weights, 1 + len(weights) * len(self.image) // AT_ONCE)
        return np.concatenate([self._scores(some) for some in pieces])

    def _scores(self, weights: np.ndarray) -> np.ndarray:
        totals = weights @ self.objects  # (B, C)
        precisions = np.zeros(totals.shape)
        thresholds = len(METRICS[self.metric][0])
        starts: Any = np.searchsorted(self.category, np.arange(len(self.category_ids) + 1))
        for number, (start, end) in enumerate(zip(starts, starts[1:])):
            of_detections = weights[:, self.image[start:end]]
            total = np.where(totals[:, number] > 0, totals[:, number], 1)  # else left out below
            before = None
            for t in range(thresholds):
                hit, counted = (bits[start:end] >> t & 1 for bits in (self.hit, self.counted))
                if not np.array_equal(counted, before):  # mostly the same as at the threshold before
                    detected, before = np.cumsum(of_detections * counted, axis=1), counted
                precisions[:, number] += average_precision(of_detections, hit, detected, total)
        counts = totals > 0  # COCOeval leaves the other categories out of its mean
        with np.errstate(invalid="ignore"):
            mean = (precisions * counts).sum(1) / counts.sum(1)
        return 100.0 * mean / thresholds

    @classmethod
    def joined(cls, parts: Sequence[Matches]) -> Matches:
        """The matches of portions of archval together, the same in any order of the parts."""
        names = ("image_ids", "objects", "image", "category", "score", "hit", "counted")
        whole = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
        order = np.argsort(whole["image_ids"])
        starts = np.cumsum([0, *(len(part.image_ids) for part in parts[:-1])])
        of_part = np.repeat(starts, [len(part.image) for part in parts])
        whole["image"] = np.argsort(order)[whole["image"] + of_part]
        for name in ("image_ids", "objects"):
            whole[name] = whole[name][order]
        return replace(parts[0], **whole).in_order()

    def in_order(self) -> Matches:
        """Sorted by category, score and image, without what counts at no threshold; a stable order."""
        order = np.lexsort((self.image, -self.score, self.category))  # by the last key first
        order = order[self.counted[order] > 0]
        kinds = dict(image="int32", category="int16", score="float32", hit="uint16", counted="uint16")
        found = {name: getattr(self, name)[order].astype(kind) for name, kind in kinds.items()}
        return replace(self, **found)

    def to_bytes(self) -> bytes:
        """A compressed .npz; the same matches give the same bytes."""
        file = io.BytesIO()
        np.savez_compressed(file, **vars(self))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Matches:
        """What ``to_bytes`` wrote; a ValueError if it is something else, or cut off."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                texts = {name: str(file[name]) for name in ("task", "metric")}
                return cls(**{**file, **texts})
        except Exception as error:  # numpy and zipfile raise whatever comes
            raise ValueError(f"not the matches of a candidate ({error})") from error


def average_precision(
    weights: np.ndarray, hit: np.ndarray, detected: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """COCOeval's AP of one category at one IoU threshold: (B,) in 0..1.

    The mean over 101 recalls of the best precision at that recall or a higher one; only hits matter, as
    between them precision falls. ``weights`` (B, N) and ``hit`` (N,): of detections, best score first;
    ``detected`` (B, N): weight of those counted, up to each; ``total`` (B,): of all objects, above 0.
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


def without_groups(images: int) -> np.ndarray:
    """Weights (groups, images), for a jackknife: each row leaves out one of at most GROUPS groups."""
    groups = min(GROUPS, images)
    return 1.0 - (np.arange(images) % groups == np.arange(groups)[:, None])
