"""demo.py on pictures and videos: a tiny Mask R-CNN of random weights, which sees discs everywhere.

What it refuses: test_demo_bad_input.py.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from bench import snapshot
from detectors import ROOT
from PIL import Image
from preparing import make_picture

from crnas_d2.config import read_config
from crnas_d2.data.datasets import use_class_names
from crnas_d2.engine.demo import _draw_video, draw_files, find_files, output_paths, show_webcam
from crnas_d2.engine.drawing import Detector
from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer

CLASSES = ["disc", "square", "triangle"]
BROKEN = ["broken.jpg", "broken.mp4", "deep.png", "empty.mov"]
FRAMES, RATE, SIZE = 4, 10.0, (64, 48)  # width, height


@pytest.fixture(scope="module")
def detector(disc_yaml: Path) -> Detector:
    return Detector(trained(disc_yaml), CLASSES, 0.5)


def trained(disc_yaml: Path, *options: Any) -> CfgNode:
    return read_config(str(disc_yaml), ["MODEL.WEIGHTS", str(disc_yaml.with_suffix(".pth")), *options])


def demo(disc_yaml: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """As a user starts it, with found.pth."""
    options = ["--opts", "MODEL.WEIGHTS", disc_yaml.with_suffix(".pth")]
    line = [ROOT / "demo.py", "--config-file", disc_yaml, *arguments, *options]
    return subprocess.run(
        [sys.executable, *map(str, line)], capture_output=True, text=True, timeout=120
    )


def mixed_pictures(folder: Path) -> None:
    """Of all kinds, 60 x 40; two that cannot be read, and three files that are none."""
    make_picture(folder / "rgb.jpg", size=(60, 40))
    make_picture(folder / "turned.jpg", orientation=6, size=(60, 40))
    rgb = Image.open(folder / "rgb.jpg").convert("RGB")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("RGBA").save(folder / "rgba.PNG")
    rgb.quantize(16).save(folder / "palette.png", transparency=bytes([0, 255] * 8))
    for kind in ("bmp", "tif", "webp"):
        rgb.save(folder / f"as.{kind}")
    Image.fromarray(np.full((40, 60), 40000, np.uint16)).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes((folder / "rgb.jpg").read_bytes()[:-50])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_text("not to be looked at")
    make_picture(folder / "below" / "deeper.jpg")


def make_video(path: Path) -> None:
    """Grey frames that get lighter."""
    for codec, ending in (("mp4v", ".mp4"), ("MJPG", ".avi")):  # demo.py's, and that of ``path``
        target = str(path.with_suffix(ending))
        writer = cv2.VideoWriter(target, cv2.VideoWriter.fourcc(*codec), RATE, SIZE)
        if not writer.isOpened():
            pytest.skip(f"this OpenCV has no encoder for {codec}")
    path.with_suffix(".mp4").unlink()
    for number in range(FRAMES):
        writer.write(np.full((SIZE[1], SIZE[0], 3), 40 * number, np.uint8))
    writer.release()


def test_a_video_that_breaks_off(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header says how many frames there were."""
    make_video(tmp_path / "clip.avi")
    draw = detector.draw_video
    monkeypatch.setattr(detector, "draw_video", lambda video: itertools.islice(draw(video), 2))
    said = _draw_video(detector, tmp_path / "clip.avi", tmp_path / "drawn.mp4")
    assert said == f"2 frames of {FRAMES}"


def frames_of(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == RATE
    return [frame for _, frame in iter(video.read, (False, None))]


def test_a_folder_of_mixed_files(disc_yaml: Path, tmp_path: Path) -> None:
    """Pictures and videos, some broken, of which one has no content, in one process."""
    inputs, output = tmp_path / "inputs", tmp_path / "drawn" / "new"
    mixed_pictures(inputs)
    make_video(inputs / "clip.avi")
    (inputs / "broken.mp4").write_bytes(b"no video" * 100)
    (inputs / "empty.mov").touch()
    before = snapshot(inputs)
    done = demo(disc_yaml, "--input", inputs, "--output", output)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert snapshot(inputs) == before
    *lines, last = done.stdout.splitlines()
    assert last == f"9 of 13 pictures and videos written to {output}; other files: 1"
    refused = [line.partition(": left out: ") for line in lines if "left out" in line]
    assert [Path(path).name for path, *_ in refused] == BROKEN and len(lines) == 13
    assert "truncated" in refused[0][2] and "mode I" in refused[2][2]
    assert refused[1][2] == refused[3][2] == "no video that this OpenCV can read"
    assert f"{inputs / 'clip.avi'}: {FRAMES} frames: {output / 'clip.mp4'}" in lines
    names = ["as.bmp", "as.tif", "as.webp", "grey.png", "palette.png", "rgb.jpg", "rgba.PNG"]
    assert sorted(path.name for path in output.iterdir()) == sorted([*names, "clip.mp4", "turned.jpg"])
    for name in [*names, "turned.jpg"]:
        with Image.open(output / name) as drawn, Image.open(inputs / name) as picture:
            assert (drawn.mode, drawn.format) == ("RGB", picture.format)
            assert drawn.size == ((40, 60) if name == "turned.jpg" else (60, 40))
            assert_drawn_on(np.asarray(drawn), np.asarray(picture.convert("RGB"))[0, 0])
    frames = frames_of(output / "clip.mp4")
    assert [frame.shape for frame in frames] == [(SIZE[1], SIZE[0], 3)] * FRAMES
    for number, frame in enumerate(frames):
        assert_drawn_on(frame, [40 * number])


def assert_drawn_on(image: np.ndarray, color: Any) -> None:
    """Something is drawn on a ground of one color, and does not cover it."""
    changed = np.abs(image.astype(int) - np.asarray(color, int)).max(-1) > 40
    assert 0.02 < changed.mean() < 0.98


def test_nothing_that_can_be_read(disc_yaml: Path, tmp_path: Path) -> None:
    """Status 2 and one line on standard error, whatever OpenCV and torch would add."""
    (tmp_path / "a.jpg").write_text("no picture")
    (tmp_path / "b.mp4").write_text("no video")
    done = demo(disc_yaml, "--input", tmp_path, "--output", tmp_path / "drawn")
    assert done.returncode == 2
    assert done.stderr == f"error: --input: {tmp_path}: none of 2 files could be read\n"
    assert "a.jpg: left out: " in done.stdout and not (tmp_path / "drawn").exists()


def test_a_picture_that_cannot_be_resized_is_left_out(detector: Detector, tmp_path: Path) -> None:
    make_picture(tmp_path / "narrow.png", size=(1, 5000))
    make_picture(tmp_path / "rgb.png")
    paths = [tmp_path / "narrow.png", tmp_path / "rgb.png"]
    assert draw_files(detector, output_paths(paths, tmp_path / "drawn")) == 1


def test_files_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, in the order in which they are named; a name may look like a glob."""
    for name in ("a/1.jpg", "a/2.png", "a/b/3.jpg", "a/4[5].jpg", "a/notes.txt", "c/5.MP4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def names(*inputs: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_files(inputs)[0]]

    assert [str(path) for path in find_files(["c", "a/1.jpg"])[0]] == ["c/5.MP4", "a/1.jpg"]
    monkeypatch.chdir("/")
    assert names("~/a") == ["a/1.jpg", "a/2.png", "a/4[5].jpg"]
    assert names("~/a/*.png", "~/a/4[5].jpg", "~/a/*.png") == ["a/2.png", "a/4[5].jpg"]
    assert names("~/**/*.jpg") == ["a/1.jpg", "a/4[5].jpg", "a/b/3.jpg"]
    assert names("~/*") == [*names("~/a"), "c/5.MP4"]
    assert find_files(["~/a", "~/a/notes.txt"])[1] == 1


def test_files_of_one_name(detector: Detector, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder, name in zip(folders, ("x.png", "x.png", "x_2.png")):
        make_picture(folder / name, size=(50 + 10 * len(list(tmp_path.rglob("*.png"))), 40))
    targets = output_paths(find_files([str(folder) for folder in folders])[0], tmp_path / "drawn")
    assert draw_files(detector, targets) == 3
    widths = {path.name: Image.open(path).width for path in (tmp_path / "drawn").iterdir()}
    assert widths == {"x.png": 50, "x_2.png": 60, "x_2_2.png": 70}
    videos = [Path("a/x.avi"), Path("b/x.mp4"), Path("b/x.png")]
    assert [path.name for path in output_paths(videos, Path("new"))] == ["x.mp4", "x_2.mp4", "x.png"]


class Knows:
    """In place of a network: a disc of 91 %, its box and, if asked for, its mask."""

    def __init__(self, masks: bool) -> None:
        self.masks = masks

    def __call__(self, image: np.ndarray) -> dict[str, Instances]:
        self.image = image
        found = Instances(image.shape[:2])
        found.pred_boxes = Boxes(torch.tensor([[20.0, 20.0, 80.0, 60.0]]))
        found.scores, found.pred_classes = torch.tensor([0.91]), torch.tensor([0])
        if self.masks:
            found.pred_masks = torch.zeros(1, *image.shape[:2], dtype=torch.bool)
            found.pred_masks[0, 40:60, 40:80] = True
        return {"instances": found}


def with_network(detector: Detector, network: Any) -> Detector:
    other = Detector.__new__(Detector)
    other._metadata, other._predictor = detector._metadata, network
    return other


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_drawn(detector: Detector, monkeypatch: pytest.MonkeyPatch, masks: bool) -> None:
    """The box, the mask if there is one, the name and the score; the network sees BGR."""
    texts: list[str] = []
    draw_text = Visualizer.draw_text

    def seen(self: Visualizer, text: str, *args: Any, **kwargs: Any) -> Any:
        texts.append(text)
        return draw_text(self, text, *args, **kwargs)

    monkeypatch.setattr(Visualizer, "draw_text", seen)
    image, network = np.full((80, 120, 3), (10, 120, 230), np.uint8), Knows(masks)
    drawn, count = with_network(detector, network).draw(image)
    assert count == 1 and texts == ["disc 91%"]
    assert (network.image == (230, 120, 10)).all()
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    changed = (drawn != image).any(-1)
    assert changed[40:60, 20].all() and changed[40:60, 80].all()  # the box's sides
    assert changed[45:55, 50:70].all() == masks and not changed[45:55, 25:35].any()
    assert not changed[:, 90:].any() and not changed[65:].any()


class Frames:
    """In place of cv2.VideoCapture."""

    def __init__(self, frames: int = 0, opened: bool = True) -> None:
        self.left = frames
        self.isOpened = lambda: opened
        self.release = lambda: None

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return (
            (True, np.full((80, 120, 3), (10, 120, 230), np.uint8)) if self.left >= 0 else (False, None)
        )


def test_masks_in_a_video(detector: Detector) -> None:
    """And an object keeps its color."""
    network = Knows(masks=True)
    frames = list(with_network(detector, network).draw_video(Frames(3)))
    assert (network.image == (10, 120, 230)).all()
    assert [frame.shape for frame in frames] == [(80, 120, 3)] * 3
    assert (frames[0][-1, -1] == (10, 120, 230)).all()  # BGR as it came
    assert (frames[0][45:55, 50:70] != frames[0][-1, -1]).any(-1).all()
    assert (frames[0] == frames[1]).all() and (frames[1] == frames[2]).all()


def test_the_webcam(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that goes without one: a window of frames until Escape; one line if there is none."""
    shown: list[np.ndarray] = []
    keys = itertools.chain([-1, ord("a")], itertools.repeat(27))
    fakes: dict[str, Callable[..., Any]] = {
        "namedWindow": lambda *_: None,
        "imshow": lambda _, frame: shown.append(frame),
        "waitKey": lambda _: next(keys),
        "destroyAllWindows": lambda: None,
        "VideoCapture": lambda _: Frames(9),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(cv2, name, fake)
    show_webcam(with_network(detector, Knows(masks=False)))
    assert len(shown) == 3
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Frames(opened=False))
    with pytest.raises(InputError, match="--webcam: there is no camera"):
        show_webcam(detector)

    def no_window(*_: object) -> None:
        raise cv2.error("The function is not implemented.\nRebuild the library")

    monkeypatch.setattr(cv2, "namedWindow", no_window)
    with pytest.raises(InputError, match="opencv-python is needed"):
        show_webcam(detector)


def test_the_least_score(disc_yaml: Path) -> None:
    """The random weights' scores are all near 1 for a disc, and far below 0.05 for the others."""
    image = np.zeros((64, 64, 3), np.uint8)
    few, more = (Detector(trained(disc_yaml), CLASSES, low).draw(image)[1] for low in (0.5, 0.0))
    assert 0 < few < more
    assert Detector(trained(disc_yaml), CLASSES, 1.0).draw(image)[1] == 0


def test_real_pictures(disc_yaml: Path, shared_data: Path, tmp_path: Path) -> None:
    images = shared_data / "coco_open" / "images"
    if not images.is_dir():
        pytest.skip(f"no pictures in {images}")
    paths = find_files([str(images)])[0][:2]
    targets = output_paths(paths, tmp_path / "drawn")
    few = trained(disc_yaml, "TEST.DETECTIONS_PER_IMAGE", 3)  # masks take their time to be drawn
    assert draw_files(Detector(few, CLASSES, 0.5), targets) == 2
    for target, path in targets.items():
        assert Image.open(target).size == Image.open(path).size


def test_names_of_classes(disc_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the JSONs without a look at the images, or of a registered set; the heads follow a JSON."""
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"categories": [{"id": 7, "name": "b"}, {"id": 2, "name": "a"}]}))
    cfg = trained(disc_yaml, "DATASETS.TRAIN_IMAGES", "no/such/folder", "DATASETS.TEST_JSON", "")
    assert use_class_names(cfg) == CLASSES
    cfg = trained(disc_yaml, "DATASETS.TRAIN_JSON", "no/such.json", "DATASETS.TEST_JSON", str(names))
    assert use_class_names(cfg) == ["a", "b"] and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    registered = [
        "DATASETS.TRAIN_JSON",
        "",
        "DATASETS.TEST_JSON",
        "",
        "DATASETS.TRAIN",
        ("bccd_train",),
    ]
    metadata = SimpleNamespace(json_file=str(names), get=lambda _: None)
    monkeypatch.setattr("crnas_d2.data.datasets.MetadataCatalog.get", lambda _: metadata)
    cfg = trained(disc_yaml, *registered, "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    assert use_class_names(cfg) == ["a", "b"]
