"""The generated data set: the same bytes every time, true annotations, no folder taken for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from crnas_d2.data import shapes
from crnas_d2.errors import InputError

SMALL = (96, 128)  # height, width


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "crnas_d2.data.shapes", str(folder), "--train", "2", "--val", "1"]
    root = Path(__file__).parents[1]
    return subprocess.run([*line, *options], capture_output=True, text=True, cwd=root)


@pytest.fixture(scope="module")
def pictures():
    """Forty full-size pictures as (pixels, owners, annotations)."""
    return [shapes.draw_picture(0, "train", index, (320, 320)) for index in range(40)]


def test_same_parameters_give_the_same_bytes_and_leave_the_global_state_alone(tmp_path):
    np.random.seed(1)
    shapes.make_shapes(tmp_path / "a", 3, 2, seed=5, size=SMALL)
    drawn = np.random.rand()
    np.random.seed(1)
    assert drawn == np.random.rand()
    shapes.make_shapes(tmp_path / "b", 3, 2, seed=5, size=SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_picture_depends_on_seed_split_and_index_only(tmp_path):
    shapes.make_shapes(tmp_path / "few", 2, 1, size=SMALL)
    shapes.make_shapes(tmp_path / "more", 4, 3, size=SMALL)
    few, more = contents(tmp_path / "few" / "images"), contents(tmp_path / "more" / "images")
    assert len(more) == 7 and few == {name: more[name] for name in few}
    assert len(set(more.values())) == 7
    shapes.make_shapes(tmp_path / "other", 2, 1, seed=1, size=SMALL)
    assert not set(contents(tmp_path / "other" / "images").values()) & set(few.values())


def test_json_is_valid_coco_and_agrees_with_the_files(tmp_path):
    shapes.make_shapes(tmp_path, 6, 3, size=SMALL)
    for split, number in (("train", 6), ("val", 3)):
        coco = COCO(str(tmp_path / f"{split}.json"))
        assert coco.getImgIds() == list(range(1, number + 1))
        assert coco.getAnnIds() == list(range(1, len(coco.anns) + 1))
        names = [(c["id"], c["name"]) for c in coco.loadCats(coco.getCatIds())]
        assert names == list(enumerate(shapes.CLASSES, 1))
        for index, image in enumerate(coco.loadImgs(coco.getImgIds())):
            with Image.open(tmp_path / "images" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == SMALL[::-1]
                pixels = np.asarray(picture).astype(float)
            expected, _, drawn = shapes.draw_picture(0, split, index, SMALL)
            assert np.abs(pixels - expected).mean() < 12  # JPEG
            held = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
            assert drawn and [{key: a[key] for key in drawn[0]} for a in held] == drawn
            assert all(a["iscrowd"] == 0 and a["category_id"] in coco.cats for a in held)


def test_boxes_are_tight_around_what_is_visible_and_inside_the_picture(pictures):
    for _, owners, held in pictures:
        assert set(np.unique(owners)) - {0} == set(range(1, len(held) + 1))
        for k, annotation in enumerate(held, start=1):
            ys, xs = np.nonzero(owners == k)
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert 0 <= x < x + width <= 320 and 0 <= y < y + height <= 320
            assert (1 - shapes.MAX_HIDDEN) * annotation["area"] <= len(xs) <= annotation["area"]


def test_polygons_cover_the_shapes(pictures):
    for _, owners, held in pictures:
        for k, annotation in enumerate(held, start=1):
            (polygon,) = annotation["segmentation"]
            x, y = np.array(polygon[::2]), np.array(polygon[1::2])
            left, top, width, height = annotation["bbox"]
            # The box holds the pixels that the polygon touches.
            ends = [x.min(), y.min(), x.max() - width + 1, y.max() - height + 1]
            assert np.allclose(ends, [left + 0.5, top + 0.5] * 2, rtol=0, atol=0.51)
            whole = coco_mask.decode(coco_mask.frPyObjects([polygon], 320, 320))[:, :, 0].astype(bool)
            # All but the rim, which pycocotools rounds its own way.
            assert (whole & (owners == k)).sum() >= (owners == k).sum() - 2 * (width + height)
            assert abs(int(whole.sum()) - annotation["area"]) <= 2 * (width + height)


def test_shapes_stand_out_from_their_background(pictures):
    for pixels, owners, held in pictures:
        for k in range(1, len(held) + 1):
            mean = pixels[owners == k].mean(axis=0)
            x, y, width, height = held[k - 1]["bbox"]
            frame = owners[y : y + height, x : x + width]
            for under in set(np.unique(frame)) & set(range(k)):
                assert np.linalg.norm(mean - pixels[owners == under].mean(axis=0)) > 50


def test_sizes_span_the_range_and_all_classes_occur_at_all_sizes(pictures):
    drawn = [annotation for _, _, held in pictures for annotation in held]
    sides = np.array([max(annotation["bbox"][2:]) for annotation in drawn])
    classes = np.array([annotation["category_id"] for annotation in drawn])
    assert 8 <= sides.min() <= 12 and 250 <= sides.max() <= 300
    for low, high in ((8, 32), (32, 96), (96, 301)):  # about COCO's small, medium and large
        found = classes[(sides >= low) & (sides < high)]
        assert set(found) == {1, 2, 3} and len(found) >= 0.1 * len(drawn)
    numbers = [len(held) for _, _, held in pictures]
    assert 2 <= min(numbers) and max(numbers) <= 6


def test_complete_data_is_left_alone(tmp_path):
    first = command(tmp_path / "set")
    assert first.returncode == 0 and "were written" in first.stdout, first.stderr
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    again = command(tmp_path / "set")
    assert again.returncode == 0 and "already there" in again.stdout
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}


@pytest.mark.parametrize("stop_at", ["train_00001.jpg", "train_00003.jpg", "val_00002.jpg"])
def test_interrupted_generation_is_not_complete_and_is_redone(tmp_path, monkeypatch, stop_at):
    save = Image.Image.save

    def stop(picture, path, **options):
        if path.name == stop_at:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(picture, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            shapes.make_shapes(tmp_path / "set", 3, 2, size=SMALL)
    assert not (tmp_path / "set").exists()
    assert shapes.make_shapes(tmp_path / "set", 3, 2, size=SMALL)
    assert shapes.make_shapes(tmp_path / "whole", 3, 2, size=SMALL)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]


def test_another_data_set_is_refused_and_kept(tmp_path):
    shapes.make_shapes(tmp_path / "shapes", 2, 1, size=SMALL)
    shapes.make_shapes(tmp_path / "seed", 2, 1, seed=1, size=(320, 320))
    shapes.make_shapes(tmp_path / "count", 2, 2, size=(320, 320))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.json").write_text("{}")
    (tmp_path / "file").write_text("a file")
    before = contents(tmp_path)
    for name in ("shapes", "seed", "count", "own", "file"):
        result = command(tmp_path / name)
        assert result.returncode == 2 and result.stdout == ""
        assert len(result.stderr.splitlines()) == 1 and str(tmp_path / name) in result.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize("options", [("--train", "0"), ("--val", "-1"), ("--seed", "-1")])
def test_numbers_out_of_range_are_refused(tmp_path, options):
    result = command(tmp_path / "set", *options)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"{options[0][2:]} is {options[1]}" in result.stderr and not (tmp_path / "set").exists()


def test_torch_is_not_imported():
    code = "import sys, crnas_d2.data.shapes; assert not {'torch', 'detectron2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    ("numbers", "size", "shown"),
    [((0, 2, 0), SMALL, "train is 0: it must be at least 1"), ((3, 2, 0), (64, 16), "side is 16: ")],
)
def test_numbers_are_named_as_the_options(numbers: Any, size: Any, shown: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{shown}"):
        shapes.make_shapes(tmp_path / "set", *numbers, size=size)
