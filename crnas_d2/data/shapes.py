"""The demo's data set: generated pictures of textured shapes, as COCO JSON.

    python -m crnas_d2.data.shapes FOLDER [--train N] [--val N] [--seed S]

writes FOLDER/train.json, FOLDER/val.json and FOLDER/images/*.jpg. The longer side of a shape is
between 8 and 300 pixels, on a log scale with more weight on long ones. Its class (disc, square,
triangle) says nothing about its colour, texture or size. Corners are rounded in proportion to the
size, so a patch of the outline does not tell a big disc from a small square: the receptive field
must cover the shape. Every picture is a pure function of (seed, split, index) and of its size.

Coordinates are pixels from the top left, x to the right and y down; pixel i covers [i, i + 1).
Sizes are (height, width).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crnas_d2.errors import InputError

# Class: (corners, angle of the first in radians, corner radius over radius). A disc: one corner.
CLASSES = {
    "disc": (1, 0.0, 1.0),
    "square": (4, np.pi / 4, 0.2),
    "triangle": (3, -np.pi / 2, 0.15),
}
SPLITS = ("train", "val")
SIZE = (320, 320)  # of a picture, by default
MIN_SIDE, MAX_SIDE = 8, 300  # pixels, of the longer side of a box
# Log-uniform would be 1. Below it there are fewer of the smallest, which a network of this size at a
# stride of 4 cannot learn in the demo's minutes.
SIDE_POWER = 0.5
SHAPES_PER_IMAGE = (2, 6)  # drawn uniformly, both ends included
MAX_TILT = np.pi / 9
MAX_STRETCH = 1.3  # longer over shorter side of the frame that a shape fills
MAX_HIDDEN = 0.2  # the fraction of a shape that those drawn after it may hide together
OUTLINE_POINTS = 36  # a multiple of every number of corners
# Mean colours of backgrounds and of shapes. With any colour on any other, a network needs many times
# the demo's minutes before it finds the shapes at all.
DARK, BRIGHT = (20, 80), (110, 235)
TEXTURE_CONTRAST = 20.0  # grey levels either side of the mean; means are further apart than that


def outline(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """A tilted convex outline [OUTLINE_POINTS, 2] of (x, y) that spans [0, width] x [0, height]."""
    corners, first, radius = CLASSES[name]
    per_corner = OUTLINE_POINTS // corners
    tilt = rng.uniform(-MAX_TILT, MAX_TILT)
    middle = first + tilt + 2 * np.pi * np.arange(corners)[:, None] / corners
    # The arc of each corner; half a step from its ends, so that no two points of a disc are equal.
    angle = middle + np.pi / corners * ((2 * np.arange(per_corner) + 1) / per_corner - 1)
    x = ((1 - radius) * np.cos(middle) + radius * np.cos(angle)).ravel()
    y = ((1 - radius) * np.sin(middle) + radius * np.sin(angle)).ravel()
    return np.stack([(x - x.min()) / np.ptp(x) * width, (y - y.min()) / np.ptp(y) * height], axis=1)


def fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask [height, width] of the pixels whose centres are in the convex, clockwise outline."""
    x, y = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    inside = np.ones((height, width), dtype=bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0)):
        inside &= (bx - ax) * (y - ay) >= (by - ay) * (x - ax)
    return inside


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stripes, a gradient or coarse noise, each with fine noise: [height, width] within -1..1."""
    angle = rng.uniform(0, 2 * np.pi)
    along = np.arange(width)[None, :] * np.cos(angle) + np.arange(height)[:, None] * np.sin(angle)
    kind = rng.integers(3)
    if kind == 0:
        pattern = np.sin(
            2 * np.pi * (along / np.exp(rng.uniform(np.log(4), np.log(32))) + rng.uniform())
        )
    elif kind == 1:
        pattern = 2 * (along - along.min()) / max(np.ptp(along), 1) - 1
    else:
        cell = int(rng.integers(2, 17))  # pixels
        coarse = rng.uniform(-1, 1, (height // cell + 1, width // cell + 1))
        pattern = coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    return 0.75 * pattern + 0.25 * rng.uniform(-1, 1, (height, width))


def tight_box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] of the true pixels of mask [H, W]; all zero if there are none."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(xs):
        return [0, 0, 0, 0]
    return [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]


def draw_picture(
    seed: int, split: str, index: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Pixels [H, W, 3] uint8 RGB, owners [H, W] uint8, and the COCO annotations without their ids.

    owners holds 0 for the background and k where the k-th annotation is on top. A box is tight both
    around the visible pixels and around the whole shape; area counts the pixels of the whole shape.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    owners = np.zeros(size, dtype=np.uint8)
    colours = rng.uniform(*DARK, (1, 3))  # mean colours; row k is that of owner k
    pixels = colours[0] + TEXTURE_CONTRAST * texture(rng, *size)[:, :, None]
    annotations: list[dict[str, Any]] = []
    number = rng.integers(SHAPES_PER_IMAGE[0], SHAPES_PER_IMAGE[1] + 1)
    longest = min(MAX_SIDE, 0.9375 * min(size))
    # Big ones first, so that small ones come to lie on top of them.
    sides = MIN_SIDE * (longest / MIN_SIDE) ** (rng.random(number) ** SIDE_POWER)
    for side in sorted(sides, reverse=True):
        placed = None
        while placed is None and side >= MIN_SIDE:
            placed = _place(rng, owners, annotations, round(float(side)))
            side /= 1.5  # where it does not fit, a smaller one may
        if placed is None:
            continue
        mask, annotation = placed
        x, y, width, height = annotation["bbox"]
        frame = np.s_[y : y + height, x : x + width]
        # The furthest of a few colours from all that lies under the frame: a clear contrast.
        under = colours[np.unique(owners[frame])]
        choices = rng.uniform(*BRIGHT, (16, 3))
        colour = choices[np.linalg.norm(choices[:, None] - under, axis=2).min(axis=1).argmax()]
        colours = np.vstack([colours, colour])
        annotations.append(annotation)
        owners[frame][mask] = len(annotations)
        pixels[frame][mask] = colour + TEXTURE_CONTRAST * texture(rng, height, width)[mask][:, None]
    return pixels.clip(0, 255).astype(np.uint8), owners, annotations


def _place(
    rng: np.random.Generator, owners: np.ndarray, older: list[dict[str, Any]], side: int
) -> tuple[np.ndarray, dict[str, Any]] | None:
    """A new shape, (mask of its box, annotation), that leaves the older ones visible, or None."""
    shorter = round(side / rng.uniform(1, MAX_STRETCH))
    height, width = (side, shorter) if rng.integers(2) else (shorter, side)
    category = int(rng.integers(len(CLASSES)))
    points = outline(rng, list(CLASSES)[category], height, width)
    mask = fill(points, height, width)
    # A thin tip can miss the centres of the outermost pixels: from here on the box is the pixels'.
    left, top, width, height = tight_box(mask)
    if max(width, height) < MIN_SIDE:
        return None
    points, mask = points - (left, top), mask[top : top + height, left : left + width]
    for _ in range(12):
        x = int(rng.integers(owners.shape[1] - width + 1))
        y = int(rng.integers(owners.shape[0] - height + 1))
        after = owners.copy()
        after[y : y + height, x : x + width][mask] = len(older) + 1
        touched = set(np.unique(owners[y : y + height, x : x + width][mask])) - {0}
        if all(_still_shown(after == k, older[k - 1]) for k in touched):
            polygon = points + (x, y)
            return mask, {
                "category_id": category + 1,
                "bbox": [x, y, width, height],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": [[round(float(value), 2) for value in polygon.ravel()]],
            }
    return None


def _still_shown(visible: np.ndarray, annotation: dict[str, Any]) -> bool:
    enough = visible.sum() >= (1 - MAX_HIDDEN) * annotation["area"]
    return bool(enough) and tight_box(visible) == annotation["bbox"]


def make_shapes(
    folder: str | Path, num_train: int, num_val: int, seed: int = 0, size: tuple[int, int] = SIZE
) -> bool:
    """Write the data set in one go, or leave it alone where it is; whether it was written.

    Raises:
        InputError: a number out of range, or a folder that holds anything else.
    """
    folder = Path(folder).absolute()
    asked = {"train": num_train, "val": num_val, "seed": seed, "size": min(size)}
    for (name, value), least in zip(asked.items(), (1, 1, 0, 32)):
        if value < least:
            raise InputError(f"{name} is {value}: it must be at least {least}")
    contents = [_content(split, asked[split], seed, size) for split in SPLITS]
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if all(_holds(folder / f"{split}.json", content) for split, content in zip(SPLITS, contents)):
            return False
        raise InputError(f"{folder}: holds something else than shapes of {asked}: name another folder")
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "images").mkdir(parents=True)
    for split, content in zip(SPLITS, contents):
        annotations = content["annotations"] = []
        for index, image in enumerate(content["images"]):
            pixels, _, shapes = draw_picture(seed, split, index, size)
            Image.fromarray(pixels).save(temporary / "images" / image["file_name"], quality=90)
            for shape in shapes:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **shape})
        (temporary / f"{split}.json").write_text(json.dumps(content))
    temporary.replace(folder)
    return True


def _content(split: str, number: int, seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """A COCO JSON's, without its annotations."""
    names = [f"{split}_{index + 1:05d}.jpg" for index in range(number)]
    height, width = size
    return {
        "info": {"description": f"crnas_d2 shapes, seed {seed}, {split}"},
        "licenses": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
        "images": [
            {"id": i, "file_name": name, "height": height, "width": width}
            for i, name in enumerate(names, start=1)
        ],
    }


def _holds(path: Path, content: dict[str, Any]) -> bool:
    try:
        held = json.loads(path.read_text())
        return {**held, **content} == held
    except (OSError, ValueError, TypeError):
        return False


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m crnas_d2.data.shapes", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", help="where train.json, val.json and images/ go")
    parser.add_argument("--train", type=int, default=200, help="training images (default: 200)")
    parser.add_argument("--val", type=int, default=50, help="validation images (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="another one, other images (default: 0)")
    args = parser.parse_args()
    try:
        wrote = make_shapes(args.folder, args.train, args.val, args.seed)
    except (OSError, InputError) as error:
        print(f"crnas_d2.data.shapes: {error}", file=sys.stderr)
        return 2
    print(f"{args.folder}: {args.train} training and {args.val} validation images", end=" ")
    print("were written" if wrote else "are already there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
