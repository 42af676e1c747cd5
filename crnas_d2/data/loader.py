"""The training loader: its batches are a function of (seed, iteration), so a resumed run goes on.
And the test loader of classifiers, since detectron2's has no batch size.

detectron2's own loader starts over on resume: sampler, the buffers that group images by aspect ratio,
and augmentation. Here the stream of indices is replayed up to the iteration (integers only), a whole
batch is formed for all processes together, and every image is augmented with a seed of its own. So
the images of a batch do not depend on the number of processes either.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from crnas_d2.data.imagenet import ClassificationMapper, is_image_folder
from crnas_d2.errors import InputError
from crnas_d2.seeding import derive_seed
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm

Sample = tuple[int, int]  # (iteration, index into the data set)


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(size)``."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
    return torch.randperm(size, generator=generator).tolist()


def batches(wide: Sequence[bool], batch_size: int, seed: int) -> Iterator[list[int]]:
    """An endless stream of batches of indices; all images of a batch are wide, or none is.

    Args:
        wide: for each image of the data set its group by aspect ratio.
        batch_size: images in a batch of all processes together.
    """
    waiting: dict[bool, list[int]] = {True: [], False: []}
    epoch = 0
    while True:
        for index in epoch_order(len(wide), seed, epoch):
            group = waiting[wide[index]]
            group.append(index)
            if len(group) == batch_size:
                yield group[:]
                group.clear()
        epoch += 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """numpy's, Python's and torch's global random state set to a seed, and put back after."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class NamingMapper:
    """A mapper whose errors name the image.

    Args:
        mapper: as detectron2's DatasetMapper.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        """What the mapper makes of a data set dict.

        Raises:
            InputError: a file that is missing, no image, half of one or of another size, or an
                annotation that cannot be used.
        """
        try:
            return self._mapper(record)
        except InputError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
            # What detectron2 raises as a ValueError is of the annotations, or of the image's size.
            what = "" if isinstance(error, ValueError) else "cannot be read as an image: "
            raise InputError(
                f"{record['file_name']}: {what}{why}; --resume continues when that is fixed"
            ) from error


class SeededDataset(Dataset):
    """Maps (iteration, index) to a training sample, augmented as that iteration's.

    Args:
        dicts: detectron2 data set dicts, each with an ``image_id``.
        mapper: as detectron2's DatasetMapper; may draw from the global random states.
    """

    def __init__(
        self, dicts: list[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], seed: int
    ) -> None:
        self._dicts = DatasetFromList(dicts, copy=False)
        self._mapper = mapper
        self._seed = seed

    def __getitem__(self, sample: Sample) -> Any:
        iteration, index = sample
        record = self._dicts[index]
        with seeded(derive_seed(self._seed, "augment", iteration, record["image_id"])):
            return self._mapper(record)


class TrainLoader:
    """Iterates over this process's shares of the batches, from ``start_iteration`` on.

    Nothing is read before the first ``next``, so that a checkpoint can set ``start_iteration``.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        wide: Sequence[bool],
        batch_size: int,
        seed: int,
        num_workers: int,
        one_size: bool = False,
    ) -> None:
        self.start_iteration = 0
        self._dataset = dataset
        self._wide = wide
        self._batch_size = batch_size
        self._seed = seed
        self._num_workers = num_workers
        self._one_size = one_size

    @property
    def num_images(self) -> int:
        """Images in one epoch."""
        return len(self._wide)

    def _samples(self) -> Iterator[list[Sample]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        share = self._batch_size // world
        for iteration, batch in enumerate(batches(self._wide, self._batch_size, self._seed)):
            if iteration >= self.start_iteration:
                mine = batch[rank * share : (rank + 1) * share]
                yield [(iteration, index) for index in mine]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            self._dataset,
            batch_sampler=self._samples(),
            num_workers=self._num_workers,
            collate_fn=_packed if self._one_size else _as_list,
            generator=torch.Generator(),  # else it draws a seed from the global random state
        )
        yield from map(_unpacked, loader) if self._one_size else loader


def _packed(samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """All images in one tensor: each tensor that a worker hands over takes a file descriptor."""
    rest = [{key: value for key, value in sample.items() if key != "image"} for sample in samples]
    return rest, torch.stack([sample["image"] for sample in samples])


def _unpacked(packed: tuple[list[dict[str, Any]], torch.Tensor]) -> list[dict[str, Any]]:
    return [{**sample, "image": image} for sample, image in zip(*packed)]


def _as_list(samples: list[Any]) -> list[Any]:
    return samples


def check_loading(cfg: CfgNode, processes: int) -> None:
    """What build_train_loader cannot work with in so many processes.

    Raises:
        InputError: no training set, a sampler other than TrainingSampler, a batch that the processes
            and their passes cannot share, or keys of INPUT that go with no augmentation.
    """
    if not cfg.DATASETS.TRAIN:
        raise InputError(
            "DATASETS.TRAIN: (): a training set is needed: a registered name, or a COCO JSON by "
            "DATASETS.TRAIN_JSON and DATASETS.TRAIN_IMAGES"
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN: {cfg.DATALOADER.SAMPLER_TRAIN!r}: allowed is TrainingSampler"
        )
    batch_size, passes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if batch_size < 1 or batch_size % (processes * passes):
        times = f", times the {passes} parts of SOLVER.ACCUMULATE" if passes > 1 else ""
        raise InputError(
            f"SOLVER.IMS_PER_BATCH: {batch_size}: a multiple of the {processes} processes{times} "
            "is needed"
        )
    try:
        convert_PIL_to_numpy(Image.new("RGB", (1, 1)), cfg.INPUT.FORMAT)
        DatasetMapper(cfg, is_train=True)
    except (AssertionError, AttributeError, KeyError, NotImplementedError, ValueError) as error:
        why = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise InputError(f"INPUT: images cannot be read and augmented as it says: {why}") from error


def build_train_loader(cfg: CfgNode, seed: int) -> TrainLoader:
    """The loader of DATASETS.TRAIN: of labelled images for a classifier, else as detectron2's
    build_detection_train_loader reads cfg.

    Raises:
        InputError: as check_loading, or a folder of labelled images that cannot be read.
    """
    check_loading(cfg, comm.get_world_size())
    labelled = all(map(is_image_folder, cfg.DATASETS.TRAIN))
    if labelled:
        dicts = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
        mapper: Callable[[dict[str, Any]], Any] = _classification_mapper(cfg, is_train=True)
        wide = [True] * len(dicts)
    else:
        dicts = _detection_dicts(cfg)
        mapper = DatasetMapper(cfg, is_train=True)
        grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        wide = [not grouped or record["width"] > record["height"] for record in dicts]
    dataset = SeededDataset(dicts, NamingMapper(mapper), seed)
    return TrainLoader(
        dataset,
        wide,
        cfg.SOLVER.IMS_PER_BATCH,
        seed,
        cfg.DATALOADER.NUM_WORKERS,
        one_size=labelled,  # crops
    )


def _detection_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    heads = cfg.MODEL.ROI_KEYPOINT_HEAD
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=heads.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )


def _classification_mapper(cfg: CfgNode, is_train: bool) -> ClassificationMapper:
    return ClassificationMapper(
        crop=cfg.INPUT.CLASSIFIER_CROP,
        test_resize=cfg.INPUT.CLASSIFIER_TEST_RESIZE,
        image_format=cfg.INPUT.FORMAT,
        is_train=is_train,
    )


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """detectron2's test loader, or that of labelled images; errors name the image."""
    if is_image_folder(name):
        return build_classification_test_loader(cfg, name)
    mapper = NamingMapper(DatasetMapper(cfg, is_train=False))
    return build_detection_test_loader(cfg, name, mapper=mapper)


def build_classification_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """Batches of this process's share of labelled images, as large as in training, at most 64."""
    dicts = DatasetFromList(DatasetCatalog.get(name), copy=False)
    dataset = MapDataset(dicts, _classification_mapper(cfg, is_train=False))
    return DataLoader(
        dataset,
        # Each image that a worker hands over takes a file descriptor.
        batch_size=min(max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1), 64),
        sampler=InferenceSampler(len(dataset)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
    )
