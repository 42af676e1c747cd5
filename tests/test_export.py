"""Exported networks compute what torch does, at other sizes than the example's and in batches."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import FAMILIES, HEADS, ROOT, TINY, tiny_shapes

from crnas_d2.config import read_config
from crnas_d2.data.datasets import use_own_data
from crnas_d2.engine.export import (
    OnnxNetwork,
    Traced,
    check_traceable,
    export_backbone,
    export_detector,
    largest_difference,
    stride_of,
)
from crnas_d2.errors import InputError
from crnas_d2.modeling.checkpoint.weights import read_checkpoint
from detectron2.modeling import build_model

pytest.importorskip("onnxscript", reason='the extra "export" is not installed')


def detector(pairs: list[Any]) -> Any:
    """A tiny one; statistics of norms differ, and scores of objects, as in a trained one."""
    torch.manual_seed(0)
    model = build_model(read_config("", TINY + pairs))
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.reset_parameters()  # heads start with weights near zero
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def inputs(stride: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for images, rows, columns in ((1, 5, 7), (1, 9, 5), (3, 6, 6)):
        yield torch.randn(images, 3, rows * stride, columns * stride, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["FasterRCNN", "RetinaNet", "NASFPN"])
@torch.no_grad()
def test_backbone_and_neck(family: str, head: str) -> None:
    dilated = [] if family == "mobilenetv2" else ["MODEL.CRNAS.DILATION_CODE", [0, 1, 2, 0, 1]]
    backbone = detector([*HEADS[head], *FAMILIES[family], *dilated]).backbone
    program, onnx = export_backbone(backbone, 3)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported, network = torch.export.load(file).module(), OnnxNetwork(onnx)
    for image in inputs(stride_of(backbone)):
        expected = backbone(image)
        assert [*exported(image)] == [*expected] == network.outputs
        torch.testing.assert_close([*exported(image).values()], [*expected.values()], atol=1e-6, rtol=0)
        torch.testing.assert_close([*network(image)], [*expected.values()], atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", ["FasterRCNN", "RetinaNet"])
@torch.no_grad()
def test_whole_detectors(head: str) -> None:
    found = 0
    everything = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    model = Traced(detector([*HEADS[head], *everything])).eval()
    generator = torch.Generator().manual_seed(2)
    images = [
        255 * torch.rand(3, *size, generator=generator) for size in ((96, 128), (70, 50), (128, 96))
    ]
    network = OnnxNetwork(export_detector(model, images[0]))
    assert network.outputs == ["boxes", "scores", "classes"]
    for image in images:
        expected = model(image)
        found += len(expected[0])
        assert largest_difference(network(image), expected) < 1e-3  # pixels
    assert found > 50


@pytest.mark.parametrize(
    "pairs", [HEADS["CascadeMaskRCNN"], ["MODEL.META_ARCHITECTURE", "PanopticFPN"]]
)
def test_what_a_trace_would_fix(pairs: list[Any]) -> None:
    with pytest.raises(InputError, match="allowed"):
        check_traceable(read_config("", TINY + pairs))


def test_largest_difference() -> None:
    one, none = torch.tensor([1.0, 2.0]), torch.zeros(0)
    assert largest_difference([one, none], [one + 0.5, none]) == 0.5
    assert largest_difference([one], [one[:1]]) == float("inf")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "export.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with found.yaml, found.pth and images."""
    folder = tmp_path_factory.mktemp("export")
    pairs = [*TINY, *tiny_shapes(folder)]
    cfg = read_config("", pairs)
    (folder / "found.yaml").write_text(cfg.dump())
    use_own_data(cfg)  # three classes, which found.yaml does not say
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "found.pth")
    return folder


def test_the_tool(trained: Path) -> None:
    arguments = ["--config-file", "found.yaml", "--images", "images", "--output", "out"]
    done = run(trained, *arguments)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (trained / "out").iterdir()} == {
        *("backbone.pt2", "backbone.onnx", "detector.onnx")
    }
    rows = [
        line.split("|")[1:-1] for line in done.stdout.splitlines() if re.search(r"\.(onnx|pt2) ", line)
    ]
    assert len(rows) == 9 and all(float(row[2]) < 1e-3 for row in rows)
    assert "found.pth" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config-file", "found.yaml", "--output", "found.pth"],
            "--output: found.pth: is not a folder",
        ),
        (["--config-file", "none.yaml", "--output", "bad"], "none.yaml"),
        (["--config-file", "found.yaml", "--images", "none", "--output", "bad"], "--images: none"),
        (
            [
                "--config-file",
                "found.yaml",
                "--output",
                "bad",
                "MODEL.CRNAS.STAGE_CODE",
                "[2, 1, 1, 1]",
            ],
            "is of another network or space",
        ),
        (["--config-file", "found.yaml", "--output", "bad", "MODEL.WEIGHTS", "no.pth"], "no.pth"),
    ],
)
def test_what_it_refuses(trained: Path, arguments: list[str], message: str) -> None:
    done = run(trained, *arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and message in line
    assert not (trained / "bad").exists() and "model" in read_checkpoint(str(trained / "found.pth"), "")
