"""The training loader: batches as a function of (seed, iteration), for any number of processes."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from crnas_d2.config import add_crnas_config
from crnas_d2.data import loader
from crnas_d2.data.datasets import register_coco
from crnas_d2.data.loader import batches, build_train_loader
from crnas_d2.data.shapes import make_shapes
from crnas_d2.errors import InputError
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

WIDE, TALL, BATCH = 7, 4, 4


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> CfgNode:
    """Seven wide images and four tall ones, with flips and two sizes."""
    folder = tmp_path_factory.mktemp("loader")
    cfg = get_cfg()
    add_crnas_config(cfg)
    for name, count, size in (("wide", WIDE, (40, 64)), ("tall", TALL, (64, 40))):
        make_shapes(folder / name, count, 1, size=size)
        register_coco(
            f"{name} in {folder}", str(folder / name / "train.json"), str(folder / name / "images")
        )
    cfg.DATASETS.TRAIN = (f"wide in {folder}", f"tall in {folder}")
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 40)
    cfg.SOLVER.IMS_PER_BATCH = BATCH
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def take(cfg: CfgNode, count: int, start: int = 0, seed: int = 3) -> list[list[dict[str, Any]]]:
    train_loader = build_train_loader(cfg, seed)
    train_loader.start_iteration = start
    return list(itertools.islice(train_loader, count))


def assert_same(ours: list[list[dict[str, Any]]], theirs: list[list[dict[str, Any]]]) -> None:
    assert [len(batch) for batch in ours] == [len(batch) for batch in theirs]
    for a, b in zip(itertools.chain(*ours), itertools.chain(*theirs)):
        assert a.keys() == b.keys()
        assert (a["file_name"], a["image_id"]) == (b["file_name"], b["image_id"])
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)


# ---- the stream of indices -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wide", "tall", "size"), [(10, 0, 4), (7, 4, 4), (13, 3, 5), (3, 9, 3), (1, 20, 4), (2, 2, 8)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_group_goes_through_each_epoch_once(wide: int, tall: int, size: int, seed: int) -> None:
    is_wide = random.Random(0).sample([True] * wide + [False] * tall, wide + tall)
    stream: dict[bool, list[int]] = {True: [], False: []}
    for batch in itertools.islice(batches(is_wide, size, seed), 120):
        assert len(batch) == size
        (group,) = {is_wide[index] for index in batch}  # never mixed
        stream[group] += batch
    for group, indices in stream.items():
        members = [index for index, value in enumerate(is_wide) if value == group]
        assert bool(indices) == bool(members)
        # The stream of a group is one permutation of its images after the other.
        for start in range(0, len(indices) - len(members) + 1, max(len(members), 1)):
            assert sorted(indices[start : start + len(members)]) == members
    counts = Counter(stream[True] + stream[False])
    assert max(counts.values()) - min(counts.values()) <= 2 * size  # no image is left behind


def test_the_stream_is_a_function_of_the_seed() -> None:
    def first(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        random.seed(seed)
        return list(itertools.islice(batches([True] * 8 + [False] * 5, 3, seed), 30))

    torch.manual_seed(99)
    assert first(0) == first(0)
    assert all(len(batch) == 3 for batch in first(0))  # none shares memory with a later one
    assert first(0) != first(1)
    epochs = list(itertools.islice(batches([True] * 20, 20, 0), 10))
    assert len({tuple(order) for order in epochs}) == 10
    assert all(sorted(order) == list(range(20)) for order in epochs)


# ---- samples -------------------------------------------------------------------------------------


def test_the_images_of_a_batch_have_one_orientation(cfg: CfgNode) -> None:
    seen = set()
    for batch in take(cfg, 20):
        (orientation,) = {sample["width"] > sample["height"] for sample in batch}
        seen.add(orientation)
    assert seen == {True, False}
    mixed = cfg.clone()
    mixed.DATALOADER.ASPECT_RATIO_GROUPING = False
    assert any(len({s["width"] > s["height"] for s in batch}) == 2 for batch in take(mixed, 20))


def test_images_are_augmented_anew_in_each_iteration(cfg: CfgNode) -> None:
    """Flips and sizes vary, so the comparisons of samples below compare something."""
    views: dict[str, set[bytes]] = {}
    sizes = set()
    for sample in itertools.chain(*take(cfg, 30)):
        views.setdefault(sample["file_name"], set()).add(sample["image"].numpy().tobytes())
        sizes.add(min(sample["image"].shape[1:]))
    assert sizes == {32, 40}
    assert len(views) == WIDE + TALL
    assert max(map(len, views.values())) == 4  # two sizes, each with its mirror image
    assert sum(map(len, views.values())) > 3 * len(views)


@pytest.mark.parametrize("start", [1, 2, 5, 9])
def test_a_resumed_loader_gives_the_same_samples(cfg: CfgNode, start: int) -> None:
    whole = take(cfg, 14)
    torch.manual_seed(start)
    np.random.seed(start)
    random.seed(start)
    assert_same(take(cfg, 14 - start, start=start), whole[start:])
    with pytest.raises(AssertionError):
        assert_same(take(cfg, 14 - start, start=start - 1), whole[start:])


def test_the_start_may_be_set_after_iter_was_called(cfg: CfgNode) -> None:
    """detectron2's trainer calls iter at once, and only then loads the checkpoint."""
    train_loader = build_train_loader(cfg, 3)
    iterator = iter(train_loader)
    train_loader.start_iteration = 4
    assert_same(list(itertools.islice(iterator, 2)), take(cfg, 6)[4:])


def test_workers_make_no_difference(cfg: CfgNode) -> None:
    with_workers = cfg.clone()
    with_workers.DATALOADER.NUM_WORKERS = 2
    assert_same(take(with_workers, 6, start=2), take(cfg, 6, start=2))


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_all_processes_make_the_one_batch(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    alone = take(cfg, 8, start=1)
    shares = []
    monkeypatch.setattr(loader.comm, "get_world_size", lambda: world)
    # What rank 0 would send, each reads for itself here.
    monkeypatch.setattr(loader.comm, "is_main_process", lambda: True)
    monkeypatch.setattr(loader, "Records", list)
    monkeypatch.setattr(loader, "from_main", lambda value: value)
    for rank in range(world):
        monkeypatch.setattr(loader.comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(cfg, 8, start=1))
    assert all(len(batch) == BATCH // world for share in shares for batch in share)
    assert_same([list(itertools.chain(*parts)) for parts in zip(*shares)], alone)


@pytest.fixture
def watched() -> Iterator[None]:
    """Fails the test if a global random state has changed at its end."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1]))
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("start", [0, 5])
def test_iterating_leaves_the_global_random_states_alone(cfg: CfgNode, start: int) -> None:
    assert len(take(cfg, 4, start=start)) == 4


@pytest.mark.usefixtures("watched")
def test_an_error_in_the_mapper_leaves_the_global_random_states_alone() -> None:
    def fails(record: dict[str, Any]) -> None:
        np.random.rand()
        torch.rand(1)
        random.random()
        raise OSError("no such image")

    dataset = loader.SeededDataset([{"image_id": 1}], fails, seed=0)
    with pytest.raises(OSError):
        dataset[0, 0]


def test_a_draw_is_a_function_of_seed_iteration_and_image() -> None:
    def draw(record: dict[str, Any]) -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    records = [{"image_id": image} for image in (5, 6, "a")]

    def draws(seed: int) -> list[tuple[float, float, float]]:
        dataset = loader.SeededDataset(records, draw, seed)
        return [dataset[iteration, index] for iteration in range(5) for index in range(3)]

    assert draws(0) == draws(0)
    everything = draws(0) + draws(1)
    for source in zip(*everything):
        assert len(set(source)) == 2 * 5 * 3
    dataset = loader.SeededDataset(records[::-1], draw, 0)  # the image counts, not its place
    assert [dataset[0, index] for index in (2, 1, 0)] == draws(0)[:3]


# ---- what it refuses -----------------------------------------------------------------------------


REFUSED = [
    ("DATALOADER.SAMPLER_TRAIN", "RepeatFactor", 1, "{key}: 'RepeatFactor': ", "TrainingSampler"),
    ("INPUT.FORMAT", "CMY", 1, "INPUT: images cannot be read and augmented: ", "CMY"),
    (
        "SOLVER.IMS_PER_BATCH",
        4,
        3,
        "{key}: 4: ",
        "a multiple of 3 is needed, at least one (3 processes",
    ),
    (
        "SOLVER.IMS_PER_BATCH",
        1,
        2,
        "{key}: 1: ",
        "a multiple of 2 is needed, at least one (2 processes",
    ),
    ("SOLVER.IMS_PER_BATCH", 0, 1, "{key}: 0: ", "a multiple of 1 is needed, at least one"),
    (
        "SOLVER.IMS_PER_BATCH",
        -4,
        2,
        "{key}: -4: ",
        "a multiple of 2 is needed, at least one (2 processes",
    ),
    (
        "SOLVER.ACCUMULATE",
        4,
        2,
        "SOLVER.IMS_PER_BATCH: 4: ",
        "a multiple of 8 is needed, at least one (2 processes times SOLVER.ACCUMULATE 4)",
    ),
]


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("entry", ["file_name", "width"])
def test_only_a_file_in_training_is_to_be_replaced(is_train: bool, entry: str, cfg: CfgNode) -> None:
    """An entry of another width is no fault of the file, and a test is not continued."""
    record = {**DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]}
    record[entry] = {"file_name": __file__, "width": 65}[entry]
    with pytest.raises(InputError) as caught:
        loader._mapper(cfg, labelled=False, is_train=is_train)(record)
    ends = "; replace it, and --resume continues the training"
    assert str(caught.value).endswith(ends) == (is_train and entry == "file_name")
    assert str(caught.value).startswith(f"{record['file_name']}: ")


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_refuses(case: tuple[Any, ...], cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    key, value, world, start, end = case
    other = cfg.clone()
    other.merge_from_list([key, value])
    monkeypatch.setattr(loader.comm, "get_world_size", lambda: world)
    with pytest.raises(InputError) as caught:
        build_train_loader(other, 0)
    assert str(caught.value).startswith(start.format(key=key)) and end in str(caught.value)
    assert "\n" not in str(caught.value)
