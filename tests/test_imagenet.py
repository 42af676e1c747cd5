"""Labelled images in folders: what is read, how it is augmented and batched, what is refused."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import COLOURS, HEIGHT, WIDTH, make_image_folder, register, tiny_classifier
from PIL import Image

from crnas_d2.data import loader
from crnas_d2.data.imagenet import (
    ClassificationMapper,
    check_imagenet,
    is_image_folder,
    load_image_folder,
)
from crnas_d2.data.loader import NamingMapper, build_test_loader, build_train_loader, seeded
from crnas_d2.errors import InputError
from detectron2.data import MetadataCatalog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train with twelve images a class, val with four."""
    tiny_classifier(tmp_path / "data", tmp_path / "out")
    return tmp_path / "data"


def mapper(is_train: bool, image_format: str = "RGB", test_resize: int = 36) -> NamingMapper:
    return NamingMapper(ClassificationMapper(32, test_resize, image_format, is_train))


# ---- what is read --------------------------------------------------------------------------------


def test_a_folder_is_a_class(folder: Path) -> None:
    (folder / "train" / "n01" / "notes.txt").write_text("not an image")
    (folder / "train" / "LICENSE").write_text("not a class")
    dicts = load_image_folder(str(folder / "train"), str(folder / "train"))
    expected = {
        (str(path), f"{name}/{path.name}", label)
        for label, name in enumerate(sorted(COLOURS))
        for path in (folder / "train" / name).glob("*.JPEG")
    }
    assert len(dicts) == len(expected) == 36
    assert {(d["file_name"], d["image_id"], d["label"]) for d in dicts} == expected
    assert [d["file_name"] for d in dicts] == sorted(d["file_name"] for d in dicts)
    with_slash = load_image_folder(f"{folder / 'train'}/", str(folder / "train"))
    assert {d["image_id"] for d in with_slash} == {d["image_id"] for d in dicts}


def test_labels_are_those_of_train(folder: Path) -> None:
    """Also where val lacks a class, so that its own numbers would be others."""
    shutil.rmtree(folder / "val" / "n01")
    dicts = load_image_folder(str(folder / "val"), str(folder / "train"))
    assert check_imagenet(register(folder / "val", folder / "train"), "KEY") == sorted(COLOURS)
    assert {(d["image_id"][:3], d["label"]) for d in dicts} == {("n02", 1), ("n03", 2)}


def test_imagenet_is_registered() -> None:
    for split in ("train", "val"):
        assert is_image_folder(f"imagenet_{split}")
        metadata = MetadataCatalog.get(f"imagenet_{split}")
        assert metadata.image_root.endswith(f"/imagenet/{split}")
        assert metadata.class_root.endswith("/imagenet/train")
    assert not is_image_folder("bccd_train") and not is_image_folder("no such set")
    assert "no such set" not in MetadataCatalog.list()


# ---- augmentation --------------------------------------------------------------------------------


def image_of(folder: Path) -> dict[str, Any]:
    """A picture whose pixels say where they are: red the row, green the column, blue 7."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.dstack([rows, columns, np.full_like(rows, 7)]).astype(np.uint8)
    path = folder / "places.JPEG"
    Image.fromarray(pixels).save(path, format="PNG")
    return {"file_name": str(path), "image_id": "places", "label": 1}


def test_a_test_image_is_the_middle_of_the_resized_one(tmp_path: Path) -> None:
    record = image_of(tmp_path)
    found = mapper(False, test_resize=HEIGHT)(record)  # its shorter side: nothing is resized
    assert {key: found[key] for key in record} == record
    image = found["image"]
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 32)
    rows, columns = np.mgrid[4:36, 9:41]
    expected = np.stack([rows, columns, np.full_like(rows, 7)])
    assert np.array_equal(image.numpy(), expected)
    smaller = mapper(False, test_resize=HEIGHT * 2)(record)["image"]
    assert smaller[0].min() >= 11 and smaller[0].max() <= 28  # rows 12 to 28 of the original


def test_the_order_of_the_channels(tmp_path: Path) -> None:
    record = image_of(tmp_path)
    rgb, bgr = (mapper(False, order)(record)["image"] for order in ("RGB", "BGR"))
    assert torch.equal(rgb.flip(0), bgr) and not torch.equal(rgb, bgr)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_any_kind_of_picture_gives_three_channels(mode: str, tmp_path: Path) -> None:
    """ImageNet has grey pictures and CMYK ones."""
    path = tmp_path / "other.JPEG"
    picture = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).convert(mode)
    picture.save(path, format="TIFF")
    image = mapper(True)({"file_name": str(path), "image_id": 0, "label": 0})["image"]
    assert image.shape == (3, 32, 32)
    torch.testing.assert_close(image.float(), torch.full((3, 32, 32), 90.0), rtol=0, atol=2)


def test_training_crops_as_inception_does(tmp_path: Path) -> None:
    """Area 8 to 100 %, sides 3:4 to 4:3, half of them mirrored: read off the pixels' places."""
    record = image_of(tmp_path)
    areas, ratios, mirrored = [], [], []
    for seed in range(300):
        with seeded(seed):
            image = mapper(True)(record)["image"].float()
        assert image.shape == (3, 32, 32)
        # The first and last pixel centres lie (1 - 1/32) of the crop's side apart.
        height = float(image[0, -1].mean() - image[0, 0].mean()) * 32 / 31
        width = float(image[1, :, -1].mean() - image[1, :, 0].mean()) * 32 / 31
        mirrored.append(width < 0)
        areas.append(height * abs(width) / (HEIGHT * WIDTH))
        ratios.append(abs(width) / height)
    # Whole pixels and the resampling's blunt edges move both ends a little.
    assert 0.05 < min(areas) < 0.15 and 0.75 < max(areas) < 1.05
    assert 0.65 < min(ratios) < 0.85 and 1.2 < max(ratios) < 1.45
    assert 120 < sum(mirrored) < 180


# ---- batches -------------------------------------------------------------------------------------


def test_training_batches_resume_and_are_shared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_classifier(folder, tmp_path / "out", "SOLVER.IMS_PER_BATCH", 4)

    def take(start: int, count: int) -> list[Any]:
        train_loader = build_train_loader(cfg, 5)
        assert train_loader.num_images == 36
        train_loader.start_iteration = start
        found = itertools.islice(train_loader, count)
        return [[(x["image_id"], x["label"], x["image"].numpy().tobytes()) for x in b] for b in found]

    whole = take(0, 18)
    assert all(len(batch) == 4 for batch in whole)
    first, second = (sorted(x[0] for b in part for x in b) for part in (whole[:9], whole[9:]))
    assert first == second and len(set(first)) == 36  # one epoch after the other
    assert [x[0] for b in whole[:9] for x in b] != [x[0] for b in whole[9:] for x in b]
    views = {(x[0], x[2]) for batch in whole for x in batch}
    assert len(views) == 2 * 36  # augmented anew
    assert take(7, 3) == whole[7:10]
    monkeypatch.setattr(loader.comm, "get_world_size", lambda: 2)
    # What rank 0 would send, each reads for itself here.
    monkeypatch.setattr(loader.comm, "is_main_process", lambda: True)
    monkeypatch.setattr(loader, "Records", list)
    monkeypatch.setattr(loader, "from_main", lambda value: value)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(loader.comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(0, 3))
    assert [a + b for a, b in zip(*shares)] == whole[:3]


FEW_DESCRIPTORS = """
import itertools, resource, sys
from pathlib import Path
from crnas_d2.data.loader import build_train_loader
from image_folders import tiny_classifier
options = ["SOLVER.IMS_PER_BATCH", 200, "DATALOADER.NUM_WORKERS", 2]
loader = build_train_loader(tiny_classifier(*map(Path, sys.argv[1:]), *options), seed=0)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
print([len(batch) for batch in itertools.islice(loader, 3)])
"""


def test_a_large_batch_takes_few_file_descriptors(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: without descriptors a DataLoader waits for ever."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FEW_DESCRIPTORS, str(folder), str(tmp_path / "out")],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[200, 200, 200]\n", done.stderr[-2000:]


@pytest.mark.parametrize("world", [1, 2, 5, 7])
def test_every_test_image_is_seen_once(
    world: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_classifier(folder, tmp_path / "out", "SOLVER.IMS_PER_BATCH", 5)
    monkeypatch.setattr(loader.comm, "get_world_size", lambda: world)
    seen = []
    for rank in range(world):
        monkeypatch.setattr(loader.comm, "get_rank", lambda rank=rank: rank)
        test_loader = build_test_loader(cfg, cfg.DATASETS.TEST[0])
        batches = list(test_loader)
        assert len(batches) == len(test_loader)
        assert all(1 <= len(batch) <= max(5 // world, 1) for batch in batches)
        seen += [x["image_id"] for batch in batches for x in batch]
    assert len(seen) == 12 and len(set(seen)) == 12


# ---- what is refused -----------------------------------------------------------------------------


def refusal(image_root: Path, class_root: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_imagenet(register(image_root, class_root), "DATASETS.TEST")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"DATASETS.TEST: {image_root}: ")
    return message


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert f"{missing}: No such file" in refusal(missing, folder / "train")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: no folder in it" in refusal(empty, folder / "train")
    file = tmp_path / "file"
    file.write_text("")
    assert f"{file}: Not a directory" in refusal(file, folder / "train")
    lonely = make_image_folder(tmp_path / "lonely", 1)
    assert f"{missing}: No such file" in refusal(lonely, missing)


def test_a_class_without_images(folder: Path) -> None:
    for path in (folder / "val" / "n02").iterdir():
        path.rename(path.with_suffix(".txt"))
    assert "n02" in refusal(folder / "val", folder / "train")


def test_a_class_that_train_has_not(folder: Path) -> None:
    (folder / "val" / "n02").rename(folder / "val" / "n04")
    message = refusal(folder / "val", folder / "train")
    assert str(folder / "val" / "n04") in message and "3 classes" in message


@pytest.mark.parametrize("keep", [0, 300])
def test_a_file_that_is_no_image(keep: int, folder: Path) -> None:
    path = sorted((folder / "train" / "n01").iterdir())[0]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        mapper(True)({"file_name": str(path), "image_id": 0, "label": 0})
    assert str(caught.value).startswith(f"{path}: cannot be read as an image: ")
