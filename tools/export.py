#!/usr/bin/env python
"""Export a found network, or another trained detector, as ONNX and by torch.export, and compare them.

    pip install -e ".[export]"
    python tools/export.py --config-file output/bccd/found.yaml --images pictures/ --output exported

MODEL.WEIGHTS, if not given as KEY VALUE, is the file of the config's name beside it, found.pth. The
files:

    backbone.pt2, backbone.onnx   backbone and neck, without normalisation, for any number of images
    detector.onnx                 an image of any size to boxes, scores and classes, best first

All are run on three pictures (the first of --images by name; without, noise, in which a detector may
find nothing) and compared with torch, on the CPU. A difference is infinite if other numbers of objects
are found. The backbone's sizes are multiples of 32 (of 128 with NAS-FPN). Of a detector with masks,
MODEL.MASK_ON False exports the boxes.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from erf import files_in
from tabulate import tabulate

from crnas_d2.analysis.costs import input_size
from crnas_d2.config import read_config
from crnas_d2.engine.detector import load_detector
from crnas_d2.engine.export import (
    OnnxNetwork,
    Traced,
    check_traceable,
    export_backbone,
    export_detector,
    largest_difference,
    milliseconds,
)
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_atomically, write_bytes
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.data.detection_utils import read_image

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
PICTURES = 3
# What a larger difference than this, relative to the largest value, is: another network.
TOLERANCE = 1e-3
DIFFERS = "largest difference"  # a column
Row = dict[str, Any]


def pictures(cfg: CfgNode, folder: Path | None) -> Iterator[torch.Tensor]:
    """Images as the detector takes them: of a folder, or noise of three sizes."""
    height, width = input_size(cfg)
    channels = len(cfg.MODEL.PIXEL_MEAN)
    generator = torch.Generator().manual_seed(0)
    sizes = ((height, width), (width, height), (height // 2, height // 2))
    for size in () if folder else sizes:
        yield 255 * torch.rand(channels, *size, generator=generator)
    resize = transforms.ResizeShortestEdge(
        [cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST, "choice"
    )
    for path in files_in(folder, PICTURES) if folder else ():
        image = read_image(path, cfg.INPUT.FORMAT)
        image = resize.get_transform(image).apply_image(image)
        yield torch.as_tensor(image.astype("float32").transpose(2, 0, 1).copy())


def compare(inputs: Iterable[torch.Tensor], network: Any, files: Mapping[str, Any]) -> list[Row]:
    """A row for each file and input: how far it is from the network, and how long both take."""
    rows = []
    for image, (name, run) in itertools.product(inputs, files.items()):
        expected = network(image)
        values = [float(each.abs().max()) for each in expected if each.numel()]
        row: Row = {"file": name, "input": "x".join(map(str, image.shape))}
        row |= {DIFFERS: largest_difference(run(image), expected)}
        row |= {"largest value": max(values, default=0.0)}
        rows.append(row | {"ms": milliseconds(run, image), "torch: ms": milliseconds(network, image)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f'{", ".join(missing)}: not installed: pip install -e ".[export]"')
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"--output: {args.output}: is not a folder")
    cfg = read_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    beside = Path(args.config_file).with_suffix(".pth")
    if not cfg.MODEL.WEIGHTS and beside.is_file():
        cfg.MODEL.WEIGHTS = str(beside)
    images = list(pictures(cfg, args.images))
    model = load_detector(cfg)
    with torch.no_grad():
        rows = backbone(model, images, args.output)
        try:
            check_traceable(cfg)
        except InputError as error:
            print(f"detector.onnx is not written: {error}")
        else:
            rows += detector(model, images, args.output)
    print(f"weights: {cfg.MODEL.WEIGHTS}; images of detector.onnx: {cfg.INPUT.FORMAT}, 0 to 255\n")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))
    print(f"\nwritten to {args.output}")
    if any(row[DIFFERS] > TOLERANCE * row["largest value"] for row in rows):
        print("error: a file above computes something else than the network", file=sys.stderr)
        sys.exit(1)


def backbone(model: Any, images: list[torch.Tensor], folder: Path) -> list[Row]:
    """Write it; a row for each file and image."""
    program, onnx = export_backbone(model.backbone, len(images[0]))
    write_atomically(folder / "backbone.pt2", lambda file: torch.export.save(program, file))
    write_bytes(folder / "backbone.onnx", onnx)
    inputs = [model.preprocess_image([{"image": image}]).tensor for image in images]
    exported = program.module()
    return compare(
        inputs,
        lambda image: list(model.backbone(image).values()),
        {
            "backbone.pt2": lambda image: list(exported(image).values()),
            "backbone.onnx": OnnxNetwork(onnx),
        },
    )


def detector(model: Any, images: list[torch.Tensor], folder: Path) -> list[Row]:
    """Write it; a row for each image."""
    traced = Traced(model).eval()
    onnx = export_detector(traced, images[0])
    write_bytes(folder / "detector.onnx", onnx)
    return compare(images, traced, {"detector.onnx": OnnxNetwork(onnx)})


if __name__ == "__main__":
    run_tool(main)
