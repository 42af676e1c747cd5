"""Checkpoints: does a file hold the weights of this backbone, and were they made for this input?

A classifier's checkpoint has its backbone under ``backbone.``, a detector with FPN under
``backbone.bottom_up.``; a detector takes either (``load_below_neck``). Our checkpoints carry the input
they were trained with as ``input_convention``: {"format": "RGB" or "BGR", "pixel_mean": [3 floats],
"pixel_std": [3 floats], "stride_in_1x1": bool}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from crnas_d2.errors import InputError
from detectron2.utils.file_io import PathManager

# The config key that each part of an input convention is compared with.
CONVENTION_KEYS = {
    "format": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "stride_in_1x1": "MODEL.CRNAS.STRIDE_IN_1X1",
}
# Published means differ in the last digit: 103.53 and 103.530, 57.12 and 57.120.
TOLERANCE = 0.01
BARE, BELOW_NECK = "backbone.", "backbone.bottom_up."


def check_backbone_weights(
    backbone: nn.Module, path: str, key: str, convention: Mapping[str, Any]
) -> None:
    """A checkpoint holds the backbone's weights: all, at their shapes, and no others.

    Args:
        backbone: of a detector, bare or below a neck (which is not looked at); on any device.
        path: a .pth file, or an address that detectron2 can fetch it from.
        key: the config key or option that named it, for the message.
        convention: what the config says of the input; compared if the checkpoint says it, too.

    Raises:
        InputError: a pickle, not a checkpoint, one of another space, or one for another input.
    """
    checkpoint = read_checkpoint(path, key)
    state = checkpoint.get("model", checkpoint)
    below = getattr(backbone, "bottom_up", backbone)
    prefix = BARE
    if below is not backbone and any(name.startswith(BELOW_NECK) for name in state):
        prefix = BELOW_NECK
    own, held = _shapes(below.state_dict(), ""), _shapes(state, prefix)
    for name in [*own, *held]:
        if own.get(name) != held.get(name):
            raise InputError(
                f"{key}: {path}: is of another network or space: {prefix}{name} has shape "
                f"{held.get(name, 'none')} there, the backbone of this config {own.get(name, 'none')}; "
                f"allowed is a checkpoint with its {len(own)} weights; tools/convert_weights.py takes "
                "ImageNet weights from one network to another"
            )
    check_convention(checkpoint.get("input_convention", {}), path, convention)


def read_checkpoint(path: str, key: str) -> dict[str, Any]:
    """The content of a .pth file, of which nothing is run.

    Args:
        path: of the file, or an address that detectron2 can fetch it from.
        key: the config key or option that named it, for the message.

    Raises:
        InputError: a pickle, or not a checkpoint.
    """
    if path.endswith(".pkl"):
        raise InputError(
            f"{key}: {path}: a pickle may run code when it is read; allowed is a .pth file, and "
            "tools/convert_weights.py makes one of it"
        )
    try:
        file = PathManager.get_local_path(path)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        checkpoint.get("model", checkpoint).items()
    except Exception as error:  # a broken file may raise any
        why = " ".join(str(error).split())[:100]
        raise InputError(f"{key}: {path}: not a detectron2 checkpoint ({why})") from error
    return checkpoint


def _shapes(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    """Shapes of what is below the prefix; frozen norms do not count batches, so nobody has to."""
    return {
        name[len(prefix) :]: tuple(getattr(value, "shape", ()))
        for name, value in state.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }


def check_convention(held: Mapping[str, Any], path: str, convention: Mapping[str, Any]) -> None:
    """The input that weights were made for is the config's.

    Args:
        held: what the weights say, all of it or a part.
        path: of the weights, for the message.
        convention: what the config says.

    Raises:
        InputError: the first key that differs.
    """
    for part, theirs in held.items():
        ours = convention[part]
        if isinstance(theirs, list):
            same = len(ours) == len(theirs) and all(
                abs(a - b) <= TOLERANCE for a, b in zip(ours, theirs)
            )
        else:
            same = ours == theirs
        if not same:
            raise InputError(
                f"{CONVENTION_KEYS[part]}: {ours!r}: the weights in {path} were made with {theirs!r}; "
                "allowed is the same"
            )


def load_below_neck(neck: nn.Module) -> None:
    """Let a backbone with a neck load a checkpoint of the bare backbone, a classifier's, by itself.

    Names that belong below the neck get ``bottom_up.`` put before them while a state dict is loaded, in
    whatever project that happens.

    Args:
        neck: FPN or NASFPN, with the backbone as ``bottom_up``.
    """
    names = set(neck.bottom_up.state_dict())

    def rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        for name in names:
            if prefix + name in state:
                state[f"{prefix}bottom_up.{name}"] = state.pop(prefix + name)

    neck.register_load_state_dict_pre_hook(rename)
