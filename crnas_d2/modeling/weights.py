"""Checkpoints: does a file hold the weights of this backbone, and of no other space?"""

from __future__ import annotations

from pickle import UnpicklingError

import torch
from torch import nn

from crnas_d2.errors import InputError
from detectron2.utils.file_io import PathManager


def check_backbone_weights(backbone: nn.Module, path: str, key: str) -> None:
    """A detector's checkpoint holds the backbone's weights: all, at their shapes, and no others.

    Args:
        backbone: of a detector, bare or below FPN (which is not looked at); on any device.
        path: a .pth file, or an address that detectron2 can fetch it from.
        key: the config key or option that named it, for the message.

    Raises:
        InputError: not a checkpoint, or one of another space.
    """
    try:
        file = PathManager.get_local_path(path)
        state = torch.load(file, map_location="cpu", weights_only=True)
        state = state.get("model", state)
    except (OSError, EOFError, RuntimeError, UnpicklingError, AttributeError) as error:
        why = " ".join(str(error).split())[:100]
        raise InputError(f"{key}: {path}: not a detectron2 checkpoint ({why})") from error
    below = getattr(backbone, "bottom_up", backbone)
    prefix = "backbone." if below is backbone else "backbone.bottom_up."
    own = {prefix + name: tuple(value.shape) for name, value in below.state_dict().items()}
    held = {name: tuple(value.shape) for name, value in state.items() if name.startswith(prefix)}
    for name in [*own, *held]:
        if own.get(name) != held.get(name):
            raise InputError(
                f"{key}: {path}: is of another network or space: {name} has shape "
                f"{held.get(name, 'none')} there, the backbone of this config {own.get(name, 'none')}; "
                f"allowed is a checkpoint with its {len(own)} weights"
            )
