"""Files of weights that a search writes: found.pth, and what its networks inherit from the supernet.

Each holds where its weights come from, in words, as ``origin``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from crnas_d2.architecture import Architecture
from crnas_d2.engine.checkpoint import last_whole
from crnas_d2.engine.setup import check_network
from crnas_d2.errors import InputError
from crnas_d2.files import write_atomically
from crnas_d2.modeling.backbone.supernet import subnet_state
from crnas_d2.modeling.build import architecture_of, input_convention
from crnas_d2.modeling.checkpoint.weights import difference, read_checkpoint
from detectron2.config import CfgNode


def write_inherited(path: Path, supernet: CfgNode, cfg: CfgNode, architecture: Architecture) -> None:
    """Write what a network starts from: its path in a trained supernet, both given by their configs."""
    trained = read_checkpoint(last_whole(supernet.OUTPUT_DIR), "--resume")["model"]
    model = check_network(supernet)
    assert model is not None
    state = subnet_state(model, trained, architecture)
    write_weights(path, cfg, state, f"{architecture}, a path out of the supernet")


def check_inherits(supernet: CfgNode, cfg: CfgNode, path: str) -> None:
    """Raise InputError unless a network, config and its path, has the weights of its path."""
    model, network = check_network(supernet), check_network(cfg)
    assert model is not None and network is not None
    state = subnet_state(model, model.state_dict(), architecture_of(cfg))
    if differs := difference(network.state_dict(), state):
        raise InputError(f"SEARCH.INHERIT: True: {path} has other weights than the supernet: {differs}")


def copy_weights(path: Path, cfg: CfgNode, weights: Path, origin: str) -> None:
    """Write found.pth with the weights of a finished training; ``origin``: in words."""
    write_weights(path, cfg, read_checkpoint(str(weights), "--resume")["model"], origin)


def origin_of(path: Path) -> str:
    """Where the weights of a found.pth come from, in words."""
    if not path.is_file():
        return "none: the supernet's are not those of FOUND_BASE's network"
    return str(torch.load(path, map_location="cpu", weights_only=True)["origin"])


def write_weights(path: Path, cfg: CfgNode, state: dict[str, Any], origin: str) -> None:
    if cfg.MODEL.CRNAS.WEIGHTS:
        origin += f"; training started from {cfg.MODEL.CRNAS.WEIGHTS}"
    content = {"model": state, "input_convention": input_convention(cfg), "origin": origin}
    write_atomically(path, lambda file: torch.save(content, file))
