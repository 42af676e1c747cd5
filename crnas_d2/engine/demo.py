"""What demo.py does: a detector on a person's pictures and videos, or on what a webcam sees."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
from PIL import Image
from tqdm import tqdm

from crnas_d2.data.pictures import check_picture
from crnas_d2.data.prepared import PICTURES
from crnas_d2.engine.drawing import Detector
from crnas_d2.errors import InputError
from crnas_d2.files import write_atomically
from detectron2.data.detection_utils import read_image

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
FRAME_RATE = 25.0  # frames a second, of a video that does not say
WINDOW, ESCAPE = "detections", 27


def find_files(inputs: Sequence[str]) -> tuple[list[Path], int]:
    """The pictures and videos that are named, and how many other files there are beside them.

    ``inputs``: files, folders, without those below them, and globs. What a file is, its ending says.

    Raises InputError: there is no such file, or no picture or video at all.
    """
    found: list[Path] = []
    for given in inputs:
        path = os.path.expanduser(given)
        # A file may have brackets in its name.
        matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"--input: {given}: no such file or folder, and no file matches it")
        for match in map(Path, matches):
            found += sorted(match.iterdir()) if match.is_dir() else [match]
    files = [path for path in dict.fromkeys(found) if path.is_file() and path.name[0] != "."]
    usable = [path for path in files if path.suffix.lower() in (*PICTURES, *VIDEOS)]
    if not usable:
        allowed = ", ".join((*PICTURES, *VIDEOS))
        raise InputError(f"--input: {' '.join(inputs)}: no picture and no video; allowed are {allowed}")
    return usable, len(files) - len(usable)


def output_paths(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the detections on each file are written, and the file: its name, of a video as .mp4.

    Of files of one name the second is called NAME_2, and so on.

    Raises InputError: ``folder`` is none or is that of an input, or a file is there already.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder}: is not a folder")
    targets: dict[Path, Path] = {}
    for path in files:
        if path.parent.resolve() == folder.resolve():
            raise InputError(f"--output: {folder}: is the folder of {path}; another one is needed")
        ending = ".mp4" if path.suffix.lower() in VIDEOS else path.suffix
        target = folder / (path.stem + ending)
        numbers = itertools.count(2)
        while target in targets:
            target = folder / f"{path.stem}_{next(numbers)}{ending}"
        if target.exists():
            raise InputError(f"--output: {target}: is there already; another folder is needed")
        targets[target] = path
    return targets


def draw_files(detector: Detector, targets: Mapping[Path, Path]) -> int:
    """Write the detections on each file, and print a line about it; the number of those written.

    ``targets``: of output_paths. A file that cannot be read is left out. Raises OSError: of the disk.
    """
    written = 0
    for target, path in targets.items():
        draw = _draw_video if path.suffix.lower() in VIDEOS else _draw_picture
        try:
            print(f"{path}: {draw(detector, path, target)}: {target}", flush=True)
            written += 1
        except ValueError as error:  # also a picture too narrow to be resized, or too large to be drawn
            print(f"{path}: left out: {' '.join(str(error).split())}", flush=True)
    return written


def _draw_picture(detector: Detector, path: Path, target: Path) -> str:
    check_picture(str(path))
    drawn, count = detector.draw(read_image(str(path), "RGB"))
    picture, kind = Image.fromarray(drawn), Image.registered_extensions()[path.suffix.lower()]
    write_atomically(target, lambda file: picture.save(file, format=kind, quality=90))
    return f"{count} detected"


def _draw_video(detector: Detector, path: Path, target: Path) -> str:
    video, count = cv2.VideoCapture(str(path)), 0
    frames = detector.draw_video(video)
    first = next(frames, None)
    if first is None:
        raise InputError("no video that this OpenCV can read")
    part = target.with_name(f".{target.name}.part.mp4")
    part.parent.mkdir(parents=True, exist_ok=True)
    codec, rate = cv2.VideoWriter.fourcc(*"mp4v"), video.get(cv2.CAP_PROP_FPS) or FRAME_RATE
    # The size of a frame: a turned video's own entries are of another one.
    writer = cv2.VideoWriter(str(part), codec, rate, first.shape[1::-1])
    if not writer.isOpened():
        raise InputError(f"this OpenCV cannot write {target}, a video in MPEG-4")
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    for frame in tqdm(itertools.chain([first], frames), path.name, total, leave=False, disable=None):
        writer.write(frame)
        count += 1
    writer.release()
    part.replace(target)
    # One that breaks off ends like one that is whole.
    return f"{count} frames" + (f" of {total}" if count < total else "")


def show_webcam(detector: Detector) -> None:
    """Show the detections on what the first camera sees, until the Escape key is pressed.

    Raises InputError: this OpenCV has no windows, or there is no camera.
    """
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        needed = "opencv-python is needed, not opencv-python-headless"
        raise InputError(f"--webcam: this OpenCV has no windows; {needed}") from error
    camera = cv2.VideoCapture(0)
    if not camera.isOpened():
        raise InputError("--webcam: there is no camera that this OpenCV can open")
    for frame in detector.draw_video(camera):
        cv2.imshow(WINDOW, frame)
        if cv2.waitKey(1) == ESCAPE:
            break
    camera.release()
    cv2.destroyAllWindows()
