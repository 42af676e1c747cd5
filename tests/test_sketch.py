"""The sketch of networks, in the report and by tools/sketch.py: a box a block, its rate as a colour."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from detectors import ROOT

from crnas_d2.architecture import Architecture
from crnas_d2.report.figures import BLUE, GREY, ORANGE
from crnas_d2.report.sketch import sketch

FOUND = "resnet/1-3-5-7/0-010-00120-0102112"


@pytest.mark.parametrize(
    "text", [FOUND, "mobilenetv2/1-1-2-2-3-4-4-1-1-1/0-1-01-02-011-0011-0110-2-0-0"]
)
def test_a_box_for_each_block(text: str) -> None:
    architecture = Architecture.parse(text)
    figure = sketch({"found": architecture}, {})
    assert [row["rate"] - 1 for row in figure.rows] == list(architecture.dilation_code)
    blocks = [row["stage"] for row in figure.rows]
    assert [blocks.count(i) for i in range(1, len(architecture.stage_code) + 1)] == list(
        architecture.stage_code
    )
    # Of each colour one box more, in the legend.
    for digit, colour in enumerate((GREY, BLUE, ORANGE)):
        assert figure.svg.count(f"fill: {colour}") == architecture.dilation_code.count(digit) + 1


def test_shares_of_the_stages() -> None:
    architecture = Architecture.parse(FOUND)
    figure = sketch({"a": architecture}, {"a": {"stem": 1.0, "res2": 3.0}})
    assert "stem 25% \u00b7 res2 75%" in figure.svg
    assert [row["macs"] for row in figure.rows if "macs" in row] == [1.0, 3.0]


def test_the_tool(tmp_path: Path) -> None:
    tool = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "sketch.py")]
    path = tmp_path / "sketch.svg"
    subprocess.run([*tool, FOUND, "baseline=resnet/1-1-1-1/0-0-0-0", "--output", str(path)], check=True)
    assert (
        ET.parse(path).getroot().tag.endswith("svg") and "baseline: resnet/1-1-1-1" in path.read_text()
    )
    for arguments, message in (
        ([FOUND, "--output", "x.png"], "x.png: a name that ends in .svg is needed"),
        (["resnet/1-1", "--output", "x.svg"], "architecture 'resnet/1-1'"),
        ([FOUND, FOUND, "--output", "x.svg"], "each network needs a name of its own"),
    ):
        done = subprocess.run([*tool, *arguments], capture_output=True, text=True, cwd=tmp_path)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith("error: ") and message in line
