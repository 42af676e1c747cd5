"""Weights from one network into another of its family, block by block, matched by position.

In each chain (each branch of a supernet) the first block gets the weights of the source's first, later
ones those of its later blocks in turn: from 3 blocks a chain of 6 gets 0, 1, 2, 1, 2, 1. All rates of a
choice block get the same 3x3 weights.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.family import Family
from crnas_d2.modeling.checkpoint.published import Source, Weights
from crnas_d2.modeling.checkpoint.weights import below_neck, check_convention, difference
from detectron2.layers import CNNBlockBase

LAST_LAYERS = ("conv3", "conv2", "project", "conv")  # a block ends with the first of these that it has


def convert(
    source: Source, backbone: nn.Module, family: Family, convention: dict[str, Any]
) -> tuple[Weights, dict[str, str]]:
    """The state dict of a backbone below its neck, and for each of its blocks the source's by name.

    Raises InputError: the source lacks a block, differs in a shape, has its BatchNorm fused, or was
        made for another input than ``convention``.
    """
    check_convention(source.convention, source.path, convention)
    backbone = below_neck(backbone)
    if source.is_fused and any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        has = f"{source.path} has BatchNorm fused into scale and bias"
        raise InputError(f"MODEL.CRNAS.NORM: {has}; allowed is FrozenBN")
    blocks = {name: m for name, m in backbone.named_modules() if isinstance(m, CNNBlockBase)}
    origins = _origins(source, blocks, family)
    state: Weights = {}
    for name, origin in origins.items():
        held, block = source.blocks[origin], blocks[name].state_dict()
        # The source's name of each weight: without the digit of its rate, which supernets alone have.
        layers = {key: re.sub(rf"^({family.choice})\.\d\.", r"\1.", key) for key in block}
        if differs := difference({layers[key]: block[key] for key in block}, held):
            raise InputError(
                f"{source.where}: {name} from the source's {origin}: {differs}; allowed are "
                "equal blocks, groups and widths (a supernet's with MODEL.CRNAS.WIDTH_MULTIPLIER 1.0)"
            )
        none = torch.zeros(())  # of a counter that the source lacks
        for key, value in block.items():
            state[f"{name}.{key}"] = held.get(layers[key], none).to(value.dtype)
    return state, origins


def _origins(source: Source, blocks: dict[str, CNNBlockBase], family: Family) -> dict[str, str]:
    """The source's block for each block of the backbone; each chain has another width."""

    def width(name: str) -> int:
        ends = (source.blocks[name].get(f"{layer}.weight") for layer in LAST_LAYERS)
        return next((len(weight) for weight in ends if weight is not None), 0)

    channels = {name: block.out_channels for name, block in blocks.items() if name != "stem"}
    theirs = [list(names) for _, names in itertools.groupby(list(source.blocks)[1:], key=width)]
    ours = [list(names) for _, names in itertools.groupby(channels, key=channels.__getitem__)]
    if not len(theirs) == len(ours) == len(family.widths):
        has = f"has blocks of {len(theirs)} widths"
        raise InputError(f"{source.where}: {has}; {family.name} takes {len(family.widths)}")
    origins = {"stem": "stem"}
    for (first, *later), chain in zip(theirs, ours):
        for _, branch in itertools.groupby(chain, key=lambda name: name.rpartition(".")[0]):
            own_first, *own_later = branch
            if own_later and not later:
                needed = f"has no block after {first}, and {own_later[0]} needs one"
                raise InputError(f"{source.where}: {needed}")
            origins[own_first] = first
            origins.update(zip(own_later, itertools.cycle(later)))
    return origins
