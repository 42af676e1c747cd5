#!/usr/bin/env python
"""Export a found network, or another trained detector, as ONNX and by torch.export, and compare them.

    pip install -e ".[export]"
    python tools/export.py --config-file output/bccd/found.yaml --images pictures/ --output exported

Weights are those of MODEL.WEIGHTS as KEY VALUE, or the file beside the config, found.pth. Written are

    backbone.pt2, backbone.onnx   backbone and neck: images (N, C, H, W), normalised with
                                  MODEL.PIXEL_MEAN and PIXEL_STD, H and W multiples of 32 (128 with
                                  NAS-FPN), to features
    detector.onnx                 an image (C, H, W), float32, 0 to 255, in the order of INPUT.FORMAT,
                                  resized as INPUT says, to boxes in its pixels, scores, classes, masks

All are run on three pictures (the first of --images by name; without, noise, in which a detector may
find nothing) and compared with torch, on the CPU. A difference is infinite if other numbers of objects
are found. The times are those of the first picture.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from erf import files_in
from tabulate import tabulate

from crnas_d2.analysis.costs import input_size
from crnas_d2.engine.detector import detector_config, load_detector
from crnas_d2.engine.export import (
    OnnxNetwork,
    Traced,
    check_traceable,
    differences,
    export_backbone,
    export_detector,
    milliseconds,
    strides_of,
)
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_atomically, write_bytes
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.data.detection_utils import read_image

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TORCH = (2, 5)  # the first whose torch.onnx.export takes a program
PICTURES = 3
TOLERANCE = 1e-3  # relative; what differs more is another network
RELATIVE = "relative"  # a column
Row = dict[str, Any]


def pictures(cfg: CfgNode, folder: Path | None, coarsest: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Images by name, as the detector takes them: of a folder, or noise of three sizes."""
    height, width = (max(side, 2 * coarsest) for side in input_size(cfg))
    small = max(height // 2, 2 * coarsest)
    generator, channels = torch.Generator().manual_seed(0), len(cfg.MODEL.PIXEL_MEAN)
    for size in () if folder else ((height, width), (width, height), (small, small)):
        yield "noise", 255 * torch.rand(channels, *size, generator=generator)
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    resize = transforms.ResizeShortestEdge([short, short], longest)
    for path in files_in(folder, PICTURES) if folder else ():
        image = read_image(path, cfg.INPUT.FORMAT)
        image = resize.get_transform(image).apply_image(image)
        yield path, torch.as_tensor(image.astype("float32").transpose(2, 0, 1).copy())


def compare(images: Sequence[torch.Tensor], network: Any, files: Mapping[str, Any]) -> list[Row]:
    """A row for each file: how far it is from the network on all images, and how long both take."""
    expected = [network(image) for image in images]
    torch_takes, rows = milliseconds(network, images[0]), []
    for name, run in files.items():
        pairs = [differences(run(image), outputs) for image, outputs in zip(images, expected)]
        largest, relative = map(max, zip(*pairs))
        row = {"file": name, "largest difference": largest, RELATIVE: relative}
        rows.append({**row, "ms": milliseconds(run, images[0]), "torch: ms": torch_takes})
    return rows


def backbone(model: Any, images: Sequence[torch.Tensor], folder: Path) -> list[Row]:
    """Write it, as both; ``images``: batches of one, normalised and padded."""
    program, onnx = export_backbone(model.backbone, images[0].shape[1])
    write_atomically(folder / "backbone.pt2", lambda file: torch.export.save(program, file))
    write_bytes(folder / "backbone.onnx", onnx)
    exported = program.module()
    files = {"backbone.pt2": lambda image: list(exported(image).values())}
    files["backbone.onnx"] = OnnxNetwork(onnx)
    return compare(images, lambda image: list(model.backbone(image).values()), files)


def detector(model: Any, images: Sequence[torch.Tensor], folder: Path) -> list[Row]:
    traced = Traced(model).eval()
    onnx = export_detector(traced, images[0])
    write_bytes(folder / "detector.onnx", onnx)
    return compare(images, traced, {"detector.onnx": OnnxNetwork(onnx)})


def check_packages() -> None:
    """Raise InputError: what is not installed, or too old."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f'{", ".join(missing)}: not installed: pip install -e ".[export]"')
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
        raise InputError(f"torch {torch.__version__}: {TORCH[0]}.{TORCH[1]} or later is needed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    check_packages()
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"--output: {args.output}: is not a folder")
    cfg = detector_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    model = load_detector(cfg)
    _, coarsest = strides_of(model.backbone)
    named = list(pictures(cfg, args.images, coarsest))
    images = [image for _, image in named]
    batches = [model.preprocess_image([{"image": image}]).tensor for image in images]
    for (name, _), batch in zip(named, batches):
        if min(batch.shape[2:]) <= coarsest:
            size = "x".join(map(str, batch.shape[2:]))
            raise InputError(
                f"--images: {name}: {size} pixels, padded: more than {coarsest} are needed"
            )
    args.output.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        rows = backbone(model, batches, args.output)
        try:
            check_traceable(cfg)
        except InputError as error:
            print(f"detector.onnx is not written: {error}")
        else:
            rows += detector(model, images, args.output)
    print(f"{args.output}, of {cfg.MODEL.WEIGHTS}; images in the order {cfg.INPUT.FORMAT}\n")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))
    if wrong := [row["file"] for row in rows if row[RELATIVE] > TOLERANCE]:
        print(f"error: {', '.join(wrong)}: computes something else than torch", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
