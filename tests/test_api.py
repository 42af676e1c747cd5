"""The way in from Python: build_backbone, load_found, and find over a score of one's own."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import ROOT, TINY, assert_same_weights, tiny_shapes

import crnas_d2
from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.space import DilationSpace, StageSpace
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model

CODES = {
    "resnet_basic": "resnet_basic/1-1-2-4/0-0-10-1021",
    "resnet": "resnet/1-3-2-1/0-010-00-0",
    "resnext": "resnext/1-1-1-2/0-0-1-02",
    "mobilenetv2": "mobilenetv2/1-1-2-3-3-2-2-1-1-1/0-1-01-020-011-00-01-0-0-0",
}


@pytest.mark.parametrize("family", CODES)
def test_a_backbone_by_its_codes(family: str) -> None:
    """The registry's, given the same codes by config."""
    backbone = crnas_d2.build_backbone(CODES[family])
    codes, node = Architecture.parse(CODES[family]), "MODEL.CRNAS."
    keys = [f"{node}FAMILY", family, f"{node}STAGE_CODE", list(codes.stage_code)]
    keys += [f"{node}DILATION_CODE", list(codes.dilation_code), "MODEL.BACKBONE.FREEZE_AT", 0]
    builder = BACKBONE_REGISTRY.get("build_crnas_backbone")
    expected = builder(read_config("", keys), ShapeSpec(channels=3))
    expected.load_state_dict(backbone.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = backbone.eval()(image), expected.eval()(image)
    for name, shape in backbone.output_shape().items():
        assert torch.equal(ours[name], theirs[name])
        assert ours[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)


@pytest.mark.parametrize(
    ("text", "norm", "message"),
    [
        ("resnet/3-4-6", "BN", "architecture 'resnet/3-4-6'"),
        ("vgg/1-1-1-1/0-0-0-0", "BN", "family 'vgg': allowed are"),
        (CODES["resnet"], "XBN", "MODEL.CRNAS.NORM: 'XBN'"),
    ],
)
def test_what_is_no_backbone(text: str, norm: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        crnas_d2.build_backbone(text, norm=norm)


@pytest.mark.parametrize("features", [(), ("res2", "res9")])
def test_stages_that_are_not_there(features: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"out_features: .*: allowed are res2, res3, res4, res5, stem"):
        crnas_d2.build_backbone(CODES["resnet"], out_features=features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "vgg"}, "family: 'vgg': allowed are resnet_basic"),
        ({"top_k": 0}, "top_k: 0: at least 1"),
        ({"budget": 1}, "none of 10000 codes costs that"),
    ],
)
def test_what_find_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        crnas_d2.find(lambda architecture: 0.0, **options)


def test_without_opencv() -> None:
    """Pictures alone need it; detectron2 leaves it to its users."""
    code = "import sys; sys.modules['cv2'] = None\nimport crnas_d2\n"
    code += "crnas_d2.build_backbone, crnas_d2.load_found\nimport crnas_d2.report.page\n"
    code += "from crnas_d2.report.pictures import Cannot, pictures\n"
    code += "try:\n    pictures(None, [])\nexcept Cannot as reason:\n    print(reason)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "cv2" in done.stdout and "pip install opencv-python" in done.stdout


def test_a_found_detector(tmp_path: Path) -> None:
    cfg = read_config("", TINY)
    config, model = tmp_path / "found.yaml", build_model(cfg)
    config.write_text(cfg.dump())
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS: '': weights of a trained"):
        crnas_d2.load_found(str(config))
    torch.save({"model": model.state_dict()}, tmp_path / "found.pth")
    found = crnas_d2.load_found(str(config))
    assert_same_weights(found.state_dict(), model.state_dict())
    assert not found.training
    (output,) = found([{"image": torch.zeros(3, 96, 96)}])
    assert output["instances"].image_size == (96, 96)
    other = build_model(read_config("", [*TINY, "MODEL.CRNAS.STAGE_CODE", [2, 1, 1, 1]]))
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth"):
        crnas_d2.load_found(str(config), str(tmp_path / "other.pth"))


def test_a_found_detector_of_own_data_that_is_not_here(tmp_path: Path) -> None:
    data = [*tiny_shapes(tmp_path / "data"), "MODEL.ROI_HEADS.NUM_CLASSES", 3]
    cfg = read_config("", [*TINY, *data])  # as write_found says it
    (tmp_path / "found.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "found.pth")
    shutil.rmtree(tmp_path / "data")
    assert crnas_d2.load_found(str(tmp_path / "found.yaml")).roi_heads.num_classes == 3


def test_find_is_the_best_of_all_where_blocks_add_up() -> None:
    """A plain loop over all codes finds the same: no block's effect depends on another's."""

    def score(architecture: Architecture) -> float:
        worth = itertools.cycle([0.5, -0.2, 0.1, 0.3, -0.4])
        rates = sum(next(worth) * digit for digit in architecture.dilation_code)
        return rates - sum((n - m) ** 2 for n, m in zip(architecture.stage_code, (1, 2, 3, 2)))

    space = StageSpace("resnet_basic", ((1, 2, 3),) * 4)
    stages = max(space.eligible(8), key=score)
    choices = itertools.product((0, 1, 2), repeat=8)
    rates = max(
        (DilationSpace("resnet_basic", stages.stage_code).with_code(c) for c in choices), key=score
    )
    found = crnas_d2.find(score, "resnet_basic", 8, top_k=1)
    assert found.architecture == rates and found.score == score(rates)


def test_find_needs_no_torch() -> None:
    code = "import sys, crnas_d2; crnas_d2.find(lambda a: a.blocks); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_names() -> None:
    assert all(getattr(crnas_d2, name).__doc__ for name in crnas_d2.__all__)
    with pytest.raises(AttributeError, match="no attribute 'search_all'"):
        crnas_d2.search_all  # noqa: B018
