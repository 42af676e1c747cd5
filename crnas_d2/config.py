"""Every config key of ours, in one table: default, meaning, unit, the paper's section, what is allowed;
which keys --resume of a search may change; and ``read_config``, by which our scripts read a config.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import yaml

from crnas_d2.data import datasets, imagenet  # noqa: F401  (register our data sets)
from crnas_d2.errors import InputError
from crnas_d2.modeling import build  # registers our backbones
from crnas_d2.modeling.meta_arch import classifier  # noqa: F401  (registers the classifier)
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager


class Check(NamedTuple):
    """What a value, or each entry of a list, has to be; ``allowed`` says it in words."""

    accepts: Callable[[Any], bool]
    allowed: str


def at_least(least: float) -> Check:
    return Check(lambda v: isinstance(v, (int, float)) and least <= v < math.inf, f"at least {least:g}")


def one_of(*values: str) -> Check:
    return Check(lambda value: value in values, f"one of {', '.join(map(repr, values))}")


class Key(NamedTuple):
    """One config key of ours. Without a check its type is checked here, and its value where it is used:
    codes and spaces in architecture.py and space.py, BUDGETS in budget.py, FOUND_BASE and PRETRAIN in
    pipeline/configs.py, ARCHVAL in data/splits.py, epochs in engine/schedule.py.
    """

    default: Any
    check: Check | None = None


KEYS = {
    # ---- the network
    # resnet_basic (ResNet18, 34), resnet (ResNet50, 101, 152), resnext or mobilenetv2.
    "MODEL.CRNAS.FAMILY": Key("resnet", one_of(*build.FAMILIES)),
    "MODEL.CRNAS.STAGE_CODE": Key([3, 4, 6, 3]),  # blocks in each stage (paper, Table 5)
    # One digit a block, 0, 1, 2 for rates 1, 2, 3 (paper, Table 6); empty: rate 1 everywhere.
    "MODEL.CRNAS.DILATION_CODE": Key([]),
    # "": the codes' fixed network.
    "MODEL.CRNAS.SUPERNET": Key("", one_of("", "stage", "dilation", "joint")),
    # Channels after the stem, and width of each stage; 0 and empty: the family's own, 64 and
    # [64, 128, 256, 512] in ResNets, whose stages have 4 * width channels except in resnet_basic.
    "MODEL.CRNAS.STEM_CHANNELS": Key(0, at_least(0)),
    "MODEL.CRNAS.WIDTHS": Key([]),
    "MODEL.CRNAS.WIDTH_MULTIPLIER": Key(1.0),  # of both; the paper's supernets of ResNe(X)t have 0.5
    # resnext: groups of the 3x3 convolution, and channels a group in the first stage at full width.
    "MODEL.CRNAS.NUM_GROUPS": Key(32, at_least(1)),
    "MODEL.CRNAS.WIDTH_PER_GROUP": Key(4, at_least(1)),
    # resnet, resnext: stride in the first 1x1 convolution, as in MSRA's weights, not in the 3x3.
    "MODEL.CRNAS.STRIDE_IN_1X1": Key(False),
    # "auto": SyncBN when more than one process trains, otherwise BN; or a name for get_norm.
    "MODEL.CRNAS.NORM": Key(
        "auto", one_of("auto", "", "BN", "SyncBN", "naiveSyncBN", "nnSyncBN", "FrozenBN", "GN")
    ),
    # Stages that build_crnas_backbone returns; the FPN builders follow MODEL.FPN.IN_FEATURES.
    "MODEL.CRNAS.OUT_FEATURES": Key(["res2", "res3", "res4", "res5"]),
    # Depths of each entry of the stage code in the supernet; empty: the paper's (Sec. 3.2.1, A.2).
    "MODEL.CRNAS.STAGE_SPACE": Key([]),
    # Depth n is the first n blocks of one chain, and the three rates of a choice block have one weight,
    # instead of a chain and a weight of their own (Figure 2).
    "MODEL.CRNAS.SHARED": Key(False),
    # Stacked cells; the paper's 7 have FPN.OUT_CHANNELS 384 (Table 9).
    "MODEL.NAS_FPN.NUM_CELLS": Key(7, at_least(1)),
    "MODEL.CLASSIFIER.NUM_CLASSES": Key(1000, at_least(1)),  # META_ARCHITECTURE ImageClassifier
    "MODEL.CLASSIFIER.IN_FEATURE": Key("res5"),  # the stage that it pools
    "INPUT.CLASSIFIER_CROP": Key(224, at_least(1)),  # pixels: the side of what a classifier sees
    "INPUT.CLASSIFIER_TEST_RESIZE": Key(256),  # pixels: the shorter side of a test image before it
    # Published ImageNet weights, path or URL, from which the backbone starts where MODEL.WEIGHTS is
    # empty; its blocks take them by position (tools/convert_weights.py says of which files). A search
    # starts all its supernets and networks from them.
    "MODEL.CRNAS.WEIGHTS": Key(""),
    # Activations of each block are computed again in the backward pass instead of being kept: less
    # memory, about a third more time, the same results.
    "MODEL.CRNAS.RECOMPUTE": Key(False),
    # ---- the schedule and your own data
    # Passes over the training images; above 0 it sets SOLVER.MAX_ITER, and STEP_EPOCHS sets
    # SOLVER.STEPS (paper, Sec. 4.1: 13, with 8 and 11). 0: detectron2's keys count.
    "SOLVER.EPOCHS": Key(0, at_least(0)),
    "SOLVER.STEP_EPOCHS": Key(()),
    # Iterations that a schedule in epochs has at least, for small sets; its steps move along.
    "SOLVER.MIN_ITER": Key(0, at_least(0)),
    # Learning rate for each image of the batch; above 0 it sets SOLVER.BASE_LR (paper: 0.00125).
    "SOLVER.LR_PER_IMAGE": Key(0.0, at_least(0)),
    # Parts into which a process splits its images of a step; their gradients are accumulated.
    "SOLVER.ACCUMULATE": Key(1, at_least(1)),
    # A COCO JSON and its image folder: in our scripts instead of DATASETS.TRAIN, TEST and NUM_CLASSES.
    "DATASETS.TRAIN_JSON": Key(""),
    "DATASETS.TRAIN_IMAGES": Key(""),
    "DATASETS.TEST_JSON": Key(""),
    "DATASETS.TEST_IMAGES": Key(""),
    # ---- the search
    # What search_net.py does (paper, Sec. 3.3). "test" compares, with SEARCH.JOINT, the found network's
    # path with the baseline's on the test set. "retrain" trains the baseline and the found networks by
    # FOUND_BASE's schedule. Without "stage", the dilation search takes MODEL.CRNAS.STAGE_CODE.
    "SEARCH.PHASES": Key(("stage", "dilation"), one_of("stage", "dilation", "test", "retrain")),
    # What the found network may cost; one stage supernet serves all. A number: blocks (8, 16, 33) in
    # the ResNet series, weighted blocks (16) in MobileNetV2 (paper, A.2). Or limits that hold together,
    # each a value and by what fraction the cost may differ: {macs: [4.1e9, 0.02], params: [25e6, 0.1]},
    # of FOUND_BASE's network at its test size: blocks, macs and params of the backbone, and latency,
    # seconds that the whole detector takes for an image on MODEL.DEVICE.
    "SEARCH.BUDGETS": Key((16,)),
    # Configs, relative to the search's. FOUND_BASE: what found.yaml is based on, with full widths and
    # its own schedule; one for all budgets, or one for each; none: the search's own config, with the
    # KEY VALUE pairs of the command line. PRETRAIN: classification, with which each
    # network is trained first (paper, A.1); empty: none.
    "SEARCH.FOUND_BASE": Key(()),
    "SEARCH.PRETRAIN": Key(""),
    # Images of the training set held out for scoring; 0: 5,000 (paper, Sec. 4.1), but at most a
    # fifth of the set. Images whose JSON entries are equal in SPLIT_FIELD stay on one side.
    "SEARCH.ARCHVAL.SIZE": Key(0),
    "SEARCH.ARCHVAL.SPLIT_FIELD": Key("id"),
    # "exhaustive": every code that meets the budget (paper, Sec. 3.3.1); others: EVALUATIONS of them.
    "SEARCH.STAGE.METHOD": Key("exhaustive", one_of("exhaustive", "evolution", "random")),
    # One supernet of all stage and dilation codes for both searches, with MODEL.CRNAS.SHARED; the paper
    # trains one for each.
    "SEARCH.JOINT": Key(False),
    # ONLY_ELIGIBLE: without branches that no eligible code uses. SAMPLING: the path of an iteration is
    # drawn in each stage by itself (paper, Sec. 3.3.1), or from the eligible codes; uniformly both
    # times. ONLY_ELIGIBLE and "eligible" take budgets of blocks only.
    "SEARCH.STAGE.ONLY_ELIGIBLE": Key(False),
    "SEARCH.STAGE.SAMPLING": Key("uniform", one_of("uniform", "eligible")),
    # TOP_K: partial dilation codes that "greedy" keeps after each block (paper, Sec. 3.3.2).
    "SEARCH.DILATION.METHOD": Key("greedy", one_of("greedy", "evolution", "random")),
    "SEARCH.DILATION.TOP_K": Key(3, at_least(1)),
    # Rates above 1 are found only if the same weights score better with them than with rate 1
    # everywhere, with 95 % certainty over archval's images and less the luck of the greedy search.
    "SEARCH.DILATION.EVIDENCE": Key(False),
    "SEARCH.EVALUATIONS": Key(200, at_least(1)),  # candidates of each evolutionary or random search
    # The score: COCO's task and metric on archval, 0 to 100.
    "SEARCH.EVAL.TASK": Key("bbox", one_of("bbox", "segm")),
    "SEARCH.EVAL.METRIC": Key("AP", one_of("AP", "AP50", "AP75", "APs", "APm", "APl")),
    # archtrain images over which a path's BatchNorm statistics are recomputed; 0: as trained.
    "SEARCH.EVAL.RECALIBRATION_IMAGES": Key(200, Check(lambda n: n == 0 or n >= 3, "0 or at least 3")),
    # Images in one batch of scoring and of recalibration, over all processes. Scores depend on it: a
    # batch is padded to one size, and recalibration normalises it by itself (three batches at least).
    "SEARCH.EVAL.BATCH_SIZE": Key(8, at_least(1)),
    # Most GB of a process's host memory for archval's decoded images, and again for recalibration's.
    "SEARCH.EVAL.CACHE_GB": Key(8.0, at_least(0)),
    # Mixed precision in scoring, and torch's channels_last memory format.
    "SEARCH.EVAL.AMP": Key("", one_of("", "bf16", "fp16")),
    "SEARCH.EVAL.CHANNELS_LAST": Key(False),
    # Above 0: candidates race over growing portions of archval, and one that is not among the leading
    # quarter in this fraction of bootstraps is dropped (0.96 was measured). 0: none, as in the paper.
    "SEARCH.RACE.CONFIDENCE": Key(0.0, Check(lambda c: c == 0 or 0.5 < c < 1, "0 or 0.5 < value < 1")),
    # Above 0: the first NUM candidates of each search and the baseline are trained alone on archtrain,
    # in SEEDS rounds of one more seed for the better half, with FOUND_BASE's schedule times SCHEDULE;
    # found is the best mean on archval. 0: the search's first, as in the paper.
    "SEARCH.FINALISTS.NUM": Key(0, at_least(0)),
    "SEARCH.FINALISTS.SEEDS": Key(3, at_least(1)),
    "SEARCH.FINALISTS.SCHEDULE": Key(1.0, Check(lambda factor: 0 < factor <= 1, "0 < value <= 1")),
    # One more training of the baseline, with half as many iterations again: is the schedule too short?
    "SEARCH.FINALISTS.TRY_LONGER": Key(False),
    # Networks trained alone start from their paths in the joint supernet, not from scratch; the noise
    # of seeds is then known after its training.
    "SEARCH.INHERIT": Key(False),
    "SEARCH.RETRAIN.SEEDS": Key(1, at_least(1)),  # of each network in the table
    # ---- the run
    # Threads of one operation on the CPU, on which results depend; 0: torch's default.
    "NUM_THREADS": Key(0, at_least(0)),
    # Minutes that a process waits for the others in a collective operation, such as while rank 0
    # computes the metrics of a test set.
    "DIST_TIMEOUT_MINUTES": Key(30, at_least(1)),
}

# Ours, and what our scripts allow of those keys of detectron2 that would fail in the middle of a run.
CHECKS = {
    **{name: key.check for name, key in KEYS.items() if key.check},
    **dict.fromkeys(("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"), at_least(1)),
    **{"INPUT.MIN_SIZE_TRAIN": at_least(1), "INPUT.MIN_SIZE_TEST": at_least(0)},  # 0: not resized
    **{"MODEL.FPN.OUT_CHANNELS": at_least(1), "MODEL.PIXEL_STD": at_least(1e-6)},
    **{"SOLVER.CHECKPOINT_PERIOD": at_least(1), "SOLVER.MAX_ITER": at_least(1)},
    "DATALOADER.NUM_WORKERS": at_least(0),
}

# Keys that --resume of a search may change: always, and until a candidate is scored.
RESUME_ALWAYS = (
    *("CUDNN_BENCHMARK", "DATALOADER.NUM_WORKERS", "DIST_TIMEOUT_MINUTES", "OUTPUT_DIR"),
    *("MODEL.CRNAS.RECOMPUTE", "SEARCH.EVAL.CACHE_GB", "SEARCH.PHASES", "SEARCH.RETRAIN.SEEDS"),
    "SOLVER.CHECKPOINT_PERIOD",
    *(f"SEARCH.FINALISTS.{name}" for name in ("NUM", "SEEDS", "TRY_LONGER")),
)
RESUME_UNTIL_SCORED = ("SEARCH.EVAL.AMP", "SEARCH.EVAL.BATCH_SIZE", "SEARCH.EVAL.CHANNELS_LAST")

# Keys of SEARCH in earlier versions, most of them without a node, what replaces them, and what is gone.
SINCE = "EVIDENCE|NUM|SEEDS|SCHEDULE|TRY_LONGER|METHOD|SIZE|CONFIDENCE"  # were never there
NESTED = [name for name in KEYS if re.match(rf"SEARCH\.\w+\.(?!{SINCE})", name)]
RENAMED = {
    **{f"SEARCH.{name.split('.')[2]}": name for name in NESTED},
    "SEARCH.ARCHVAL_SIZE": "SEARCH.ARCHVAL.SIZE",
    "SEARCH.DILATION_SEARCH": "SEARCH.DILATION.METHOD",
    "SEARCH.RACE_CONFIDENCE": "SEARCH.RACE.CONFIDENCE",
    "SEARCH.STAGE_SEARCH": "SEARCH.STAGE.METHOD",
    "SEARCH.STEPS": "SEARCH.PHASES",
    "MODEL.CRNAS.NESTED_DEPTHS": "MODEL.CRNAS.SHARED",
}
REMOVED = ("SEARCH.CACHE_ON_DEVICE", "SEARCH.COMPILE", "SEARCH.GROUP_SIZE")


def add_crnas_config(cfg: CfgNode) -> None:
    """Add our keys to a detectron2 config, in place; none of its own defaults changes."""
    for name, key in KEYS.items():
        *nodes, last = name.split(".")
        node = cfg
        for part in nodes:
            node = node.setdefault(part, CfgNode())
        node[last] = key.default
    for old, new in RENAMED.items():
        cfg.register_renamed_key(old, new)
    for old in REMOVED:
        cfg.register_deprecated_key(old)  # a warning, and its value is ignored


def read_config(config_file: str, opts: Sequence[str] = (), as_asked: bool = False) -> CfgNode:
    """detectron2's config with our keys, from a file and KEY VALUE pairs, checked; not frozen.

    MODEL.DEVICE is cpu where cuda is asked for and torch sees no GPU, unless ``as_asked``.
    Of a schedule in epochs and detectron2's keys for the same, the one given last counts: those of a
    config come after its ``_BASE_``, and KEY VALUE pairs after the file.

    Raises InputError: no such file, an unknown key, a value of another type or one that is not allowed.
    """
    cfg = get_cfg()
    add_crnas_config(cfg)
    layers = [set(leaves(cfg))]
    source = f"--config-file: {config_file}"
    try:
        if config_file:
            layers += _keys_by_layer(config_file)
            cfg.merge_from_file(config_file)
        source = f"KEY VALUE: {' '.join(map(str, opts))}"
        layers.append(set(opts[::2]))
        cfg.merge_from_list(list(opts))
        source = f"MODEL.DEVICE: {cfg.MODEL.DEVICE}"
        torch.device(cfg.MODEL.DEVICE)
    except Exception as error:  # of several kinds, from yacs, yaml, the file and torch
        text = error.args[0] if isinstance(error, KeyError) else error
        raise InputError(f"{source}: {' '.join(str(text).split())}") from error
    last = {key: number for number, keys in enumerate(layers) for key in keys}
    if last["SOLVER.MAX_ITER"] > last["SOLVER.EPOCHS"]:
        cfg.SOLVER.EPOCHS, cfg.SOLVER.STEP_EPOCHS = 0, ()
    if cfg.SOLVER.EPOCHS and last["SOLVER.STEPS"] > last["SOLVER.EPOCHS"]:
        why = f"the schedule is {cfg.SOLVER.EPOCHS} epochs; STEP_EPOCHS is needed, or MAX_ITER, too"
        raise InputError(f"SOLVER.STEPS: {tuple(cfg.SOLVER.STEPS)}: {why}")
    if last["SOLVER.BASE_LR"] > last["SOLVER.LR_PER_IMAGE"]:
        cfg.SOLVER.LR_PER_IMAGE = 0.0
    values = leaves(cfg)
    for name, check in CHECKS.items():
        entries = values[name] if isinstance(values[name], list) else [values[name]]
        if not (entries and all(map(check.accepts, entries))):
            raise InputError(f"{name}: {values[name]!r}: {check.allowed} is needed")
    if cfg.MODEL.DEVICE.startswith("cuda") and not (as_asked or torch.cuda.is_available()):
        cfg.MODEL.DEVICE = "cpu"  # start_run warns of it
    return cfg


def _keys_by_layer(config_file: str) -> Iterator[set[str]]:
    """The keys that each ``_BASE_`` of a config file sets, the deepest first, then its own."""
    with PathManager.open(config_file, "r", encoding="utf-8") as file:
        content = dict(yaml.load(file, Loader=yaml.BaseLoader) or {})  # keys alone: no tag is run
    bases = content.pop("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        is_address = base.startswith(("https://", "http://"))
        folder = "" if is_address else os.path.dirname(config_file)
        yield from _keys_by_layer(os.path.join(folder, os.path.expanduser(base)))
    yield set(leaves(content))


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config's values by their dotted keys; tuples as lists."""
    if not isinstance(node, dict):
        return {prefix: list(node) if isinstance(node, tuple) else node}
    found = {}
    for name, child in node.items():
        found.update(leaves(child, f"{prefix}.{name}" if prefix else str(name)))
    return found
