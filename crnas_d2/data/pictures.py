"""Images checked before training: the headers of a whole data set, and the pixels of some of it.

All bad images are counted in one line; a training would stop at one after the other.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from typing import Any

from PIL import Image

from crnas_d2.errors import InputError

ORIENTATION, TRANSPOSED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap height and width
# Grey of 16 or 32 bits or of floats, which Pillow clips when it converts it to RGB, and Lab.
REFUSED_MODES = ("I", "F", "LAB")


def check_headers(images: Sequence[dict[str, Any]], folder: str, key: str) -> None:
    """Every image has the size of its JSON entry and a mode that can be read; no pixels are decoded.

    ``images``: entries with ``file_name``, below ``folder``, and ``width`` and ``height`` after the
    EXIF rotation, which detectron2 applies. Raises InputError: how many are bad, and the first three.
    """
    _refuse(images, lambda image: _problem(os.path.join(folder, image["file_name"]), image), key)


def check_decodes(paths: Sequence[str], key: str) -> None:
    """Every image can be decoded to its last pixel; as ``check_headers``."""
    _refuse(paths, _problem, key)


def check_picture(path: str) -> None:
    """A single picture, of any size, as both of the above. Raises InputError: why it cannot be used."""
    if why := _why(path, {}) or _why(path):
        raise InputError(why)


def _refuse(items: Sequence[Any], problem: Callable[[Any], str], key: str) -> None:
    with ThreadPool(8) as threads:
        bad = [text for text in threads.map(problem, items, chunksize=256) if text]
    if bad:
        shown = "; ".join([*bad[:3], "..."] if len(bad) > 3 else bad)
        raise InputError(f"{key}: {len(bad)} of {len(items)} images cannot be used: {shown}")


def _problem(path: str, entry: dict[str, Any] | None = None) -> str:
    """The path and why the image cannot be used, empty if it can."""
    why = _why(path, entry)
    return f"{path}: {why}" if why else ""


def _why(path: str, entry: dict[str, Any] | None = None) -> str:
    """Without an entry the image is decoded, else its header is checked; an empty entry has no size."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "not a file"
        with Image.open(path) as picture:
            if entry is not None:
                return _header_problem(picture, entry)
            picture.load()
            return ""
    except Image.DecompressionBombError as error:
        return f"{error} Shrink it or cut it into tiles."
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def orientation_of(picture: Image.Image) -> int:
    """By EXIF; 1 is upright."""
    with suppress(Exception):  # damaged EXIF data, which detectron2 ignores, too
        return picture.getexif().get(ORIENTATION, 1)
    return 1


def _header_problem(picture: Image.Image, entry: dict[str, Any]) -> str:
    if picture.mode.startswith(REFUSED_MODES):
        return f"mode {picture.mode}: 8 bits a channel are needed; more would be clipped"
    size, expected, turned, orientation = picture.size, (entry.get("width"), entry.get("height")), "", 1
    # A PNG can have its EXIF after the pixels, which would be decoded for it: only if it can explain.
    if picture.format != "PNG" or "exif" in picture.info or size != expected:
        orientation = orientation_of(picture)
    if picture.format == "TIFF" and orientation != 1:
        return "a TIFF with an EXIF rotation, which Pillow and detectron2 both apply: save it upright"
    if orientation in TRANSPOSED:
        size, turned = size[::-1], " after its EXIF rotation"
    if size == expected or not entry:
        return ""
    return f"is {size[0]}x{size[1]}{turned}, the JSON says {expected[0]:g}x{expected[1]:g}"
