"""Scores of candidates on archval, by way of their matches on disk.

One file a portion of archval and candidate: matches/0/resnet_3-4-6-3_000-0000-000000-000.npz.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError
from crnas_d2.evaluation.batches import FixedBatches, gather_in_order
from crnas_d2.evaluation.matches import Matches, bootstrap, without_groups
from crnas_d2.evaluation.matching import Detections, GroundTruth, match
from crnas_d2.evaluation.path_detector import Group, PathDetector, Statistics
from crnas_d2.files import write_bytes
from crnas_d2.seeding import derive_seed
from detectron2.utils import comm

BOOTSTRAPS = 200
BATCHES_AT_ONCE = 64  # of a rank, between two matchings: the detections of a whole group are in memory


class ArchvalScorer:
    """What a Race compares by (a Scorer); the same on every rank, bit-exact for any number of ranks.

    ``portions`` are the fractions of archval seen after each, ascending; the last one is 1. Matches are
    in ``folder``: rank 0 writes, every rank reads.
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
        of_portions = ([archval.image_ids[number] for number in batches] for batches in self._batches)
        self._image_ids = [sorted(itertools.chain(*batches)) for batches in of_portions]
        self.images = list(itertools.accumulate(map(len, self._image_ids)))
        self._statistics: dict[Architecture, Statistics] = {}  # computed once, used in every portion

    def missing(self, architectures: Group, portion: int) -> list[Architecture]:
        """Those that have no matches of the portion on disk."""
        main = comm.is_main_process()  # on a shared disk the others might cache that a file is missing
        missing = [a for a in architectures if main and not self._path(a, portion).is_file()]
        return comm.all_gather(missing)[0]

    def detect(self, group: Group, portion: int) -> None:
        """Detect on the portion along similar paths; their matches are on disk afterwards."""
        new = [architecture for architecture in group if architecture not in self._statistics]
        if new:
            self._statistics.update(zip(new, self._detector.statistics(new)))
        batches, at_once = self._batches[portion], BATCHES_AT_ONCE * comm.get_world_size()
        starts = range(0, len(batches), at_once)
        parts = [self._detect(group, batches[start : start + at_once]) for start in starts]
        for member, architecture in enumerate(group):
            gathered = comm.gather([part[member] for part in parts if part])
            if comm.is_main_process():
                every = Matches.joined(list(itertools.chain.from_iterable(gathered)))
                write_bytes(self._path(architecture, portion), every.to_bytes())

    def _detect(self, group: Group, batches: Sequence[int]) -> list[Matches]:
        """Matches of each architecture on this rank's share of the batches; empty if it has none."""
        statistics = [self._statistics[architecture] for architecture in group]
        found: list[list[Detections]] = [[] for _ in group]
        rows: list[int] = []
        for number, inputs in self._archval.mine(batches):
            of_batch = [self._truth.row_of[image["image_id"]] for image in inputs]
            rows += of_batch
            task = self._truth.task
            outputs = self._detector.detect(group, statistics, number, inputs, task == "segm")
            for member, instances in outputs:
                found[member].append(Detections.of(instances, of_batch, task))
        parts = [Detections(*map(np.concatenate, zip(*mine))) for mine in found if mine]
        return [match(self._truth, detections, sorted(rows)) for detections in parts]

    def scores(self, architectures: Group, portion: int) -> list[list[float]]:
        """Of each the metric over the images seen up to the portion, nan if they have no object.

        Those over bootstraps of archval follow, the same for all candidates; or, of all of archval,
        those without each of GROUPS groups of images. Raises InputError: a file of matches is damaged,
        or of other images.
        """
        comm.synchronize()  # rank 0 has written the matches
        images, total = self.images[portion], self.images[-1]
        seed = derive_seed(self._seed, "bootstrap", portion)
        others = bootstrap(images, total, BOOTSTRAPS, seed) if images < total else without_groups(total)
        weights = np.append(np.ones((1, images)), others, axis=0)
        mine = []
        for number in range(comm.get_rank(), len(architectures), comm.get_world_size()):
            found = self.matches(architectures[number], portion)
            mine.append((number, found.scores(weights).tolist()))
        return gather_in_order(mine)

    def ensure(self, architectures: Group) -> None:
        """Detect on all of archval what has not been detected, or whose matches have been removed."""
        for portion in range(len(self.images)):
            if missing := self.missing(architectures, portion):
                self.detect(missing, portion)

    def matches(self, architecture: Architecture, portion: int = -1) -> Matches:
        """Of a candidate on the images seen up to the portion, by default on all of archval."""
        portions = range(len(self.images))[: portion + 1 or None]
        return Matches.joined([self._read(architecture, part) for part in portions])

    def subnet_state(self, architecture: Architecture) -> dict[str, Any]:
        """The weights of a candidate's detector without a supernet, with its BatchNorm statistics."""
        (statistics,) = self._detector.statistics([architecture])
        return self._detector.subnet_state(architecture, statistics)

    def _path(self, architecture: Architecture, portion: int) -> Path:
        return self._folder / str(portion) / (str(architecture).replace("/", "_") + ".npz")

    def _read(self, architecture: Architecture, portion: int) -> Matches:
        path, truth = self._path(architecture, portion), self._truth
        try:
            found = Matches.from_bytes(path.read_bytes())
            if found.image_ids.tolist() != self._image_ids[portion]:
                raise ValueError("matches on other images than the portion's")
            if (found.task, found.metric) != (truth.task, truth.metric):
                raise ValueError(f"matches for {found.task} {found.metric}")
        except ValueError as error:
            raise InputError(f"{path}: {error}; delete it, and the images are seen again") from error
        return found
