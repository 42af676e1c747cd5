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
from PIL import Image

import detectron2
from crnas_d2.config import read_config
from crnas_d2.engine.export import (
    OnnxNetwork,
    Traced,
    check_traceable,
    differences,
    export_backbone,
    export_detector,
    strides_of,
)
from crnas_d2.errors import InputError
from crnas_d2.modeling.checkpoint.weights import read_checkpoint
from detectron2.modeling import build_model

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5):
    pytest.skip("tools/export.py needs torch 2.5", allow_module_level=True)
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
    for image in inputs(strides_of(backbone)[0]):
        expected = backbone(image)
        assert [*exported(image)] == [*expected] == network.outputs
        torch.testing.assert_close([*exported(image).values()], [*expected.values()], atol=1e-6, rtol=0)
        torch.testing.assert_close([*network(image)], [*expected.values()], atol=1e-4, rtol=0)


DETECTORS = ["FasterRCNN", "MaskRCNN", "CascadeMaskRCNN", "RetinaNet"]


@pytest.mark.parametrize("head", DETECTORS)
@torch.no_grad()
def test_whole_detectors(head: str) -> None:
    """With other numbers of proposals and of objects than in the picture that was traced."""
    if head == "RetinaNet" and detectron2.__version__ == "0.5":
        pytest.skip("detectron2 0.5 loses TOPK_CANDIDATES_TEST in a trace")
    everything = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.05]
    everything += ["MODEL.RPN.PRE_NMS_TOPK_TEST", 1000, "MODEL.RPN.POST_NMS_TOPK_TEST", 1000]
    model = Traced(detector([*HEADS[head], *everything, "TEST.DETECTIONS_PER_IMAGE", 500])).eval()
    generator, counts = torch.Generator().manual_seed(2), []
    sizes = ((96, 128), (70, 50), (128, 96), (20, 20))
    images = [255 * torch.rand(3, *size, generator=generator) for size in sizes]
    network = OnnxNetwork(export_detector(model, images[0]))
    assert network.outputs == ["boxes", "scores", "classes", "masks"][: len(model(images[0]))]
    for image in images:
        found, expected = network(image), model(image)
        assert [each.shape for each in found] == [each.shape for each in expected]
        counts.append(len(expected[0]))
        # Further down scores are so near to each other that their order is chance.
        largest, relative = differences([a[:20] for a in found], [b[:20] for b in expected])
        assert largest < 1e-3 and relative < 1e-4  # pixels
    assert len(set(counts)) > 1


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["MODEL.ROI_HEADS.NAME", "PointRendROIHeads"], "ROI_HEADS.NAME: 'PointRendROIHeads': allowed"),
        (
            ["MODEL.META_ARCHITECTURE", "PanopticFPN"],
            "META_ARCHITECTURE: 'PanopticFPN': allowed are Gen",
        ),
        (["MODEL.KEYPOINT_ON", True], "KEYPOINT_ON: True: allowed is False"),
    ],
)
def test_what_no_trace_is_known_of(pairs: list[Any], message: str) -> None:
    cfg = read_config("", TINY)
    cfg.merge_from_list(pairs)
    with pytest.raises(InputError, match=message):
        check_traceable(cfg)


def test_differences() -> None:
    boxes, none = torch.tensor([100.0, 200.0]), torch.zeros(0)
    assert differences([boxes, none], [boxes + 0.5, none]) == (0.5, pytest.approx(0.5 / 200.5))
    assert differences([boxes], [boxes[:1]]) == (float("inf"), float("inf"))
    classes = torch.tensor([0, 2])
    assert differences([boxes, classes + 1], [boxes, classes]) == (1.0, 0.5)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "export.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module", params=["FasterRCNN", "RetinaNet"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with found.yaml, as a search on own data writes it, found.pth and images."""
    folder = tmp_path_factory.mktemp("export")
    pairs = [*TINY, *HEADS[request.param], *tiny_shapes(folder)]
    pairs += ["INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 160]
    pairs += ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CLASSES", 3]
    cfg = read_config("", pairs)
    (folder / "found.yaml").write_text(cfg.dump())
    for name in ("train.json", "val.json"):
        (folder / name).unlink()  # a network that was taken elsewhere
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "found.pth")
    return folder


@pytest.mark.parametrize("images", [[], ["--images", "images"]], ids=["noise", "images"])
def test_the_tool(trained: Path, images: list[str]) -> None:
    done = run(trained, "--config-file", "found.yaml", *images, "--output", "out")
    assert done.returncode == 0, done.stderr
    rows = [
        line.split("|")[1:-1]
        for line in done.stdout.splitlines()
        if re.match(r"\| \w+\.(onnx|pt2) ", line)
    ]
    named = {row[0].strip() for row in rows}
    assert named == {path.name for path in (trained / "out").iterdir()} >= {"backbone.onnx"}
    assert all(float(row[2]) < 1e-3 for row in rows)
    assert "found.pth" in done.stdout and ("detector.onnx" in named or "is not written" in done.stdout)


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
        (
            ["--config-file", "found.yaml", "--output", "bad", "MODEL.WEIGHTS"],
            "MODEL.WEIGHTS: has no value",
        ),
        (["--config-file", "found.yaml", "--images", "thin", "--output", "bad"], "thin/a.png: "),
    ],
)
def test_what_it_refuses(trained: Path, arguments: list[str], message: str) -> None:
    (trained / "thin").mkdir(exist_ok=True)
    Image.new("RGB", (1000, 100)).save(trained / "thin" / "a.png")
    done = run(trained, *arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and message in line
    assert not (trained / "bad").exists() and "model" in read_checkpoint(str(trained / "found.pth"), "")
