"""Files of weights: reading them, and whether they fit a backbone and a config's input.

A classifier's checkpoint has its backbone under ``backbone.``, a detector with FPN under
``backbone.bottom_up.``; a detector loads either (``load_below_neck``). Our checkpoints hold the input
they were trained with as ``input_convention``, a dict with the keys of ``CONVENTION_KEYS``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from crnas_d2.errors import InputError
from crnas_d2.modeling.checkpoint.array_pickle import load_arrays
from detectron2.utils.file_io import PathManager

# The config key that each part of an input convention is compared with.
CONVENTION_KEYS = {
    "format": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "stride_in_1x1": "MODEL.CRNAS.STRIDE_IN_1X1",
}
TOLERANCE = 0.01  # of means and deviations, values 0..255, which projects round differently
BARE, BELOW_NECK = "backbone.", "backbone.bottom_up."


def read_file(path: str, key: str) -> dict[str, Any]:
    """The content of a .pkl, a .safetensors or what torch.save wrote, by path or URL; no code is run.

    For the last, that is torch's promise, which hostile files could break before torch 2.10
    (CVE-2025-32434, CVE-2026-24747). Raises InputError, which begins with ``key``: it holds no dict.
    """
    try:
        file = PathManager.get_local_path(path)
    except Exception as error:  # of the network, or of no such scheme
        why = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise InputError(f"{key}: {path}: cannot be fetched ({why})") from error
    try:
        if path.endswith(".pkl"):
            content = load_arrays(file)
        elif path.endswith(".safetensors"):
            from safetensors.torch import load_file

            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not isinstance(content.get("model", content), dict):
            raise TypeError("it holds no dict of weights")
    except ImportError as error:
        raise InputError(f"{key}: {path}: `pip install safetensors` is needed to read it") from error
    except Exception as error:  # a broken file may raise any
        text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # colours of the terminal
        text = text.rpartition("WeightsUnpickler error: ")[2]  # without torch's advice
        why = textwrap.shorten(text, 120, placeholder=" ...") or type(error).__name__
        raise InputError(f"{key}: {path}: not a detectron2 checkpoint or state dict ({why})") from error
    return content


def read_checkpoint(path: str, key: str) -> dict[str, Any]:
    """As ``read_file``, but of a .pth file only; an InputError for another format."""
    if path.endswith((".pkl", ".safetensors")):
        needed = "allowed is a .pth file, and tools/convert_weights.py makes one from it"
        raise InputError(f"{key}: {path}: does not say what input it was made for; {needed}")
    return read_file(path, key)


def difference(own: Mapping[str, Any], held: Mapping[str, Any]) -> str:
    """The first weight that a config's network and a file do not both have in one shape; "": none."""
    for name in [*own, *held]:
        here, there = (
            tuple(state[name].shape) if isinstance(state.get(name), torch.Tensor) else "none"
            for state in (own, held)
        )
        if here != there and not name.endswith("num_batches_tracked"):  # frozen norms have no counter
            return f"{name} has shape {there} there, {here} in this config"
    return ""


def check_backbone_weights(
    backbone: nn.Module, path: str, key: str, convention: dict[str, Any]
) -> None:
    """Raise an InputError unless a file has a backbone's weights (no neck), shapes and convention."""
    checkpoint = read_checkpoint(path, key)
    state = checkpoint.get("model", checkpoint)
    below = below_neck(backbone)
    has_neck = below is not backbone and any(name.startswith(BELOW_NECK) for name in state)
    prefix = BELOW_NECK if has_neck else BARE
    own = {prefix + name: value for name, value in below.state_dict().items()}
    held = {name: value for name, value in state.items() if name.startswith(prefix)}
    if differs := difference(own, held):
        what = f"{key}: {path}: is of another network or space: {differs}"
        if key == "--resume":
            raise InputError(f"{what}; set the config back, or start in another OUTPUT_DIR")
        raise InputError(
            f"{what}; allowed is a checkpoint with its weights; tools/convert_weights.py takes "
            "ImageNet weights from one network to another"
        )
    check_convention(checkpoint.get("input_convention", {}), path, convention)


def check_convention(held: dict[str, Any], path: str, convention: dict[str, Any]) -> None:
    """Raise an InputError if a part of the weights' convention is not the config's."""
    for part, theirs in held.items():
        ours = convention[part]
        is_same = ours == theirs
        if isinstance(theirs, list) and len(ours) == len(theirs):
            is_same = np.allclose(ours, theirs, rtol=0, atol=TOLERANCE)
        if not is_same:
            needed = f"the weights in {path} were made with {theirs!r}; allowed is the same"
            raise InputError(f"{CONVENTION_KEYS[part]}: {ours!r}: {needed}")


def below_neck(backbone: nn.Module) -> nn.Module:
    """A detector's backbone without its FPN or NASFPN."""
    return getattr(backbone, "bottom_up", backbone)


def load_below_neck(neck: Any) -> Any:
    """Let an FPN or NASFPN load a checkpoint of its bare backbone, such as a classifier's."""
    names = list(neck.bottom_up.state_dict())

    def rename(state: dict[str, Any], prefix: str, *_: object) -> None:
        for name in names:
            if prefix + name in state:
                state[f"{prefix}bottom_up.{name}"] = state.pop(prefix + name)

    neck._register_load_state_dict_pre_hook(rename)  # public since torch 2.5
    return neck
