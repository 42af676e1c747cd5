"""Weights from one network into another of its family, block by block, matched by position.

In each entry of the stage code the first block gets the weights of the source's first, and the later
blocks those of the source's later ones in turn, over and over: of 3 blocks a chain of 6 gets
0, 1, 2, 1, 2, 1. In a supernet that holds for the chain of every depth, and the three rates of a choice
block start from the same 3x3 weights. Shapes do not change, so a supernet needs its full width.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.family import Family
from crnas_d2.modeling.backbone.supernet import StageSupernet
from crnas_d2.modeling.checkpoint.published import Source, Weights
from detectron2.layers import CNNBlockBase

COUNTER = "num_batches_tracked"  # of BatchNorm; not of frozen norms, nor of other libraries


def convert(
    source: Source, backbone: nn.Module, family: Family, stage_code: Sequence[int]
) -> tuple[Weights, dict[str, str]]:
    """A backbone's whole state dict out of a source's weights.

    Args:
        backbone: fixed network or supernet, bare; only its names and shapes are looked at, so it may be
            on the device ``meta``.
        family: of the backbone.
        stage_code: of the backbone, unless it is a stage supernet.

    Returns:
        the state dict, and for each block of the backbone the name of the source's block.

    Raises:
        InputError: the source is of another family, lacks a block, differs in a shape, or has its
            BatchNorm fused while the backbone would train its own.
    """
    for m in backbone.modules():
        if source.is_fused and isinstance(m, _BatchNorm):
            raise InputError(
                f"MODEL.CRNAS.NORM: gives {type(m).__name__}: the BatchNorm of {source.path} is fused "
                "into scale and bias and cannot be trained; allowed is FrozenBN"
            )
    chains = _chains(source, family)
    state: Weights = {}
    origins = {}
    for name, block in backbone.named_modules():
        if not isinstance(block, CNNBlockBase):
            continue
        if name == "stem":
            origin, weights = "stem", source.stem
        else:
            entry, position = _place(name, backbone, family, stage_code)
            origin = _origin(name, position, chains[entry], source)
            weights = source.blocks[origin]
        origins[name] = origin
        where = f"--weights: {source.path}: {name} from the source's {origin}"
        filled = _filled(block, weights, family.choice, where)
        state.update({f"{name}.{key}": value for key, value in filled.items()})
    return state, origins


def _chains(source: Source, family: Family) -> dict[int, list[str]]:
    """The source's blocks by entry of the stage code; each entry has another width."""

    def width(name: str) -> list[torch.Size]:
        layers = ("conv3", "conv2", "project", "conv")  # what a block ends with
        weights = [source.blocks[name].get(f"{layer}.weight") for layer in layers]
        return [weight.shape[:1] for weight in weights if weight is not None][:1]

    chains = [list(names) for _, names in itertools.groupby(source.blocks, key=width)]
    positions = [entry.position for _, entry in family.entries()]
    if len(chains) != len(positions):
        raise InputError(
            f"--weights: {source.path}: has blocks of {len(chains)} widths; MODEL.CRNAS.FAMILY "
            f"{family.name} takes a network with {len(positions)}"
        )
    return dict(zip(positions, chains))


def _place(
    name: str, backbone: nn.Module, family: Family, stage_code: Sequence[int]
) -> tuple[int, int]:
    """Of a block's name: entry of the stage code, and position in its chain."""
    stage, *numbers = name.split(".")
    entries = [entry.position for entry in family.stages[stage]]
    if isinstance(backbone, StageSupernet):
        return entries[int(numbers[0])], int(numbers[-1])
    return [(entry, i) for entry in entries for i in range(stage_code[entry])][int(numbers[0])]


def _origin(name: str, position: int, chain: list[str], source: Source) -> str:
    if position == 0:
        return chain[0]
    if len(chain) == 1:
        raise InputError(
            f"--weights: {source.path}: has no block after {chain[0]}, and {name} is a later one; "
            "allowed is a source with two or more blocks there"
        )
    return chain[1 + (position - 1) % (len(chain) - 1)]


def _filled(block: nn.Module, weights: Weights, choice: str, where: str) -> Weights:
    """The block's state dict with the source's values; every one of them has its place."""
    filled = {}
    left = dict(weights)
    for key, own in block.state_dict().items():
        layer = re.sub(rf"^({choice})\.\d\.", r"\1.", key)  # a choice block's alternatives
        left.pop(layer, None)
        value = weights.get(layer)
        if value is None and key.endswith(COUNTER):
            value = torch.zeros((), dtype=own.dtype)
        if value is None or value.shape != own.shape:
            raise _misfit(where, layer, own, value)
        filled[key] = value.to(own.dtype)
    for layer, value in left.items():
        if not layer.endswith(COUNTER):
            raise _misfit(where, layer, None, value)
    return filled


def _misfit(where: str, layer: str, own: torch.Tensor | None, held: torch.Tensor | None) -> InputError:
    shape_here, shape_there = ("none" if t is None else tuple(t.shape) for t in (own, held))
    return InputError(
        f"{where}: {layer} has shape {shape_here} in this config, {shape_there} in the source; allowed "
        "are equal blocks, groups and widths (a supernet's with MODEL.CRNAS.WIDTH_MULTIPLIER 1.0)"
    )
