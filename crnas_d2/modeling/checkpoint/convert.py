"""Weights from one network into another of its family, block by block, matched by position.

In each chain (each branch of a supernet) the first block gets the weights of the source's first, later
ones those of its later blocks in turn: from 3 blocks a chain of 6 gets 0, 1, 2, 1, 2, 1. All rates of a
choice block get the same 3x3 weights.
"""

from __future__ import annotations

import itertools

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
        source: an InputError if it lacks a block, differs in a shape, or has its BatchNorm fused.
        backbone: without a neck; on any device, even ``meta``.
    """
    if source.is_fused and any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        raise InputError(
            f"MODEL.CRNAS.NORM: gives BatchNorm to train, and {source.path} has it fused into scale "
            "and bias; allowed is FrozenBN"
        )
    blocks = {name: m for name, m in backbone.named_modules() if isinstance(m, CNNBlockBase)}
    origins = _origins(source, blocks, family)
    state: Weights = {}
    for name, origin in origins.items():
        weights = source.stem if name == "stem" else source.blocks[origin]
        where = f"--weights: {source.path}: {name} from the source's {origin}"
        filled = _filled(blocks[name], weights, family, where)
        state.update({f"{name}.{key}": value for key, value in filled.items()})
    return state, origins


def _origins(source: Source, blocks: dict[str, CNNBlockBase], family: Family) -> dict[str, str]:
    """The source's block for each block of the backbone; each chain has another width."""

    def width(name: str) -> int:
        ends = (source.blocks[name].get(f"{layer}.weight") for layer in LAST_LAYERS)
        return next((len(weight) for weight in ends if weight is not None), 0)

    chains = [list(names) for _, names in itertools.groupby(source.blocks, key=width)]
    channels = {name: block.out_channels for name, block in blocks.items() if name != "stem"}
    own_chains = [list(names) for _, names in itertools.groupby(channels, key=channels.__getitem__)]
    if not len(chains) == len(own_chains) == len(family.widths):
        raise InputError(
            f"--weights: {source.path}: has blocks of {len(chains)} widths; MODEL.CRNAS.FAMILY "
            f"{family.name} takes a network with {len(family.widths)}"
        )
    origins = {"stem": "stem"}
    for (first, *later), own_chain in zip(chains, own_chains):
        for _, branch in itertools.groupby(own_chain, key=lambda name: name.rpartition(".")[0]):
            names = list(branch)
            if len(names) > 1 and not later:
                raise InputError(
                    f"--weights: {source.path}: has no block after {first}, and {names[1]} is a later "
                    "one; allowed is a source with two or more blocks there"
                )
            origins.update(zip(names, itertools.chain([first], itertools.cycle(later))))
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
