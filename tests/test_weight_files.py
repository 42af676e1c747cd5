"""The files that tools/convert_weights.py reads and writes: wrappings, refusals, hostile pickles."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converting import (
    FAIR,
    MSRA,
    RESNET18,
    RESNET50,
    as_detectron2,
    config,
    converted,
    pickled,
    reference_of,
    refused,
    saved,
    tool,
)
from torch import nn
from torch.testing import assert_close

from crnas_d2.errors import InputError
from crnas_d2.modeling.checkpoint.array_pickle import load_arrays
from crnas_d2.modeling.checkpoint.published import CONVENTIONS, read_source


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(reference_of(RESNET18), tmp_path_factory.mktemp("resnet18"))


# ---- wrappings -----------------------------------------------------------------------------------

NARROW = {64: 8, 128: 16, 256: 24, 512: 32}
NARROW_OPTIONS = ["MODEL.CRNAS.STEM_CHANNELS", 8, "MODEL.CRNAS.WIDTHS", [8, 16, 24, 32]]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def narrow(resnet18: str) -> State:
    """The weights cut down to a narrow network's, under torchvision's names."""
    state = torch.load(resnet18, weights_only=True)
    return {k: v[tuple(slice(NARROW.get(n, n)) for n in v.shape)].clone() for k, v in state.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


WRAPPINGS: dict[str, Callable[[State], dict[str, Any]]] = {
    "DataParallel": lambda s: under("module.", s),
    "pytorch/examples": lambda s: {
        **{"epoch": 89, "arch": "resnet18", "best_acc1": torch.tensor(70.1)},
        **{"state_dict": under("module.", s), "optimizer": {"state": {}, "param_groups": []}},
    },
    "Lightning": lambda s: {"state_dict": under("model.", s), "pytorch-lightning_version": "2.2.0"},
    "MoCo": lambda s: {
        "state_dict": {
            **under("module.encoder_k.", {name: value + 1 for name, value in s.items()}),
            **under("module.encoder_q.", s),
            "module.queue": torch.zeros(4, 8),
        }
    },
    "mmcls": lambda s: {
        "meta": {},
        "state_dict": under("backbone.", s) | {"head.fc.weight": torch.ones(3, 32)},
    },
    "DeiT": lambda s: {"model": s, "epoch": 3},
}


@pytest.mark.parametrize("wrapping", [*WRAPPINGS, "safetensors"])
def test_wrapped_weights_are_the_bare_ones(wrapping: str, narrow: State, tmp_path: Path) -> None:
    cfg = config(RESNET18, *NARROW_OPTIONS)
    source = saved(narrow, tmp_path)
    bare = converted(cfg, source, tmp_path)
    if wrapping in WRAPPINGS:
        saved(WRAPPINGS[wrapping](narrow), tmp_path)
    else:
        Path(source).unlink()
        source = str(tmp_path / "source.safetensors")
        pytest.importorskip("safetensors.torch").save_file(narrow, source)
    found = converted(cfg, source, tmp_path)
    assert found.keys() == bare.keys()
    assert all(torch.equal(found[name], value) for name, value in bare.items())


def test_safetensors_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert "`pip install safetensors` is needed" in refused(config(RESNET18), str(path), tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"model": {}, "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "torch.nn.modules.container.Sequential"),
    ],
)
def test_objects_are_named_in_whole_words(content: Any, named: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "source.pth")
    with pytest.raises(InputError) as caught:
        read_source(str(tmp_path / "source.pth"), "--weights")
    assert refused(config(RESNET18), str(tmp_path / "source.pth"), tmp_path) == str(caught.value)
    (why,) = re.findall(r"not a detectron2 checkpoint or state dict \((.*)\)$", str(caught.value))
    assert named in why and len(why) <= 120
    full = re.sub(r"\x1b\[\d*m", "", str(caught.value.__cause__))
    assert set(why.removesuffix("...").split()) <= set(full.split())


def test_an_errors_text_is_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("\x1b[1mbold\x1b[0m\n" + "word " * 99)

    monkeypatch.setattr(torch, "load", load)
    error = refused(config(RESNET18), str(tmp_path / "source.pth"), tmp_path)
    assert re.search(r"\(bold( word){20,23} \.\.\.\)$", error)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("INPUT.FORMAT", "BGR", "'RGB'"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675], "[123.675, 116.28, 103.53]"),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], "[58.395, 57.12, 57.375]"),
        ("MODEL.CRNAS.STRIDE_IN_1X1", True, "False"),
    ],
)
def test_another_input(tmp_path: Path, resnet18: str, key: str, value: Any, needed: str) -> None:
    error = refused(config(RESNET18, key, value), resnet18, tmp_path)
    assert error.startswith(f"{key}: {value!r}: ") and needed in error and resnet18 in error


def test_the_option_overrides_the_files_convention(tmp_path: Path) -> None:
    source = saved(reference_of(RESNET18), tmp_path)
    cfg = config(RESNET18, convention=FAIR)
    assert refused(cfg, source, tmp_path).startswith("INPUT.FORMAT: 'BGR': ")
    converted(cfg, source, tmp_path, "fair")
    content = torch.load(tmp_path / "output.pth", weights_only=True)
    assert content["input_convention"] == CONVENTIONS["fair"]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (
            ["MODEL.CRNAS.WIDTH_MULTIPLIER", 0.5],
            "conv1.weight has shape (64, 3, 7, 7) there, (32, 3, 7, 7) in this config",
        ),
        (
            ["MODEL.CRNAS.FAMILY", "resnext"],
            "source's res2.0: shortcut.weight has shape none there, (256, 64, 1, 1) in this config",
        ),
        (["MODEL.CRNAS.NORM", "GN"], "conv1.norm.running_mean has shape (64,) there, none in"),
        (
            ["MODEL.CRNAS.FAMILY", "mobilenetv2", "MODEL.CRNAS.STAGE_CODE", [1] * 10],
            "has blocks of 4 widths; mobilenetv2 takes 8",
        ),
        (["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "MODEL.BACKBONE.NAME: 'build_resnet_backb"),
        (["MODEL.CRNAS.STAGE_CODE", [1, 2]], "MODEL.CRNAS.STAGE_CODE: "),
    ],
    ids=str,
)
def test_another_network(tmp_path: Path, resnet18: str, options: list[Any], shown: str) -> None:
    plain = ["MODEL.CRNAS.DILATION_CODE", []]
    assert shown in refused(config(RESNET18, *plain, *options), resnet18, tmp_path)


def without(state: State, prefix: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


UNKNOWN = (
    "holds no ResNet, ResNeXt or MobileNetV2 under the names of torchvision, Caffe2 or detectron2, but "
)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda s: without(s, "layer2.1.bn2.running_var"), "r has shape none there, (128,) in this"),
        (lambda s: s | {"layer2.1.se.weight": torch.ones(3)}, "se.weight has shape (3,) there, none"),
        (lambda s: without(s, "layer3.1."), "has no block after res4.0, and res4.1 needs one"),
        (lambda s: {f"{k}.weight": torch.ones(1) for k in "abcd"}, f"{UNKNOWN}a.weight, b.weight, c.w"),
        (lambda s: {"student": s, "teacher": s}, f"{UNKNOWN}student, teacher"),
        (lambda s: {}, f"{UNKNOWN}nothing"),
        (lambda s: {"model": [1]}, "not a detectron2 checkpoint or state dict (it holds no dict of"),
        (lambda s: {"model": as_detectron2(s)}, "not a detectron2 checkpoint or state dict"),
        (
            lambda s: {name: torch.from_numpy(value) for name, value in as_detectron2(s).items()},
            "does not say what input it was made for; allowed is tools/convert_weights.py with ",
        ),
    ],
)
def test_another_source(
    tmp_path: Path, resnet18: str, change: Callable[[State], dict[str, Any]], shown: str
) -> None:
    source = saved(change(torch.load(resnet18, weights_only=True)), tmp_path)
    assert shown in refused(config(RESNET18), source, tmp_path)


def test_group_norm_is_no_fused_batch_norm(tmp_path: Path) -> None:
    blobs = {"conv1_w": np.ones((64, 3, 7, 7), "f4"), "conv1_gn_s": np.ones(64, "f4")}
    error = refused(config(RESNET50, convention=MSRA), pickled(blobs, tmp_path), tmp_path)
    assert "has GroupNorm; allowed are weights with BatchNorm" in error


@pytest.mark.parametrize("name", ["broken.pth", "broken.pkl"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", "half", "list", None], ids=str)
def test_a_file_without_weights(tmp_path: Path, name: str, content: Any) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        values: Any = [1, 2, 3] if content == "list" else {"conv1.weight": [1.0] * 9}
        save = torch.save if name.endswith(".pth") else lambda v, p: p.write_bytes(pickle.dumps(v))
        save(values, path)
        if content == "half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = refused(config(RESNET18), str(path), tmp_path)
    why = "it holds no dict of weights" if content == "list" else ""
    assert error.startswith(f"--weights: {path}: not a detectron2 checkpoint or state dict ({why}")


@pytest.mark.parametrize(
    "name", ["file/output.pth", "folder/output.pth", "gone/output.pth", "output.pkl"]
)
def test_an_output_that_cannot_be_written(tmp_path: Path, resnet18: str, name: str) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "output.pth").write_text("precious")
    (tmp_path / "folder" / "output.pth").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=re.escape(f"--output: {tmp_path / name}: ")):
        tool.convert_file(config(RESNET18), resnet18, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file" / "output.pth").read_text() == "precious"


# ---- pickles -------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function; that is how a pickle runs code."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), f"{os.system.__module__}.system"),
        (eval, ("open('{}', 'w')",), r"(__builtin__|builtins)\.eval"),
        (getattr, ("", "format"), r"(__builtin__|builtins)\.getattr"),
        (np.save, ("{}", 1), r"numpy.*\.save"),
        (np.ndarray, ((1,), np.dtype(object), b"12345678"), "an array of 'O8'"),  # a pointer of its own
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_code(
    tmp_path: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: str,
    protocol: int,
) -> None:
    trace = tmp_path / "trace"
    filled = [a.format(trace) if isinstance(a, str) else a for a in arguments]
    content = {"conv1_w": np.ones((2, 2), "f4"), "trap": Call(function, *filled)}
    source = pickled(content, tmp_path, protocol)
    error = refused(config(RESNET18), source, tmp_path)
    assert re.search(rf"{named}: allowed are (arrays|numbers)", error)
    assert not trace.exists()
    if function is os.system:  # the trap works
        pickle.loads(Path(source).read_bytes())
        assert trace.exists()


ARRAYS = {
    "float": np.arange(6, dtype="f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">f4"),
    "none": np.array(5, dtype="i8"),
    "half": np.ones(2, "f2"),
    "bool": np.array([True, False]),
    "scalar": np.float32(2.5),
}


@pytest.mark.parametrize("numpy", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_and_numpy(tmp_path: Path, protocol: int, numpy: bytes) -> None:
    content = {"model": OrderedDict(ARRAYS), "__author__": "someone"}
    path = Path(pickled(content, tmp_path, protocol))
    if protocol < 4:  # later ones hold lengths, too
        path.write_bytes(re.sub(rb"numpy\._?core", numpy, path.read_bytes()))
    found = load_arrays(str(path))
    assert found["__author__"] == "someone" and list(found["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        expected = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
        assert_close(found["model"][name], expected, rtol=0, atol=0)


def test_an_array_of_python_2(tmp_path: Path) -> None:
    """Its strings are bytes; the opcodes of {"a": array([1, 255 / 256], float32)} by hand."""
    values = np.array([1, 255 / 256], "<f4").tobytes()
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = (
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + values + b"tb"
    (tmp_path / "old.pkl").write_bytes(b"\x80\x02}U\x01a" + empty + state + b"s.")
    found = load_arrays(str(tmp_path / "old.pkl"))
    assert_close(found["a"], torch.tensor([1, 255 / 256]), rtol=0, atol=0)


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    for array in (np.array([{}, 1], dtype=object), np.array(["text"]), np.zeros(1, "f4,O")):
        with pytest.raises(pickle.UnpicklingError, match="allowed are numbers"):
            load_arrays(pickled({"a": array}, tmp_path))
