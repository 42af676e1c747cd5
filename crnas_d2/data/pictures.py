"""Images checked before training: the headers of a whole data set, and the pixels of some of it.

Every bad image is found in one pass and listed in one line; training would stop at one after another.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from crnas_d2.errors import InputError

THREADS = 8
CHUNK = 256  # images that a thread takes at a time
SHOWN = 3  # bad images that a message names
ORIENTATION, TRANSPOSED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap height and width
# Pillow clips these when it converts them to RGB (16-bit, 32-bit and float grey), or cannot do so.
REFUSED_MODES = ("I", "F", "LAB")


def check_headers(images: Sequence[dict[str, Any]], folder: str, key: str) -> None:
    """Every image exists and has the size that the JSON says and a mode that can be read.

    The size is that after the EXIF rotation, which detectron2 applies. Pixels are not decoded.

    Args:
        images: the JSON's image entries.
        folder: where each ``file_name`` lies.
        key: the config key that named the folder, for messages.

    Raises:
        InputError: the first few bad images, and how many there are.
    """

    def problem(image: dict[str, Any]) -> str:
        path = os.path.join(folder, image["file_name"])
        why = _problem(path, lambda picture: _header_problem(picture, image["width"], image["height"]))
        return why and f"{image['file_name']}: {why}"

    _refuse(images, problem, f"{key}: {folder}")


def check_decodes(paths: Sequence[str], key: str) -> None:
    """Every image can be decoded to its last pixel.

    Args:
        key: the config key that named them, for messages.

    Raises:
        InputError: the first few that cannot, and how many there are.
    """

    def decode(picture: Image.Image) -> str:
        picture.load()
        return ""

    def problem(path: str) -> str:
        why = _problem(path, decode)
        return why and f"{path}: {why}"

    _refuse(paths, problem, key)


def _refuse(items: Sequence[Any], problem: Callable[[Any], str], where: str) -> None:
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(lambda chunk: [text for text in map(problem, chunk) if text], chunks)
        bad = [text for part in found for text in part]
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise InputError(
            f"{where}: {len(bad)} of {len(items)} images cannot be used: {'; '.join(bad[:SHOWN])}{more}"
        )


def _problem(path: str, look: Callable[[Image.Image], str]) -> str:
    """Why an image cannot be used; empty if it can."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return "not a file"
        if not state.st_size:
            return "an empty file"
        with Image.open(path) as picture:
            return look(picture)
    except Image.UnidentifiedImageError:
        return "not an image"
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS
        return f"more than the {most} pixels that Pillow reads: make it smaller, or cut it into tiles"
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _header_problem(picture: Image.Image, width: int, height: int) -> str:
    if picture.mode.startswith(REFUSED_MODES):
        return f"mode {picture.mode}: 8 bits a channel are needed; more would be clipped"
    size, turned, orientation = picture.size, "", 1
    # A PNG can have its EXIF after the pixels, which would be decoded for it: only if it can explain.
    if picture.format != "PNG" or "exif" in picture.info or size != (width, height):
        orientation = _orientation(picture)
    if picture.format == "TIFF" and orientation != 1:
        return "a TIFF with an EXIF rotation, which Pillow and detectron2 both apply: save it upright"
    if orientation in TRANSPOSED:
        size, turned = size[::-1], " after its EXIF rotation"
    if size == (width, height):
        return ""
    return f"is {size[0]}x{size[1]}{turned}, the JSON says {width:g}x{height:g}"


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data, which detectron2 ignores, too
        return 1
