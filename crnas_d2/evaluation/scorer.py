"""Scores of candidates on archval, by way of their matches on disk.

One file a portion of archval and candidate: matches/0/resnet_3-4-6-3_000-0000-000000-000.npz. At COCO
size (5,000 images, 100 detections each) it has about 2.9 MB. After a search the journal has all scores,
and the folder may be deleted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError
from crnas_d2.evaluation.batches import FixedBatches, gather_in_order
from crnas_d2.evaluation.ground_truth import GroundTruth
from crnas_d2.evaluation.matches import Matches, bootstrap
from crnas_d2.evaluation.matching import Detections, match
from crnas_d2.evaluation.path_detector import Group, PathDetector
from crnas_d2.evaluation.recalibration import Statistics
from crnas_d2.files import write_bytes
from crnas_d2.seeding import derive_seed
from detectron2.utils import comm

BOOTSTRAPS = 200
MATCHED_AT_ONCE = 512  # images of a rank; until then, the detections of a whole group are in memory


class ArchvalScorer:
    """What a Race compares by (a Scorer); the same on every rank, bit-exact for any number of ranks.

    Args:
        folder: of the matches; rank 0 writes, every rank reads.
        portions: fractions of archval seen after each portion, ascending; the last one is 1.
        seed: of the bootstraps.
    """

    def __init__(
        self,
        detector: PathDetector,
        archval: FixedBatches,
        truth: GroundTruth,
        folder: Path,
        portions: Sequence[float] = (1.0,),
        seed: int = 0,
    ) -> None:
        self._detector, self._archval, self._truth = detector, archval, truth
        self._folder, self._seed = folder, seed
        order = archval.order
        ends = sorted({max(1, round(len(order) * fraction)) for fraction in portions})
        self._batches = [order[start:end] for start, end in zip([0, *ends], ends)]
        self.images = list(itertools.accumulate(len(self._rows(b)) for b in self._batches))
        self._statistics: dict[Architecture, Statistics] = {}  # a candidate comes once a portion

    def missing(self, architectures: Group, portion: int) -> list[Architecture]:
        """Those that have no matches of the portion on disk."""
        missing: list[Architecture] = []
        if comm.is_main_process():  # on a shared disk the others might cache that a file is missing
            missing = [a for a in architectures if not self._path(a, portion).is_file()]
        return comm.all_gather(missing)[0]

    def detect(self, group: Group, portion: int) -> None:
        """Detect on the portion along similar paths; their matches are on disk afterwards."""
        new = [architecture for architecture in group if architecture not in self._statistics]
        if new:
            self._statistics.update(zip(new, self._detector.statistics(new)))
        batches, largest = self._batches[portion], max(map(len, self._archval.image_ids))
        size = comm.get_world_size() * max(1, MATCHED_AT_ONCE // largest)
        parts = [self._detect(group, batches[i : i + size]) for i in range(0, len(batches), size)]
        for architecture, mine in zip(group, zip(*parts)):
            gathered = comm.gather([matches for matches in mine if matches is not None])
            if comm.is_main_process():
                every = Matches.joined([matches for part in gathered for matches in part])
                write_bytes(self._path(architecture, portion), every.to_bytes())

    def scores(self, architectures: Group, portion: int) -> list[list[float]]:
        """Of each the metric over the images seen up to the portion, nan if they have no object.

        Unless they are all of archval, those over bootstraps of it follow, the same for all candidates.

        Raises:
            InputError: a file of matches is damaged, or of other images.
        """
        comm.synchronize()  # rank 0 has written the matches
        images = self.images[portion]
        weights = np.ones((1, images))
        if images < self.images[-1]:
            seed = derive_seed(self._seed, "bootstrap", portion)
            weights = np.append(weights, bootstrap(images, self.images[-1], BOOTSTRAPS, seed), axis=0)
        mine = []
        for number in range(comm.get_rank(), len(architectures), comm.get_world_size()):
            matches = self.matches(architectures[number], portion)
            mine.append((number, matches.scores(weights).tolist()))
        return gather_in_order(mine)

    def matches(self, architecture: Architecture, portion: int) -> Matches:
        """On all images up to the portion, from disk."""
        return Matches.joined([self._read(architecture, part) for part in range(portion + 1)])

    def _detect(self, group: Group, batches: Sequence[int]) -> list[Matches | None]:
        """Matches of each architecture on this rank's share of the batches; None if it has none."""
        statistics = [self._statistics[architecture] for architecture in group]
        found: list[list[Detections]] = [[] for _ in group]
        mine = []
        for number, inputs in self._archval.mine(batches):
            mine.append(number)
            rows = [self._truth.row_of[image["image_id"]] for image in inputs]
            outputs = self._detector.detect(group, statistics, number, inputs)
            for member, instances in enumerate(outputs):
                found[member].append(Detections.of(instances, rows, self._truth.task))
        rows = self._rows(mine)
        return [match(self._truth, Detections.joined(of), rows) if of else None for of in found]

    def _rows(self, batches: Sequence[int]) -> list[int]:
        ids = self._archval.image_ids
        return sorted(self._truth.row_of[image] for number in batches for image in ids[number])

    def _path(self, architecture: Architecture, portion: int) -> Path:
        return self._folder / str(portion) / (str(architecture).replace("/", "_") + ".npz")

    def _read(self, architecture: Architecture, portion: int) -> Matches:
        path, truth = self._path(architecture, portion), self._truth
        expected = [truth.image_ids[row] for row in self._rows(self._batches[portion])]
        try:
            found = Matches.from_bytes(path.read_bytes())
            if found.image_ids.tolist() != expected:
                raise ValueError("matches on other images than the portion's")
            if (found.task, found.metric) != (truth.task, truth.metric):
                raise ValueError(f"matches for {found.task} {found.metric}")
        except ValueError as error:
            raise InputError(f"{path}: {error}; delete it, and the images are seen again") from error
        return found
