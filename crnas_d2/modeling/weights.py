"""Weights between a supernet and its subnets: strict, with one clear line where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError
from crnas_d2.modeling.supernet import Supernet, find_supernet


def detector_subnet_state(detector: nn.Module, path: Architecture) -> dict[str, torch.Tensor]:
    """All weights of a detector whose backbone is cut down to one path.

    Loads strictly into the detector that is built with the path as its fixed backbone.

    Raises:
        ValueError: the detector has no supernet.
    """
    prefixes = [name for name, m in detector.named_modules() if isinstance(m, Supernet)]
    supernet = find_supernet(detector)
    if supernet is None:
        raise ValueError("the detector has no supernet, so it has no paths")
    prefix = prefixes[0] + "." if prefixes[0] else ""
    state = {}
    for key, value in detector.state_dict().items():
        if key.startswith(prefix):
            inner = supernet.subnet_key(key[len(prefix) :], path)
            if inner is not None:
                state[prefix + inner] = value
        else:
            state[key] = value
    return state


def check_backbone_keys(model: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """A checkpoint that does not hold every weight of the backbone, at its shape, is refused.

    Args:
        model: a detector.
        state: the checkpoint's ``model`` entry, under the detector's names.
        source: the file, for the message.

    Raises:
        InputError: a missing weight, or one of another shape: a checkpoint of another space.
    """
    own = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.bottom_up.")}
    for key, value in own.items():
        if key not in state:
            raise InputError(
                f"{source}: {key} is missing; allowed is a checkpoint of the same space, "
                f"with all {len(own)} backbone weights"
            )
        if tuple(state[key].shape) != tuple(value.shape):
            raise InputError(
                f"{source}: {key} has shape {tuple(state[key].shape)}, "
                f"the model of this config takes {tuple(value.shape)}"
            )
