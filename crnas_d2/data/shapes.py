"""The demo's data set: generated pictures of textured shapes, as COCO JSON.

    python -m crnas_d2.data.shapes FOLDER [--train N] [--val N] [--seed S] [--side PIXELS]

writes FOLDER/{train,val}.json and FOLDER/images/*.jpg. A shape's class (disc, square, triangle) says
nothing about its colour, texture or size, and corners are rounded in proportion to the size, so the
receptive field must cover the shape. A picture is a function of (seed, split, index) and its size.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from crnas_d2.errors import InputError

# Class: (corners, corner radius over radius). A disc is one round corner.
CLASSES = {"disc": (1, 1.0), "square": (4, 0.2), "triangle": (3, 0.15)}
SPLITS = ("train", "val")
MIN_SIDE, MAX_SIDE = 8, 300  # pixels, of the longer side of a box
# 1 is log-uniform, less gives fewer small ones, which a small network cannot learn in minutes.
SIDE_POWER = 0.5
SHAPES_PER_IMAGE = (2, 6)  # drawn uniformly, both ends included
MAX_TILT = np.pi / 9
MAX_STRETCH = 1.3  # longer over shorter side of a shape
MAX_HIDDEN = 0.2  # the fraction of a shape that those drawn after it may hide together
OUTLINE_POINTS = 36
# Mean colours of backgrounds and of shapes; with any colour on any other, a network learns slowly.
DARK, BRIGHT = (20, 80), (110, 235)
TEXTURE_CONTRAST = 20.0  # grey levels either side of the mean; means are further apart than that


def outline(rng: np.random.Generator, name: str, side: float) -> np.ndarray:
    """A tilted convex polygon [OUTLINE_POINTS, 2] of (x, y) from (0, 0), its longer side ``side``."""
    corners, radius = CLASSES[name]
    tilt, step = rng.uniform(-MAX_TILT, MAX_TILT), 2 * np.pi / corners
    angle = (np.arange(OUTLINE_POINTS) + 0.5) * 2 * np.pi / OUTLINE_POINTS
    corner = (angle // step + 0.5) * step  # the direction of the corner that a point belongs to
    x = (1 - radius) * np.cos(corner + tilt) + radius * np.cos(angle + tilt)
    y = (1 - radius) * np.sin(corner + tilt) + radius * np.sin(angle + tilt)
    points = np.stack([x - x.min(), y - y.min()], axis=1)
    sides = rng.permutation([side, side / rng.uniform(1, MAX_STRETCH)])
    return points / points.max(axis=0) * sides


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stripes, of which wide ones are gradients, or coarse noise: [height, width] within -1..1."""
    if rng.integers(2):
        angle, wavelength = rng.uniform(0, 2 * np.pi), 4 * 100 ** rng.random()
        y, x = np.mgrid[:height, :width]
        along = x * np.cos(angle) + y * np.sin(angle)
        pattern = np.sin(2 * np.pi * (along / wavelength + rng.random()))
    else:
        cell = int(rng.integers(2, 17))  # pixels
        coarse = rng.uniform(-1, 1, (height // cell + 1, width // cell + 1))
        pattern = np.kron(coarse, np.ones((cell, cell)))[:height, :width]
    return 0.75 * pattern + 0.25 * rng.uniform(-1, 1, (height, width))


def draw_picture(
    seed: int, split: str, index: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Pixels [H, W, 3] uint8 RGB, owners [H, W] uint8, and the COCO annotations without their ids.

    owners holds 0 for the background and k where the k-th annotation is on top. A box is tight around
    the visible pixels and around the whole shape, whose pixels area counts.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    owners = np.zeros(size, dtype=np.uint8)
    colours = rng.uniform(*DARK, (1, 3))  # mean colours; row k is that of owner k
    pixels = colours[0] + TEXTURE_CONTRAST * texture(rng, *size)[:, :, None]
    annotations: list[dict[str, Any]] = []
    number = rng.integers(*SHAPES_PER_IMAGE, endpoint=True)
    longest = min(MAX_SIDE, 0.9375 * min(size))
    sides = MIN_SIDE * (longest / MIN_SIDE) ** (rng.random(number) ** SIDE_POWER)
    for side in np.sort(sides)[::-1]:  # big ones first, so that small ones come to lie on top of them
        placed = _place(rng, owners, annotations, side)
        if placed is None:
            continue
        mask, annotation = placed
        # The furthest of some colours from all that there are: a clear contrast.
        choices = rng.uniform(*BRIGHT, (64, 3))
        distances = np.linalg.norm(choices[:, None] - colours, axis=2).min(axis=1)
        colours = np.vstack([colours, choices[distances.argmax()]])
        annotations.append(annotation)
        owners[mask] = len(annotations)
        pixels[mask] = colours[-1] + TEXTURE_CONTRAST * texture(rng, *size)[mask][:, None]
    return pixels.clip(0, 255).astype(np.uint8), owners, annotations


def _place(
    rng: np.random.Generator, owners: np.ndarray, older: list[dict[str, Any]], side: float
) -> tuple[np.ndarray, dict[str, Any]] | None:
    """A new shape's mask [H, W] and annotation, if there is room: the older ones stay visible."""
    height, width = owners.shape
    category = int(rng.integers(len(CLASSES)))
    while side >= MIN_SIDE:
        points = outline(rng, list(CLASSES)[category], side - 1)  # the pixels touched are one more
        points += rng.random(2) * ([width, height] - points.max(axis=0))
        canvas = Image.new("1", (width, height))
        ImageDraw.Draw(canvas).polygon(points.astype(int).ravel().tolist(), fill=1)
        mask = np.array(canvas)
        after = np.where(mask, len(older) + 1, owners)
        if all(_is_visible(after == k, older[k - 1]) for k in set(owners[mask]) - {0}):
            found = {"category_id": category + 1, "bbox": _box(mask), "area": int(mask.sum())}
            return mask, {**found, "iscrowd": 0, "segmentation": [points.ravel().round(2).tolist()]}
        side *= 0.95  # where it does not fit, a smaller one may
    return None


def _box(mask: np.ndarray) -> list[int]:
    """The tight box as COCO has it."""
    left, top, right, bottom = Image.fromarray(mask).getbbox()
    return [left, top, right - left, bottom - top]


def _is_visible(visible: np.ndarray, shape: dict[str, Any]) -> bool:
    enough = visible.sum() >= (1 - MAX_HIDDEN) * shape["area"]
    return bool(enough) and _box(visible) == shape["bbox"]


def make_shapes(
    folder: str | Path, num_train: int, num_val: int, seed: int = 0, size: tuple[int, int] = (320, 320)
) -> bool:
    """Write the data set in one go, or leave it alone where it is; whether it was written.

    ``size``: height and width of a picture. Raises InputError: a number out of range, or a folder that
    holds anything else.
    """
    folder = Path(folder).absolute()
    asked = {"train": num_train, "val": num_val, "seed": seed, "size": min(size)}
    for name, value, least in zip(("train", "val", "seed", "side"), asked.values(), (1, 1, 0, 32)):
        if value < least:
            raise InputError(f"{name} is {value}: it must be at least {least}")
    height, width = size
    info = {"description": f"crnas_d2 shapes of {asked}, {width}x{height}"}
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        written, start = folder / "train.json", json.dumps({"info": info})[:-1].encode()
        if written.is_file() and written.read_bytes().startswith(start):
            return False
        raise InputError(f"{folder}: holds something else than shapes of {asked}: name another folder")
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "images").mkdir(parents=True)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    for split in SPLITS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(asked[split]):
            pixels, _, shapes = draw_picture(seed, split, index, size)
            name = f"{split}_{index + 1:05d}.jpg"
            Image.fromarray(pixels).save(temporary / "images" / name, quality=90)
            images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
            for shape in shapes:
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **shape})
        content = {"info": info, "licenses": [], "categories": categories}
        content |= {"images": images, "annotations": annotations}
        (temporary / f"{split}.json").write_text(json.dumps(content))
    temporary.replace(folder)
    return True


def main() -> None:
    parser = argparse.ArgumentParser("crnas_d2.data.shapes", description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="where train.json, val.json and images/ go")
    for name, default in (("train", 1000), ("val", 400), ("seed", 0), ("side", 224)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    args = parser.parse_args()
    try:
        wrote = make_shapes(args.folder, args.train, args.val, args.seed, (args.side, args.side))
    except (OSError, InputError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    done = "were written" if wrote else "are already there"
    print(f"{args.folder}: {args.train} training and {args.val} validation images {done}")


if __name__ == "__main__":
    main()
