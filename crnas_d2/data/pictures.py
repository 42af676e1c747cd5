"""Images checked before training: the headers of a whole data set, and the pixels of some of it.

All bad images are listed in one line; a training would stop at one after the other.
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
# Grey of 16 or 32 bits or of floats, which Pillow clips when it converts it to RGB, and Lab.
REFUSED_MODES = ("I", "F", "LAB")


def check_headers(images: Sequence[dict[str, Any]], folder: str, key: str) -> None:
    """Every image exists, is of the size that the JSON says, and of a mode that can be read.

    The size is that after the EXIF rotation, which detectron2 applies. No pixels are decoded.

    Args:
        images: the JSON's image entries.
        folder: where each ``file_name`` lies.
        key: the config key that named the folder, for messages.

    Raises:
        InputError: the first few bad images, and how many there are.
    """
    _refuse(images, lambda image: _problem(os.path.join(folder, image["file_name"]), image), key)


def check_decodes(paths: Sequence[str], key: str) -> None:
    """Every image can be decoded to its last pixel; as ``check_headers``."""
    _refuse(paths, _problem, key)


def _refuse(items: Sequence[Any], problem: Callable[[Any], str], key: str) -> None:
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(lambda chunk: [text for text in map(problem, chunk) if text], chunks)
        bad = [text for part in found for text in part]
    if bad:
        shown = "; ".join([*bad[:SHOWN], *([f"and {len(bad) - SHOWN} more"] if bad[SHOWN:] else [])])
        raise InputError(f"{key}: {len(bad)} of {len(items)} images cannot be used: {shown}")


def _problem(path: str, entry: dict[str, Any] | None = None) -> str:
    """The path and why the image cannot be used, empty if it can; without an entry it is decoded."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return f"{path}: not a file"
        if not state.st_size:
            return f"{path}: an empty file"
        with Image.open(path) as picture:
            if entry is None:
                picture.load()
            why = entry and _header_problem(picture, (entry["width"], entry["height"]))
            return f"{path}: {why}" if why else ""
    except Image.UnidentifiedImageError:
        return f"{path}: not an image"
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS
        return f"{path}: more than the {most} pixels that Pillow reads: shrink it or cut it into tiles"
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        return f"{path}: {why or type(error).__name__}"


def _header_problem(picture: Image.Image, expected: tuple[int, int]) -> str:
    """Args: expected: width and height."""
    if picture.mode.startswith(REFUSED_MODES):
        return f"mode {picture.mode}: 8 bits a channel are needed; more would be clipped"
    size, turned, orientation = picture.size, "", 1
    # A PNG can have its EXIF after the pixels, which would be decoded for it: only if it can explain.
    if picture.format != "PNG" or "exif" in picture.info or size != expected:
        try:
            orientation = picture.getexif().get(ORIENTATION, 1)
        except Exception:  # damaged EXIF data, which detectron2 ignores, too
            orientation = 1
    if picture.format == "TIFF" and orientation != 1:
        return "a TIFF with an EXIF rotation, which Pillow and detectron2 both apply: save it upright"
    if orientation in TRANSPOSED:
        size, turned = size[::-1], " after its EXIF rotation"
    is_, says = ("{:g}x{:g}".format(*pair) for pair in (size, expected))
    return "" if size == expected else f"is {is_}{turned}, the JSON says {says}"
