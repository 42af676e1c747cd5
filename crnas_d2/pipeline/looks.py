"""What candidates of a race have seen of archval: their matches, kept on disk by rank 0.

One file a portion and candidate: OUTPUT_DIR/stage/matches/0/resnet_3-4-6-3_000-0000-000000-000.npz
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.evaluation.batches import gather_in_order
from crnas_d2.evaluation.matches import Matches, bootstrap
from crnas_d2.files import write_bytes
from crnas_d2.search.race import portions
from crnas_d2.seeding import derive_seed
from detectron2.utils import comm

BOOTSTRAPS = 200


class ArchvalLooks:
    """Race's looks: portions are batches of archval in the order in which they were dealt.

    Args:
        scorer: detects.
        folder: of the matches; rank 0 writes, every process reads.
        seed: of the bootstraps.
    """

    def __init__(self, scorer: ArchvalScorer, folder: Path, seed: int) -> None:
        self._scorer = scorer
        self._folder = folder
        self._seed = seed
        ids, dealt = scorer.archval.image_ids, scorer.archval.dealt
        ends = portions(len(ids))
        self._batches = [dealt[start:end] for start, end in zip([0, *ends], ends)]
        counts = [sum(len(ids[number]) for number in batches) for batches in self._batches]
        self.images = list(itertools.accumulate(counts))

    def missing(self, architectures: Sequence[Architecture], portion: int) -> list[Architecture]:
        """Those whose matches are not on disk."""
        missing: list[Architecture] = []
        if comm.is_main_process():  # on a shared disk others might remember that a file is not there
            missing = [a for a in architectures if not self._path(a, portion).is_file()]
        return comm.all_gather(missing)[0]

    def look(self, group: Sequence[Architecture], portion: int) -> None:
        """Detect on the portion, and write the matches through to disk."""
        for architecture, found in zip(group, self._scorer.matches(group, self._batches[portion])):
            path = self._path(architecture, portion)
            write_bytes(path, found.to_bytes())

    def scores(self, architectures: Sequence[Architecture], portion: int) -> list[list[float]]:
        """Of each the metric over the images seen up to the portion, then over bootstraps of them.

        Raises:
            InputError: a file of matches is damaged.
        """
        comm.synchronize()  # rank 0 has written the matches
        images = self.images[portion]
        weights = np.ones((1, images))
        if images < self.images[-1]:
            seed = derive_seed(self._seed, "bootstrap", portion)
            draws = bootstrap(images, self.images[-1], BOOTSTRAPS, seed)
            weights = np.concatenate([weights, draws])
        rank, world = comm.get_rank(), comm.get_world_size()
        mine = [
            (number, self._matches(architecture, portion).scores(weights).tolist())
            for number, architecture in enumerate(architectures)
            if number % world == rank
        ]
        return gather_in_order(mine)

    def _matches(self, architecture: Architecture, portion: int) -> Matches:
        """On all images up to the portion."""
        seen = [self._read(architecture, number) for number in range(portion + 1)]
        return functools.reduce(Matches.joined, seen)

    def _path(self, architecture: Architecture, portion: int) -> Path:
        return self._folder / str(portion) / (str(architecture).replace("/", "_") + ".npz")

    def _read(self, architecture: Architecture, portion: int) -> Matches:
        path = self._path(architecture, portion)
        ids = self._scorer.archval.image_ids
        expected = sorted(image for number in self._batches[portion] for image in ids[number])
        try:
            found = Matches.from_bytes(path.read_bytes())
            if found.image_ids.tolist() != expected:
                raise ValueError("matches on other images than the portion's")
        except ValueError as error:
            raise InputError(f"{path}: {error}; remove it, then it is made again") from error
        return found
