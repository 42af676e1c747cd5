"""What tests of tools/prepare_data.py share: the tool, pictures, and results as a search reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectors import ROOT
from PIL import Image

from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.data.pictures import check_headers
from crnas_d2.errors import InputError

WIDTH, HEIGHT = 200, 100


def tool(*arguments: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "tools" / "prepare_data.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)


def output_of(*arguments: Any) -> str:
    done = tool(*arguments)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def refused(*arguments: Any) -> str:
    done = tool(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make_picture(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path, exif=exif)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def checked(path: Path, images: Path) -> dict[str, Any]:
    """The JSON as it was written; a search would take it."""
    check_headers(read_coco_json(str(path), "KEY")["images"], str(images), "KEY")
    return json.loads(path.read_text())
