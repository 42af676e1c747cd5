"""Effective receptive fields: of known convolutions, of all families, and tools/erf.py."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench import script, snapshot
from detectors import FAMILIES, HEADS, ROOT, TINY
from PIL import Image
from torch import nn

from crnas_d2.analysis.erf import CENTRE, INPUT, PLATE, noise, receptive_fields, side_of
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.files import write_bytes
from crnas_d2.modeling.build import input_convention
from detectron2.modeling import build_model

TOOL = ROOT / "tools" / "erf.py"


class Pyramid(nn.Module):
    """One level, of a stack of layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"p": self.layers(x)}


def conv(channels: int = 1, **options: Any) -> nn.Conv2d:
    """A 3x3 convolution of ones that keeps the place of its input."""
    padding = options.get("dilation", 1)
    layer = nn.Conv2d(channels, channels, 3, padding=padding, bias=False, **options)
    nn.init.ones_(layer.weight)
    return layer


def field_of(*layers: nn.Module, channels: int = 1, positions: int = 3) -> np.ndarray:
    stride = 2 ** sum(getattr(layer, "stride", 1) == (2, 2) for layer in layers)
    return receptive_fields(Pyramid(*layers), noise(1, channels), {"p": stride}, positions)["p"]


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_convolution_of_rate_d_is_2d_plus_1_wide(dilation: int) -> None:
    """To the pixel, around the centre, wherever the unit is; its nine taps weigh the same."""
    field = field_of(conv(channels=2, dilation=dilation), channels=2)
    taps = {CENTRE - dilation, CENTRE, CENTRE + dilation}
    assert set(zip(*np.nonzero(field))) == {(row, column) for row in taps for column in taps}
    assert np.allclose(field[field > 0], 1 / 9)
    assert side_of(field) == 2 * dilation + 1


@pytest.mark.parametrize("layers", [1, 4, 10])
def test_a_linear_stack_has_the_variance_of_its_layers(layers: int) -> None:
    """A 3x3 kernel of ones adds (1 + 0 + 1) / 3 on each axis."""
    field = field_of(*(conv() for _ in range(layers)), positions=1)
    places = np.arange(PLATE) - CENTRE
    for axis in (0, 1):
        along = field.sum(axis)
        assert along @ places == pytest.approx(0, abs=1e-6)
        assert along @ places**2 == pytest.approx(layers * 2 / 3, rel=0.05)


def test_strides_put_the_unit_in_the_centre() -> None:
    field = field_of(conv(stride=2), conv(stride=2), conv(stride=2), positions=8)
    for axis in (0, 1):
        places = np.nonzero(field.sum(axis))[0]
        assert (places.min(), places.max()) == (CENTRE - 7, CENTRE + 7)


def test_energy_is_the_absolute_gradient() -> None:
    """Signs cancel neither over channels nor over units, and energies are 1 to 3, not 1 to 9."""
    layer = conv(channels=2)
    layer.weight.data.zero_()
    layer.weight.data[0, :, 1, 1] = torch.tensor([1, -1])
    layer.weight.data[0, 0, 1, 2] = -6
    absolute = nn.LeakyReLU(-1)  # whose gradient is 1 or -1, by the pixel
    field = field_of(absolute, layer, channels=2, positions=8)
    assert field[CENTRE, CENTRE] == pytest.approx(0.25)
    assert field[CENTRE, CENTRE + 1] == pytest.approx(0.75)


def test_the_side_of_fields_that_are_known() -> None:
    assert side_of(np.ones((PLATE, PLATE))) == 501  # (501 / 512) ** 2 is 0.957, (499 / 512) ** 2 0.9499
    places = np.arange(PLATE) - CENTRE
    bell = np.exp(-(places**2) / (2 * 20**2))
    # On each axis the square root of 0.95 lies within 2.237 standard deviations.
    assert side_of(np.outer(bell, bell)) == pytest.approx(2 * 2.237 * 20, abs=2)
    corner = np.zeros((PLATE, PLATE))
    corner[0, 0] = 1
    assert side_of(corner) == PLATE


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_is_none(weight: float) -> None:
    layer = conv()
    nn.init.constant_(layer.weight, weight)
    with pytest.raises(InputError, match=r"p: the gradient's sum is (0\.0|nan|inf)"):
        field_of(layer)


NETWORKS = {**FAMILIES, "RetinaNet": HEADS["RetinaNet"], "NASFPN": HEADS["NASFPN"]}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
def test_every_family_and_neck(options: list[Any]) -> None:
    """Each level that there is sees more than its own stride."""
    backbone = build_model(read_config("", [*TINY, *options])).eval().backbone
    levels = {level: shape.stride for level, shape in backbone.output_shape().items()}
    fields = receptive_fields(backbone, noise(1, 3), levels, 1)
    assert list(fields) == list(levels)
    for level, field in fields.items():
        assert field.shape == (PLATE, PLATE) and field.sum() == pytest.approx(1)
        assert levels[level] < side_of(field) <= PLATE, level


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with configs, weights of the first, whole, below the neck and damaged, and pictures."""
    for name, code in (("tiny", [1, 2, 1, 1]), ("deep", [1, 2, 1, 3])):
        cfg = read_config("", [*TINY, "MODEL.CRNAS.STAGE_CODE", code])
        (tmp_path / f"{name}.yaml").write_text(cfg.dump())
    torch.manual_seed(5)
    cfg = read_config(str(tmp_path / "tiny.yaml"))
    whole = build_model(cfg).state_dict()
    for name, state in (
        ("whole", whole),
        ("below", {key: value for key, value in whole.items() if "backbone.bottom_up" in key}),
        ("damaged", {key: value * float("nan") for key, value in whole.items()}),
    ):
        content = {"model": state, "input_convention": input_convention(cfg)}
        torch.save(content, tmp_path / f"{name}.pth")
    for name, colour in (("a.png", (10, 20, 30)), ("b.jpg", (0, 0, 0))):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), colour).save(tmp_path / "images" / name)
    return tmp_path


def test_two_configs_as_a_person_starts_it(tiny: Path) -> None:
    """Over the files of another run."""
    output = tiny / "erf"
    for name in ("erf.png", "erf.npz"):
        write_bytes(output / name, b"of another run")
    command = [sys.executable, "-W", "ignore", str(TOOL), "--config-file", "tiny.yaml", "deep.yaml"]
    command += ["--weights", "whole.pth", "", "--images", "images", "--positions", "1"]
    command += ["--levels", "p3", "p5", "--output", "erf", "SEED", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tiny)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in output.iterdir()) == ["erf.npz", "erf.png"]
    files, weights = ["tiny.yaml", "deep.yaml"], ["whole.pth", "random weights"]
    with np.load(output / "erf.npz") as arrays:
        found = {name: array.tolist() for name, array in arrays.items() if name != "fields"}
        fields = arrays["fields"]
    assert fields.shape == (2, 2, PLATE, PLATE) and np.allclose(fields.sum(axis=(2, 3)), 1)
    sides = [[side_of(field) for field in of] for of in fields]
    assert found == {"configs": files, "weights": weights, "levels": ["p3", "p5"], "sides": sides}
    assert "deep.yaml: random weights\n" in done.stdout
    assert "mean of 1 positions in each of 2 images\n" in done.stdout
    cells = [line.strip("| ").split("|") for line in done.stdout.splitlines()[-2:]]
    assert [[cell.strip() for cell in row] for row in cells] == [
        [file, name, *map(str, of)] for file, name, of in zip(files, weights, sides)
    ]
    with Image.open(output / "erf.png") as picture:
        picture.load()
        assert picture.width == pytest.approx(picture.height, rel=0.1)  # two rows of two plates


def test_images_are_normalised_as_the_network_does_it(tiny: Path) -> None:
    tool = script("tools/erf.py")
    options = ["MODEL.PIXEL_MEAN", "[8.0, 8.0, 8.0]", "MODEL.PIXEL_STD", "[2.0, 2.0, 2.0]"]
    network = tool.load(str(tiny / "tiny.yaml"), None, ["p3"], [*options, "INPUT.FORMAT", "RGB"])
    (tiny / "images" / "._a.png").write_bytes(b"of macOS")
    paths = tool.files_in(tiny / "images", 5)
    assert [Path(path).name for path in paths] == ["a.png", "b.jpg"]
    first, second = tool.inputs(network, paths, 2)
    for image, values in ((first, [1, 6, 11]), (second, [-4, -4, -4])):
        assert image.equal(
            torch.tensor(values, dtype=torch.float32).expand(INPUT, INPUT, 3).permute(2, 0, 1)
        )
    assert len(tool.files_in(tiny / "images", 1)) == 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Callable[..., None]:
    """The tool in this process and in the folder of the tiny config: options, then KEY VALUE pairs."""

    def call(*options: str, pairs: Sequence[str] = ()) -> None:
        known = [
            "--config-file",
            "tiny.yaml",
            "--num-images",
            "1",
            "--positions",
            "1",
            "--output",
            "out",
        ]
        monkeypatch.chdir(tiny)
        monkeypatch.setattr(sys, "argv", ["erf.py", *known, *options, *pairs])
        runpy.run_path(str(TOOL), run_name="__main__")

    return call


def test_what_a_file_lacks_is_random(run: Callable[..., None], tiny: Path, capsys: Any) -> None:
    """Four lateral and four output convolutions of the FPN, with biases; both keys of weights."""
    fields = []
    for pairs in (["MODEL.WEIGHTS", "below.pth"], ["MODEL.CRNAS.WEIGHTS", "whole.pth"]):
        run("--levels", "p4", "--num-images", "1", pairs=pairs)
        assert f"tiny.yaml: {pairs[1]}, 16 random weights\n" in capsys.readouterr().out
        with np.load(tiny / "out" / "erf.npz") as arrays:
            fields.append(arrays["fields"])
    assert np.array_equal(*fields)
    run("--levels", "p4", "--weights", "whole.pth")
    with np.load(tiny / "out" / "erf.npz") as arrays:
        assert not np.allclose(arrays["fields"], fields[0])


BAD = [  # options, KEY VALUE pairs, the error
    (["--levels", "p3", "p9"], [], "--levels: p9: tiny.yaml has p2, p3, p4, p5, p6"),
    (["--weights", "no.pth"], [], "MODEL.WEIGHTS: no.pth: no such file"),
    (["--weights", "tiny.yaml"], [], "MODEL.WEIGHTS: tiny.yaml: not a detectron2 checkpoint"),
    (["--weights", "whole.pth", ""], [], "--weights: 2 files: 1 are needed, one for each config"),
    (
        ["--config-file", "deep.yaml", "--weights", "whole.pth"],
        [],
        "MODEL.WEIGHTS: whole.pth: is of another",
    ),
    (["--weights", "damaged.pth"], [], "tiny.yaml: damaged.pth: p3: the gradient's sum is nan"),
    (["--num-images", "0"], [], "--num-images: 0: at least 1 is needed"),
    (["--positions", "-1"], [], "--positions: -1: at least 1 is needed"),
    (["--images", "no"], [], "--images: no: a folder with images is needed"),
    (["--images", "."], [], "--images: .: a folder with images is needed: .bmp, .jpeg, "),
    (["--images", "torn"], [], "--images: 1 of 1 images cannot be used: torn/a.png: "),
    (["--output", "tiny.yaml"], [], "--output: tiny.yaml: is not a folder"),
    (["--config-file", "tiny.yaml", "no.yaml"], [], "--config-file: no.yaml: "),
    (
        [],
        ["MODEL.CRNAS.SUPERNET", "stage"],
        "MODEL.CRNAS.SUPERNET: 'stage': allowed is a fixed network",
    ),
    ([], ["MODEL.CRNAS.STAGE_CODE", "[1, 2]"], "MODEL.CRNAS.STAGE_CODE: "),
    ([], ["MODEL.BACKBONE.NAME", "build_vgg"], "MODEL.BACKBONE.NAME: 'build_vgg': unknown"),
    ([], ["MODEL.CRNAS.STAGE_KODE", "1"], "MODEL.CRNAS.STAGE_KODE: 1: no such key"),
]


@pytest.mark.parametrize(("options", "pairs", "error"), BAD, ids=str)
def test_bad_input_is_one_line(
    run: Callable[..., None], options: list[str], pairs: list[str], error: str, tiny: Path, capsys: Any
) -> None:
    """With status 2, and what is there stays as it is."""
    write_bytes(tiny / "out" / "erf.png", b"of another run")
    write_bytes(tiny / "torn" / "a.png", (tiny / "images" / "a.png").read_bytes()[:60])
    before = snapshot(tiny)
    with pytest.raises(SystemExit) as left:
        run(*options, pairs=pairs)
    assert left.value.code == 2 and snapshot(tiny) == before
    lines = capsys.readouterr().err.splitlines()
    (line,) = (line for line in lines if line and "/1 [" not in line)  # without the bar's
    assert line.startswith(f"error: {error}"), line
