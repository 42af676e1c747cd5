"""Weights from one network into another of its family, block by block, matched by position.

In each chain of equal blocks the first gets the weights of the source's first, and the later ones those
of the source's later blocks in turn: from 3 blocks a chain of 6 gets 0, 1, 2, 1, 2, 1. So does every
branch of a supernet, and the three rates of a choice block get the same 3x3 weights. Shapes do not
change, so a supernet needs its full width.
"""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.family import Family
from crnas_d2.modeling.checkpoint.published import Source, Weights
from detectron2.layers import CNNBlockBase

COUNTER = "num_batches_tracked"  # BatchNorm's; frozen norms and other libraries have none
LAST_LAYERS = ("conv3", "conv2", "project", "conv")  # a block ends with the first of these that it has


def convert(source: Source, backbone: nn.Module, family: Family) -> tuple[Weights, dict[str, str]]:
    """The state dict of a backbone, and the name of the source's block for each of its blocks.

    Args:
        backbone: without a neck; on any device, even ``meta``.

    Raises:
        InputError: the source is of another family, lacks a block, differs in a shape, or has its
            BatchNorm fused while the backbone would train its own.
    """
    if source.is_fused and any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        raise InputError(
            f"MODEL.CRNAS.NORM: gives BatchNorm to train, and {source.path} has it fused into scale "
            "and bias; allowed is FrozenBN"
        )
    blocks = {name: m for name, m in backbone.named_modules() if isinstance(m, CNNBlockBase)}
    origins = _origins(source, blocks, family.name)
    state: Weights = {}
    for name, origin in origins.items():
        weights = source.stem if name == "stem" else source.blocks[origin]
        where = f"--weights: {source.path}: {name} from the source's {origin}"
        filled = _filled(blocks[name], weights, family, where)
        state.update({f"{name}.{key}": value for key, value in filled.items()})
    return state, origins


def _origins(source: Source, blocks: dict[str, CNNBlockBase], family: str) -> dict[str, str]:
    """The source's block for each block of the backbone; each chain has another width."""

    def width(name: str) -> int:
        ends = (source.blocks[name].get(f"{layer}.weight") for layer in LAST_LAYERS)
        return next((len(weight) for weight in ends if weight is not None), 0)

    chains = [list(names) for _, names in itertools.groupby(source.blocks, key=width)]
    widths = list(dict.fromkeys(b.out_channels for name, b in blocks.items() if name != "stem"))
    if len(chains) != len(widths):
        raise InputError(
            f"--weights: {source.path}: has blocks of {len(chains)} widths; MODEL.CRNAS.FAMILY "
            f"{family} takes a network with {len(widths)}"
        )
    origins = {"stem": "stem"}
    done: Counter[tuple[str, int]] = Counter()  # by chain: the blocks below one module of one width
    for name in [name for name in blocks if name != "stem"]:
        chain = name.rpartition(".")[0], blocks[name].out_channels
        first, *later = chains[widths.index(chain[1])]
        number = done[chain]
        done[chain] += 1
        if number and not later:
            raise InputError(
                f"--weights: {source.path}: has no block after {first}, and {name} is a later one; "
                "allowed is a source with two or more blocks there"
            )
        origins[name] = later[(number - 1) % len(later)] if number else first
    return origins


def _filled(block: nn.Module, weights: Weights, family: Family, where: str) -> Weights:
    """The block's state dict with the source's values, every one of which has to be used."""
    own = block.state_dict()
    layers = {key: family.without_digit(key) for key in own}
    needed = {layers[key]: tuple(value.shape) for key, value in own.items()}
    held = {layer: tuple(value.shape) for layer, value in weights.items()}
    for layer in [*needed, *held]:
        here, there = needed.get(layer, "none"), held.get(layer, "none")
        if here != there and not layer.endswith(COUNTER):
            raise InputError(
                f"{where}: {layer} has shape {here} in this config, {there} in the source; allowed are "
                "equal blocks, groups and widths (a supernet's with MODEL.CRNAS.WIDTH_MULTIPLIER 1.0)"
            )
    none = torch.zeros(())  # of a counter that the source lacks
    return {key: weights.get(layers[key], none).to(value.dtype) for key, value in own.items()}
