"""A trained detector: its config, which weights are its own, and the network with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from crnas_d2.config import read_config
from crnas_d2.data.datasets import HEADS
from crnas_d2.engine.setup import check_network, check_weights
from crnas_d2.errors import InputError
from crnas_d2.modeling.checkpoint.weights import difference, read_checkpoint
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model


def check_detector(cfg: CfgNode) -> None:
    """Raise InputError unless ``cfg`` is a fixed detector and MODEL.WEIGHTS holds all its weights.

    A training may start with fewer, of the backbone alone; over a backbone of detectron2's, the heads
    are not looked at.
    """
    supernet, network, path = cfg.MODEL.CRNAS.SUPERNET, cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS
    if supernet:
        raise InputError(f"MODEL.CRNAS.SUPERNET: {supernet!r}: allowed is a fixed network, ''")
    if network not in HEADS:
        raise InputError(f"MODEL.META_ARCHITECTURE: {network!r}: allowed are {', '.join(HEADS)}")
    if not path:
        raise InputError("MODEL.WEIGHTS: '': weights of a trained detector are needed")
    check_weights(cfg, resume=False)
    outline = check_network(cfg)
    if outline is None:
        return
    own, held = outline.state_dict(), read_checkpoint(path, "MODEL.WEIGHTS")
    held = held.get("model", held)
    if differs := difference(own, {name: held[name] for name in own if name in held}):
        raise InputError(f"MODEL.WEIGHTS: {path}: are not all of this detector's weights: {differs}")


def detector_config(config_file: str, opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a trained detector, not frozen.

    MODEL.WEIGHTS is what ``opts``, KEY VALUE pairs, give; else the file of the config's name beside it,
    such as found.pth of found.yaml; else what the config says.
    """
    cfg, beside = read_config(config_file, opts), Path(config_file).with_suffix(".pth")
    if "MODEL.WEIGHTS" not in opts[::2] and beside.is_file():
        cfg.MODEL.WEIGHTS = str(beside)
    return cfg


def load_detector(cfg: CfgNode) -> nn.Module:
    """The detector of ``cfg`` with MODEL.WEIGHTS, in eval mode. InputError: as check_detector."""
    check_detector(cfg)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
