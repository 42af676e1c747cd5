"""Images before training: every kind of bad one is found from its header or by decoding, and all are
listed; what detectron2 reads rightly passes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crnas_d2.data.pictures import check_decodes, check_headers
from crnas_d2.errors import InputError
from detectron2.data.detection_utils import read_image

WIDTH, HEIGHT = 48, 32


def photograph() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def entry(name: str, width: int = WIDTH, height: int = HEIGHT) -> dict[str, Any]:
    return {"file_name": name, "width": width, "height": height}


def refusal(check: Callable[[], None]) -> str:
    with pytest.raises(InputError) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


GREY = photograph().convert("L")
GOOD = {
    "jpeg": encoded(photograph(), "JPEG"),
    "grey": encoded(GREY, "JPEG"),
    "cmyk": encoded(photograph().convert("CMYK"), "JPEG"),
    "palette": encoded(photograph().convert("P"), "PNG"),
    "transparent": encoded(photograph().convert("RGBA"), "PNG"),
    "one bit": encoded(photograph().convert("1"), "PNG"),
    "webp": encoded(photograph(), "WEBP"),
    "tiff": encoded(photograph(), "TIFF"),
    "half of a jpeg": encoded(photograph(), "JPEG")[:-300],  # what a header cannot tell
}
DEEP = np.asarray(GREY).astype(np.uint16) * 257
BAD = {
    "16 bits, png": (encoded(Image.fromarray(DEEP), "PNG"), "mode I"),
    "16 bits, tiff": (encoded(Image.fromarray(DEEP), "TIFF"), "mode I;16: 8 bits a channel are needed"),
    "32 bits": (encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "mode I: 8 bits"),
    "float": (encoded(Image.fromarray(np.asarray(GREY) / np.float32(255)), "TIFF"), "mode F: 8 bits"),
    "lab": (encoded(Image.new("LAB", (WIDTH, HEIGHT)), "TIFF"), "mode LAB: 8 bits"),
    "text": (b"no image at all", "cannot identify image file"),
    "empty": (b"", "cannot identify image file"),
    "a header's start": (GOOD["jpeg"][:10], "Truncated File Read"),
    "14000x14000": (
        encoded(Image.new("1", (14000, 14000)), "PNG"),
        "178956970 pixels, could be decompression bomb DOS attack. Shrink it",
    ),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_header(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(GOOD[kind])
    check_headers([entry("a")], str(tmp_path), "KEY")


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_header(tmp_path: Path, kind: str) -> None:
    content, shown = BAD[kind]
    (tmp_path / "a").write_bytes(content)
    message = refusal(lambda: check_headers([entry("a")], str(tmp_path), "KEY"))
    assert message.startswith(f"KEY: 1 of 1 images cannot be used: {tmp_path / 'a'}: ")
    assert shown in message


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    shown = {"gone": "No such file", "folder": "not a file", "pipe": "not a file", "a\0": "null byte"}
    for name, why in shown.items():
        message = refusal(lambda name=name: check_headers([entry(name)], str(tmp_path), "KEY"))
        assert f"{name}: " in message and why in message


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_which_detectron2_reads(tmp_path: Path, orientation: int, form: str) -> None:
    """Either way of writing the size of a photograph with an EXIF orientation (case 04)."""
    path = tmp_path / "a"
    path.write_bytes(encoded(photograph(), form, exif=turned(orientation)))
    height, width = read_image(str(path), format="RGB").shape[:2]
    assert (height > width) == (orientation >= 5)
    check_headers([entry("a", width, height)], str(tmp_path), "KEY")
    message = refusal(lambda: check_headers([entry("a", height, width)], str(tmp_path), "KEY"))
    turn = " after its EXIF rotation" if orientation >= 5 else ""
    assert message.endswith(f"a: is {width}x{height}{turn}, the JSON says {height}x{width}")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_tiff_with_an_exif_rotation(tmp_path: Path, orientation: int) -> None:
    """Pillow turns it when it loads it, and detectron2 once more."""
    (tmp_path / "a").write_bytes(encoded(photograph(), "TIFF", exif=turned(orientation)))
    upright = np.asarray(photograph())
    read = read_image(str(tmp_path / "a"), format="RGB")
    if orientation == 6:
        assert np.array_equal(read, np.rot90(upright, 2))  # a quarter would be right
    for size in ((WIDTH, HEIGHT), (HEIGHT, WIDTH)):
        message = refusal(lambda size=size: check_headers([entry("a", *size)], str(tmp_path), "KEY"))
        assert "a TIFF with an EXIF rotation" in message


def test_exif_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    """It is looked for where the size needs it."""
    plain = encoded(photograph(), "PNG")
    with_exif = encoded(photograph(), "PNG", exif=turned(6))
    start = with_exif.index(b"eXIf") - 4
    chunk = with_exif[start : start + 12 + int.from_bytes(with_exif[start : start + 4], "big")]
    end = plain.index(b"IEND") - 4
    (tmp_path / "a").write_bytes(plain[:end] + chunk + plain[end:])
    assert read_image(str(tmp_path / "a"), format="RGB").shape[:2] == (WIDTH, HEIGHT)
    check_headers([entry("a", HEIGHT, WIDTH)], str(tmp_path), "KEY")


def test_damaged_exif_is_ignored_as_detectron2_does(tmp_path: Path) -> None:
    content = encoded(photograph(), "JPEG", exif=b"Exif\0\0nothing of the kind")
    (tmp_path / "a").write_bytes(content)
    check_headers([entry("a")], str(tmp_path), "KEY")


def test_all_are_listed_in_the_order_of_the_json(tmp_path: Path) -> None:
    """Over the chunks that threads take."""
    (tmp_path / "good").write_bytes(GOOD["jpeg"])
    names = ["good"] * 600 + ["b"] + ["good"] * 300 + ["a"] + ["good"] * 200 + ["d", "c", "e"]
    images = [entry(name) for name in names]
    message = refusal(lambda: check_headers(images, str(tmp_path), "KEY"))
    missing = "No such file or directory"
    shown = "; ".join(f"{tmp_path / name}: {missing}" for name in "bad") + "; ..."
    assert message == f"KEY: 5 of {len(names)} images cannot be used: {shown}"


def test_pixels_are_decoded_to_the_end(tmp_path: Path) -> None:
    """Half of a download, whose header is sound (case 05)."""
    paths = []
    for number, form in enumerate(("JPEG", "PNG", "TIFF", "WEBP")):
        content = encoded(photograph(), form)
        for kind, part in (("whole", content), ("half", content[: len(content) // 2])):
            paths.append(str(tmp_path / f"{number}_{kind}"))
            Path(paths[-1]).write_bytes(part)
    check_decodes(paths[::2], "KEY")
    message = refusal(lambda: check_decodes(paths, "KEY"))
    assert message.startswith(f"KEY: 4 of 8 images cannot be used: {paths[1]}: ")
    assert "truncated" in message and message.endswith("; ...")
