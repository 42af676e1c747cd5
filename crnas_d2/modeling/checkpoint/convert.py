"""Weights from one network into another of its family, block by block, matched by position.

In each chain of equal blocks the first gets the weights of the source's first, and the later ones those
of the source's later blocks in turn: from 3 blocks a chain of 6 gets 0, 1, 2, 1, 2, 1. So does every
branch of a supernet, and the three rates of a choice block get the same 3x3 weights. Shapes do not
change, so a supernet needs its full width.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.family import Family
from crnas_d2.modeling.backbone.supernet import StageSupernet
from crnas_d2.modeling.checkpoint.published import Source, Weights
from detectron2.layers import CNNBlockBase

COUNTER = "num_batches_tracked"  # BatchNorm's; frozen norms and other libraries have none
LAST_LAYERS = ("conv3", "conv2", "project", "conv")  # a block ends with the first of these that it has


def convert(
    source: Source, backbone: nn.Module, family: Family, stage_code: Sequence[int]
) -> tuple[Weights, dict[str, str]]:
    """The state dict of a backbone (no neck; on any device, even ``meta``) from a source's weights.

    Args:
        stage_code: of the backbone; a stage supernet needs none.

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
        origin, weights = "stem", source.stem
        if name != "stem":
            position, number = _place(name, backbone, family, stage_code)
            origin = _origin(name, number, chains[position], source.path)
            weights = source.blocks[origin]
        origins[name] = origin
        where = f"--weights: {source.path}: {name} from the source's {origin}"
        filled = _filled(block, weights, family.choice, where)
        state.update({f"{name}.{key}": value for key, value in filled.items()})
    return state, origins


def _chains(source: Source, family: Family) -> dict[int, list[str]]:
    """The source's blocks by position of their chain; each chain has another width."""

    def width(name: str) -> int:
        block = source.blocks[name]
        return next((len(block[f"{end}.weight"]) for end in LAST_LAYERS if f"{end}.weight" in block), 0)

    chains = [list(names) for _, names in itertools.groupby(source.blocks, key=width)]
    positions = [chain.position for _, chain in family.chains()]
    if len(chains) != len(positions):
        raise InputError(
            f"--weights: {source.path}: has blocks of {len(chains)} widths; MODEL.CRNAS.FAMILY "
            f"{family.name} takes a network with {len(positions)}"
        )
    return dict(zip(positions, chains))


def _place(
    name: str, backbone: nn.Module, family: Family, stage_code: Sequence[int]
) -> tuple[int, int]:
    """Position of a block's chain, and the block's number in it."""
    stage, *numbers = name.split(".")
    positions = [chain.position for chain in family.stages[stage]]
    if isinstance(backbone, StageSupernet):
        return positions[int(numbers[0])], int(numbers[-1])
    return [(p, number) for p in positions for number in range(stage_code[p])][int(numbers[0])]


def _origin(name: str, number: int, chain: list[str], path: str) -> str:
    if number and len(chain) == 1:
        raise InputError(
            f"--weights: {path}: has no block after {chain[0]}, and {name} is a later one; "
            "allowed is a source with two or more blocks there"
        )
    return chain[1 + (number - 1) % (len(chain) - 1)] if number else chain[0]


def _filled(block: nn.Module, weights: Weights, choice: str, where: str) -> Weights:
    """The block's state dict with the source's values, every one of which has to be used."""
    filled = {}
    unused = dict(weights)
    for key, own in block.state_dict().items():
        layer = re.sub(rf"^({choice})\.\d\.", r"\1.", key)  # without the digit of a rate
        unused.pop(layer, None)
        value: Any = weights.get(layer)
        if value is None and key.endswith(COUNTER):
            value = torch.zeros((), dtype=own.dtype)
        _check_shapes(where, layer, own, value)
        filled[key] = value.to(own.dtype)
    for layer, value in unused.items():
        if not layer.endswith(COUNTER):
            _check_shapes(where, layer, None, value)
    return filled


def _check_shapes(where: str, layer: str, own: torch.Tensor | None, held: torch.Tensor | None) -> None:
    here, there = ("none" if t is None else tuple(t.shape) for t in (own, held))
    if here != there:
        raise InputError(
            f"{where}: {layer} has shape {here} in this config, {there} in the source; allowed are "
            "equal blocks, groups and widths (a supernet's with MODEL.CRNAS.WIDTH_MULTIPLIER 1.0)"
        )
