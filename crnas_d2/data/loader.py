"""The training loader, whose batches are a function of (seed, iteration); and the test loaders.

detectron2's own starts over on resume. Here the stream of indices is replayed up to the iteration, each
batch is formed for all processes together, and each image has a seed of its own for its augmentation.
So batches do not depend on the number of processes either.
"""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from crnas_d2.data.imagenet import ClassificationMapper, is_image_folder
from crnas_d2.errors import InputError
from crnas_d2.seeding import derive_seed
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MapDataset
from detectron2.data.build import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm

T = TypeVar("T")
Sample = tuple[int, int]  # (iteration, index into the data set)
Mapper = Callable[[dict[str, Any]], Any]  # as detectron2's DatasetMapper


def batches(wide: Sequence[bool], batch_size: int, seed: int) -> Iterator[list[int]]:
    """An endless stream of batches of indices; all images of a batch are wide, or none is."""
    waiting: dict[bool, list[int]] = {True: [], False: []}
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        for index in torch.randperm(len(wide), generator=generator).tolist():
            group = waiting[wide[index]]
            group.append(index)
            if len(group) == batch_size:
                yield group[:]
                group.clear()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set the global random states of Python, numpy and torch's CPU, and restore them after."""
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


@dataclass(frozen=True)
class NamingMapper:
    """A mapper of data set dicts, as detectron2's DatasetMapper, whose errors name the image.

    Raises InputError: a file that is missing, no image, truncated or of another size; bad annotations.
    """

    mapper: Mapper
    trains: bool = False

    def __call__(self, record: dict[str, Any]) -> Any:
        try:
            return self.mapper(record)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
            # detectron2's ValueErrors are about annotations, or about the image's size.
            if not isinstance(error, ValueError):
                after = "; replace it, and --resume continues the training" if self.trains else ""
                why = f"cannot be read as an image: {why}{after}"
            raise InputError(f"{record['file_name']}: {why}") from error


def from_main(value: T) -> T:
    """Rank 0's value, on every rank."""
    shared = [value]
    if comm.get_world_size() > 1:  # gloo: NCCL would need GPU memory
        dist.broadcast_object_list(shared, src=0, group=comm._get_global_gloo_group())
    return shared[0]


class Records(Sequence):
    """Rank 0's data set dicts as bytes, which DataLoader workers share with their process."""

    def __init__(self, dicts: Sequence[dict[str, Any]]) -> None:
        pickled = [pickle.dumps(record, protocol=-1) for record in dicts]
        ends = list(itertools.accumulate(map(len, pickled)))
        self._ends, self._data = from_main((ends, b"".join(pickled)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._data[start : self._ends[index]])


@dataclass(frozen=True)
class SeededDataset(Dataset):
    """Maps (iteration, index) to a training sample, with that iteration's augmentation."""

    records: Sequence[dict[str, Any]]
    mapper: Mapper
    seed: int

    def __getitem__(self, sample: Sample) -> Any:
        iteration, index = sample
        record = self.records[index]
        with seeded(derive_seed(self.seed, "augment", iteration, record["image_id"])):
            return self.mapper(record)


@dataclass
class TrainLoader:
    """Iterates over this process's shares of the batches, from ``start_iteration`` on.

    Nothing is read before the first ``next``, so that a checkpoint can set ``start_iteration``.
    ``wide``: each image's group by aspect ratio; ``batch_size``: of all processes together.
    """

    dataset: SeededDataset
    wide: Sequence[bool]
    batch_size: int
    num_workers: int
    start_iteration: int = 0

    @property
    def num_images(self) -> int:
        return len(self.wide)

    def _samples(self) -> Iterator[list[Sample]]:
        share = self.batch_size // comm.get_world_size()
        mine = slice(comm.get_rank() * share, (comm.get_rank() + 1) * share)
        for iteration, batch in enumerate(batches(self.wide, self.batch_size, self.dataset.seed)):
            if iteration >= self.start_iteration:
                yield [(iteration, index) for index in batch[mine]]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=self._samples(),
            num_workers=self.num_workers,
            collate_fn=_packed,
            generator=torch.Generator(),  # else it draws a seed from the global random state
        )
        for samples, images in loader:
            yield [{**sample, "image": image} for sample, image in zip(samples, images)]


def _packed(samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Sequence[torch.Tensor]]:
    """The images in one tensor if they can be: each tensor from a worker takes a file descriptor."""
    images = [sample.pop("image") for sample in samples]
    return samples, torch.stack(images) if len({image.shape for image in images}) == 1 else images


def check_loading(cfg: CfgNode) -> None:
    """build_train_loader can work with the config in these processes; else InputError."""
    batch_size, passes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    processes = comm.get_world_size()
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN: (): a registered name is needed, or DATASETS.TRAIN_JSON")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        sampler = cfg.DATALOADER.SAMPLER_TRAIN
        raise InputError(f"DATALOADER.SAMPLER_TRAIN: {sampler!r}: allowed is TrainingSampler")
    if batch_size < 1 or batch_size % (processes * passes):
        of = f"{processes} processes times SOLVER.ACCUMULATE {passes}"
        needed = f"a multiple of {processes * passes} is needed, at least one ({of})"
        raise InputError(f"SOLVER.IMS_PER_BATCH: {batch_size}: {needed}")
    try:
        convert_PIL_to_numpy(Image.new("RGB", (1, 1)), cfg.INPUT.FORMAT)
        DatasetMapper(cfg, is_train=True)
    except (AssertionError, AttributeError, KeyError, NotImplementedError, ValueError) as error:
        why = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise InputError(f"INPUT: images cannot be read and augmented: {why}") from error


def build_train_loader(cfg: CfgNode, seed: int) -> TrainLoader:
    """Of labelled images for a classifier, else as detectron2's build_detection_train_loader reads cfg.

    Raises InputError: as check_loading and load_image_folder.
    """
    check_loading(cfg)
    labelled = all(map(is_image_folder, cfg.DATASETS.TRAIN))
    dicts = _read(cfg, labelled) if comm.is_main_process() else []
    alike = labelled or not cfg.DATALOADER.ASPECT_RATIO_GROUPING
    wide = [alike or record["width"] > record["height"] for record in dicts]
    dataset = SeededDataset(Records(dicts), _mapper(cfg, labelled, is_train=True), seed)
    return TrainLoader(dataset, from_main(wide), cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS)


def _read(cfg: CfgNode, labelled: bool) -> list[dict[str, Any]]:
    if labelled:
        return [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )


def _mapper(cfg: CfgNode, labelled: bool, is_train: bool) -> NamingMapper:
    if not labelled:
        return NamingMapper(DatasetMapper(cfg, is_train=is_train), is_train)
    crop, resize = cfg.INPUT.CLASSIFIER_CROP, cfg.INPUT.CLASSIFIER_TEST_RESIZE
    return NamingMapper(ClassificationMapper(crop, resize, cfg.INPUT.FORMAT, is_train), is_train)


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """detectron2's, with errors that name the image; or batches of labelled images, as in training."""
    labelled = is_image_folder(name)
    mapper = _mapper(cfg, labelled, is_train=False)
    if not labelled:
        return build_detection_test_loader(cfg, name, mapper=mapper)
    dataset = MapDataset(DatasetCatalog.get(name), mapper)
    share = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    return DataLoader(
        dataset,
        batch_size=min(max(share, 1), 64),  # each image from a worker takes a file descriptor
        sampler=InferenceSampler(len(dataset)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
    )
