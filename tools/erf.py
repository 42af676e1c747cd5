#!/usr/bin/env python
"""Draw where feature levels look: effective receptive fields, as in the paper's Figure 1.

    python tools/erf.py --config-file configs/COCO-Detection/faster_rcnn_{,SCR_}R_50_FPN_1x.yaml \\
        --weights R_50.pth SCR_R_50.pth --images images/val --output output/erf

writes erf.png, with a row for each config and each level's anchor box (64, 128, 256 at p3, p4, p5), and
erf.npz, with the fields; it prints the side of the square that holds 95 % of a field's energy, which
crnas_d2/analysis/erf.py defines. Without --images the input is standard normal noise; images are cut to
squares, their shorter side resized to 640 pixels. Without --weights, MODEL.WEIGHTS or else
MODEL.CRNAS.WEIGHTS counts; weights that the file lacks are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tabulate import tabulate

from crnas_d2.analysis.erf import INPUT, PLATE, SHARE, draw, noise, receptive_fields, side_of
from crnas_d2.config import read_config
from crnas_d2.data.imagenet import ClassificationMapper
from crnas_d2.data.pictures import check_decodes
from crnas_d2.data.prepared import PICTURES
from crnas_d2.engine.checkpoint import SafeCheckpointer
from crnas_d2.engine.progress import progress_bar
from crnas_d2.engine.setup import check_network, check_weights, published_weights
from crnas_d2.engine.trainer import seed_of
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_atomically
from crnas_d2.modeling.checkpoint.weights import BARE
from crnas_d2.seeding import derive_seed
from detectron2.config import CfgNode
from detectron2.modeling import build_model

RANDOM = "random weights"


class Network(NamedTuple):
    cfg: CfgNode
    model: Any  # a detector or classifier, in eval mode
    weights: str  # the file's name, and what of them is random
    levels: dict[str, int]  # their strides in pixels


def load(config_file: str, weights: str | None, levels: list[str], opts: list[str]) -> Network:
    """``weights``: in place of MODEL.WEIGHTS. Raises InputError: anything that cannot be used."""
    cfg = read_config(config_file, opts)
    if weights is not None:
        cfg.MODEL.WEIGHTS = weights
    if supernet := cfg.MODEL.CRNAS.SUPERNET:
        raise InputError(f"MODEL.CRNAS.SUPERNET: {supernet!r}: allowed is a fixed network, ''")
    check_network(cfg)
    path, _ = check_weights(cfg, resume=False)
    torch.manual_seed(derive_seed(seed_of(cfg), "init"))  # as a training starts
    model = build_model(cfg).eval()
    missing: list[str] = []
    model.register_load_state_dict_post_hook(lambda _, keys: missing.extend(keys.missing_keys))
    if path:
        SafeCheckpointer(model, cfg).load(path)
    elif path := cfg.MODEL.CRNAS.WEIGHTS:
        state, _ = published_weights(cfg, model.backbone)
        model.load_state_dict({BARE + name: value for name, value in state.items()}, strict=False)
    lacks = [name for name in missing if name.startswith(BARE) and "num_batches" not in name]
    shown = Path(path).name + (f", {len(lacks)} {RANDOM}" if lacks else "")
    shapes = model.backbone.output_shape()
    for level in levels:
        if level not in shapes:
            raise InputError(f"--levels: {level}: {config_file} has {', '.join(shapes)}")
    strides = {level: shapes[level].stride for level in levels}
    return Network(cfg, model, shown or RANDOM, strides)


def files_in(folder: Path, count: int) -> list[str]:
    """The first images by name. Raises InputError: there are none, or one cannot be read."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    usable = [path for path in found if path.suffix.lower() in PICTURES and path.name[0] != "."]
    paths = [str(path) for path in usable[:count]]
    if not paths:
        allowed = ", ".join(PICTURES)
        raise InputError(f"--images: {folder}: a folder with images is needed: {allowed}")
    check_decodes(paths, "--images")
    return paths


def inputs(network: Network, paths: list[str], count: int) -> Iterator[torch.Tensor]:
    """(C, INPUT, INPUT), images normalised as the network does it; without paths noise."""
    mapper = ClassificationMapper(INPUT, INPUT, network.cfg.INPUT.FORMAT, is_train=False)
    for path in paths:
        yield network.model.preprocess_image([mapper({"file_name": path})]).tensor[0]
    for image in [] if paths else noise(count, len(network.cfg.MODEL.PIXEL_MEAN)):
        yield image.to(network.model.device)


def check(args: argparse.Namespace) -> None:
    """Raise InputError for options that cannot be used."""
    for option, count in (("--num-images", args.num_images), ("--positions", args.positions)):
        if count < 1:
            raise InputError(f"{option}: {count}: at least 1 is needed")
    given, needed = len(args.weights or args.config_file), len(args.config_file)
    if given != needed:
        raise InputError(f"--weights: {given} files: {needed} are needed, one for each config")
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"--output: {args.output}: is not a folder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--weights", nargs="+", metavar="FILE", help="one for each config, in order")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="the first by name are taken")
    parser.add_argument("--num-images", type=int, default=8, help="or inputs of noise (8)")
    parser.add_argument("--positions", type=int, default=2, help="near the centre of each image (2)")
    parser.add_argument("--levels", nargs="+", default=["p3", "p4", "p5"], metavar="LEVEL")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    check(args)
    paths = files_in(args.images, args.num_images) if args.images else []
    files, count = args.config_file, len(paths) or args.num_images
    weights = args.weights or [None] * len(files)
    networks = [load(*each, args.levels, args.opts) for each in zip(files, weights)]
    found = []
    for file, network in zip(files, networks):
        print(f"{file}: {network.weights}")
        bar = progress_bar(inputs(network, paths, count), total=count, desc=file)
        try:
            fields = receptive_fields(network.model.backbone, bar, network.levels, args.positions)
        except InputError as error:
            raise InputError(f"{file}: {network.weights}: {error}") from error
        found.append(list(fields.values()))
    sides = [[side_of(field) for field in of] for of in found]
    levels, names = networks[0].levels, [network.weights for network in networks]
    arrays = {"fields": np.array(found, dtype=np.float32), "sides": sides, "levels": list(levels)}
    arrays |= {"configs": files, "weights": names}
    figure = draw(arrays["fields"], [f"{Path(f).stem}\n{n}" for f, n in zip(files, names)], levels)
    write_atomically(args.output / "erf.npz", lambda file: np.savez_compressed(file, **arrays))
    write_atomically(args.output / "erf.png", lambda file: figure.savefig(file, format="png", dpi=150))
    rows = [[file, name, *of] for file, name, of in zip(files, names, sides)]
    what = "images" if paths else "inputs of noise"
    even = side_of(np.ones((PLATE, PLATE)))
    print(
        f"\nside, in pixels, of the square with {SHARE:.0%} of the energy on {PLATE} x {PLATE} (an even"
    )
    print(f"field: {even}); mean of {args.positions} positions in each of {count} {what}\n")
    print(tabulate(rows, headers=["config", "weights", *levels], tablefmt="github"))


if __name__ == "__main__":
    run_tool(main)
