"""What a search will do, in words and figures, before it does anything: data, space, course.

It reads what the plan has read, and what an earlier run left in OUTPUT_DIR; nothing is written.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.data.coco_json import Record, load_json
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.pipeline.configs import network_config, supernet_config
from crnas_d2.pipeline.course import Work
from crnas_d2.pipeline.plan import Plan
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

AREAS = (32**2, 96**2)  # pixels: COCO's small, medium and large objects
FEW = 10  # objects of a class in archval, below which its AP is mostly chance
NORMED = 4  # images at once, below which BatchNorm's statistics are mostly noise
THIN = 4  # pixels at the network's input, below which a side of a box is hardly seen


def outline(plan: Plan, works: Sequence[Work]) -> str:
    """The plan of rank 0, whose parts have not been written yet, and its course, for people to read."""
    goes_on = Path(plan.cfg.OUTPUT_DIR, "splits").is_dir()
    lines = [f"{'goes on' if goes_on else 'a new search'} in OUTPUT_DIR {plan.cfg.OUTPUT_DIR}"]
    lines += [*_data(plan), *_test_set(plan), *_space(plan), *_weights(plan), _table(works)]
    others = {"pre-training": plan.pretrain, "the paths' test": "test" in plan.cfg.SEARCH.PHASES}
    if any(others.values()):
        lines.append(f"not counted: {', '.join(name for name, given in others.items() if given)}")
    return "\n".join(lines)


# ---- data ----------------------------------------------------------------------------------------


def _data(plan: Plan) -> Iterator[str]:
    cfg, parts = plan.cfg, plan.parts
    assert parts is not None
    images = [image for part in ("archtrain", "archval") for image in parts[part]["images"]]
    boxes = [a for part in ("archtrain", "archval") for a in parts[part]["annotations"]]
    names = {category["id"]: category["name"] for category in parts["archtrain"]["categories"]}
    counts = Counter(names[annotation["category_id"]] for annotation in boxes)
    classes = ", ".join(f"{name} {count}" for name, count in counts.most_common(8))
    more = f", and {len(names) - 8} more" if len(names) > 8 else ""
    yield f"training set: {len(images)} images, {len(boxes)} boxes of {len(names)} classes"
    yield f"  boxes by class: {classes}{more}"
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    scales = {key: scale(cfg, *size) for key, size in sizes.items()}
    seen = np.array([np.multiply(sizes[key], factor) for key, factor in scales.items()])
    shorter, longer = seen.min(axis=1), seen.max(axis=1)
    low, high = (f"{of(scales.values()):.3g}" for of in (min, max))
    factors = low if low == high else f"{low} to {high}"
    yield (
        f"  at the network (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST): shorter side {_range(shorter)}, "
        f"longer side {_range(longer)} pixels; scaled by {factors}"
    )
    sides = np.array([np.multiply(a["bbox"][2:], scales[a["image_id"]]) for a in boxes])
    kinds = np.digitize([a["area"] * scales[a["image_id"]] ** 2 for a in boxes], AREAS)
    shares = np.bincount(kinds, minlength=3) / len(boxes)
    yield "  objects there: {:.0%} small, {:.0%} medium, {:.0%} large (COCO's areas)".format(*shares)
    held = [f"{name} {len(part['images'])}" for name, part in parts.items()]
    yield f"  split: {', '.join(held)} images (the last are part of archtrain)"
    yield from (f"  odd: {line}" for line in [*_odd(cfg, parts, sides), *_odd_norm(plan)])


def _odd(cfg: CfgNode, parts: dict[str, Record], sides: np.ndarray) -> Iterator[str]:
    """What a person may want to look at before days of training."""
    for name in ("archtrain", "archval"):
        boxes = parts[name]["annotations"]
        empty = len(parts[name]["images"]) - len({a["image_id"] for a in boxes})
        if empty:
            yield f"{empty} images of {name} have no box" + (
                ", and are not trained on (DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
                if name == "archtrain" and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
                else ""
            )
        if crowds := sum(a["iscrowd"] for a in boxes):
            yield f"{crowds} boxes of {name} are crowds: neither trained on nor counted"
    boxes = parts["archval"]["annotations"]
    counts = Counter(a["category_id"] for a in boxes if not a["iscrowd"])
    classes = parts["archval"]["categories"]
    few = [f"{c['name']} {counts[c['id']]}" for c in classes if counts[c["id"]] < FEW]
    if few:
        shown = ", ".join(few[:8]) + (" ..." if len(few) > 8 else "")
        yield f"{len(few)} classes have fewer than {FEW} objects in archval: {shown}"
    if thin := int((sides.min(axis=1) < THIN).sum()):
        yield f"{thin} boxes are thinner than {THIN} pixels at the network"
    most = Counter(a["image_id"] for a in boxes).most_common(1)[0][1] if boxes else 0
    if most > cfg.TEST.DETECTIONS_PER_IMAGE:
        yield f"an image has {most} boxes; TEST.DETECTIONS_PER_IMAGE is {cfg.TEST.DETECTIONS_PER_IMAGE}"


def _odd_norm(plan: Plan) -> Iterator[str]:
    """BatchNorm over too few images; SyncBN joins those of all processes."""
    cfg, processes, few = plan.cfg, comm.get_world_size(), defaultdict(list)
    runs = {"supernets": cfg} if {"stage", "dilation"} & {*cfg.SEARCH.PHASES} else {}
    if "retrain" in cfg.SEARCH.PHASES or cfg.SEARCH.FINALISTS.NUM:
        runs["networks alone"] = network_config(cfg, next(iter(plan.bases.values())))
    for name, run in runs.items():
        norm, batch, parts = run.MODEL.CRNAS.NORM, run.SOLVER.IMS_PER_BATCH, run.SOLVER.ACCUMULATE
        is_bn = norm == "BN" or (norm == "auto" and processes == 1)
        if is_bn and batch < NORMED * processes * parts:
            few[f"SOLVER.IMS_PER_BATCH {batch}, ACCUMULATE {parts}, processes {processes}"].append(name)
    for keys, names in few.items():
        yield f"{' and '.join(names)}: BatchNorm sees fewer than {NORMED} images at once ({keys})"


def _test_set(plan: Plan) -> Iterator[str]:
    """Of the phases that read one; it has no image of the training set, or its AP says nothing."""
    cfg, parts = plan.cfg, plan.parts
    if not {"test", "retrain"} & {*cfg.SEARCH.PHASES}:
        return
    assert parts is not None
    run = cfg if "test" in cfg.SEARCH.PHASES else network_config(cfg, next(iter(plan.bases.values())))
    theirs = MetadataCatalog.get(run.DATASETS.TEST[0])
    if "json_file" not in theirs.as_dict():  # of Pascal VOC
        return
    content, ours = (
        load_json(theirs.json_file, "DATASETS.TEST"),
        MetadataCatalog.get(cfg.DATASETS.TRAIN[0]),
    )
    boxes = len(content.get("annotations", []))
    yield f"test set: {len(content['images'])} images, {boxes} boxes"
    images = (image for part in ("archtrain", "archval") for image in parts[part]["images"])
    known = {os.path.join(ours.image_root, image["file_name"]) for image in images}
    named = (os.path.join(theirs.image_root, image["file_name"]) for image in content["images"])
    if count := sum(name in known for name in named):
        yield f"  odd: {count} of its images are in the training set, too: its AP would say little"


def scale(cfg: CfgNode, width: int, height: int) -> float:
    """By what detectron2's ResizeShortestEdge multiplies an image's sides when it is tested."""
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if not shortest:
        return 1.0
    return min(shortest / min(width, height), longest / max(width, height))


def _range(values: np.ndarray) -> str:
    low, high = round(float(values.min())), round(float(values.max()))
    return str(low) if low == high else f"{low} to {high}"


# ---- space and course ------------------------------------------------------------------------------


def _space(plan: Plan) -> Iterator[str]:
    for budget, base in plan.bases.items():
        network = network_config(plan.cfg, base)
        baseline = architecture_of(network)
        known = backbone_costs(network)(baseline)
        figures = f"{known['macs'] / 1e9:.3g} GMACs, {known['params'] / 1e6:.3g} M parameters"
        yield f"budget {budget}: baseline {baseline}, its backbone {figures} ({Path(base).name})"
    if "stage" in plan.cfg.SEARCH.PHASES:
        kind = "joint" if plan.cfg.SEARCH.JOINT else "stage"
        depths = stage_space_of(supernet_config(plan.cfg, kind)).depths
        shown = " x ".join(f"{{{', '.join(map(str, of))}}}" for of in depths if len(of) > 1)
        yield f"stage codes in the supernet: {shown}, {math.prod(map(len, depths))} in all"


def _weights(plan: Plan) -> Iterator[str]:
    named = plan.cfg.MODEL.CRNAS.WEIGHTS or (plan.pretrain and f"pre-training by {plan.pretrain}")
    none = "none: every network starts from random weights (MODEL.CRNAS.WEIGHTS)"
    yield f"weights to start from: {named or none}"


def _table(works: Sequence[Work]) -> str:
    rows = [
        {
            "part": work.name,
            "trainings": work.trainings or None,
            "iterations of each": work.iterations or None,
            "candidates": work.candidates or None,
            "images for each": work.images or None,
            "done": f"{work.done} of {work.units}",
        }
        for work in works
    ]
    return tabulate(rows, headers="keys", tablefmt="github")
