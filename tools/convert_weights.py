#!/usr/bin/env python
"""Turn published ImageNet weights into a checkpoint that MODEL.WEIGHTS takes.

    python tools/convert_weights.py --config-file configs/ImageNet-Classification/CR_R_50.yaml \\
        --weights resnet50.pth --output CR_R_50.pth [KEY VALUE ...]

The config names the network, of any stage code; for a supernet add MODEL.CRNAS.SUPERNET stage or
dilation, and MODEL.CRNAS.WIDTH_MULTIPLIER 1.0, since blocks are copied at their full width. Blocks are
matched by position (crnas_d2/modeling/checkpoint/convert.py); the log says where each one came from.
It reads torchvision's state dicts of ResNet, ResNeXt and MobileNetV2, bare or as PyTorch's examples,
MoCo, Lightning and mmcls wrap them (.pth, .safetensors), detectron2's ImageNetPretrained (.pkl), and
checkpoints of our own fixed networks (.pth). A classifier's last layer is left out. INPUT.FORMAT,
MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and MODEL.CRNAS.STRIDE_IN_1X1 have to be what the weights were made
with; the output holds them, too.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from pathlib import Path

import torch

from crnas_d2.config import read_config
from crnas_d2.engine.setup import check_network
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_atomically
from crnas_d2.modeling.build import family_of, input_convention
from crnas_d2.modeling.checkpoint.convert import convert
from crnas_d2.modeling.checkpoint.published import CONVENTIONS, read_source
from crnas_d2.modeling.checkpoint.weights import BARE
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

logger = logging.getLogger(__name__)


def convert_file(cfg: CfgNode, weights: str, output: Path, convention: str | None = None) -> None:
    """Write the weights in a file as a checkpoint of the config's backbone.

    Args:
        cfg: its MODEL.WEIGHTS is set to the output.
        convention: a key of ``CONVENTIONS``, in place of the file's own.

    Raises:
        InputError: bad input; then nothing is written.
    """
    if output.suffix != ".pth" or not output.parent.is_dir() or output.exists():
        raise InputError(
            f"--output: {output}: allowed is a new file that ends in .pth, in an existing folder"
        )
    cfg.MODEL.WEIGHTS = str(output)
    check_network(cfg)
    if "crnas" not in cfg.MODEL.BACKBONE.NAME:
        raise InputError(
            f"MODEL.BACKBONE.NAME: {cfg.MODEL.BACKBONE.NAME!r}: allowed are crnas_d2's own"
        )
    source = read_source(weights, "--weights", convention)
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    state, origins = convert(source, backbone, family_of(cfg), input_convention(cfg))

    for block, origin in origins.items():
        logger.info("%s <- %s of the source", block, origin)
    uses = Counter(origins.values())
    unused = [name for name in source.blocks if name not in uses]
    logger.info("%d blocks from %d of the source", len(origins), len(uses))
    logger.info("not used: %s", ", ".join(unused + source.others) or "none")
    content = {
        "model": {BARE + name: value for name, value in state.items()},
        "input_convention": source.convention,
        "source": Path(weights).name,
    }
    write_atomically(output, lambda file: torch.save(content, file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help=".pth, .safetensors or .pkl")
    parser.add_argument("--output", type=Path, required=True, help="a new .pth file")
    parser.add_argument("--input-convention", choices=CONVENTIONS, help="in place of the file's own")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    cfg = read_config(args.config_file, args.opts)
    convert_file(cfg, args.weights, args.output, args.input_convention)


if __name__ == "__main__":
    run_tool(main)
