"""Every config key of ours: default, meaning, unit, the paper's section, what is allowed; and which of
them --resume of a search may change. docs/REFERENCE.md is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from crnas_d2.modeling import build


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
    meaning: str  # a paragraph of docs/REFERENCE.md, which tools/reference.py makes
    check: Check | None = None


NETWORK = {
    "MODEL.CRNAS.FAMILY": Key(
        "resnet",
        "resnet_basic (ResNet18, 34), resnet (ResNet50, 101, 152), resnext or mobilenetv2.",
        one_of(*build.FAMILIES),
    ),
    "MODEL.CRNAS.STAGE_CODE": Key([3, 4, 6, 3], "Blocks in each stage (paper, Table 5)."),
    "MODEL.CRNAS.DILATION_CODE": Key(
        [],
        "One digit a block: 0, 1, 2 for dilation rates 1, 2, 3 (paper, Table 6). Empty: rate 1 "
        "everywhere.",
    ),
    "MODEL.CRNAS.SUPERNET": Key(
        "",
        "Which supernet is built; empty: the fixed network of the two codes.",
        one_of("", "stage", "dilation", "joint"),
    ),
    "MODEL.CRNAS.STEM_CHANNELS": Key(
        0, "Channels after the stem; 0: the family's own, 64.", at_least(0)
    ),
    "MODEL.CRNAS.WIDTHS": Key(
        [],
        "Width of each stage; empty: the family's own, [64, 128, 256, 512] in ResNets, whose "
        "stages have 4 * width channels except in resnet_basic.",
    ),
    "MODEL.CRNAS.WIDTH_MULTIPLIER": Key(
        1.0,
        "Of the stem's channels and of the widths; the paper's supernets of ResNe(X)t have 0.5 (A.1).",
    ),
    "MODEL.CRNAS.NUM_GROUPS": Key(32, "resnext: groups of the 3x3 convolution.", at_least(1)),
    "MODEL.CRNAS.WIDTH_PER_GROUP": Key(
        4, "resnext: channels a group in the first stage at full width.", at_least(1)
    ),
    "MODEL.CRNAS.STRIDE_IN_1X1": Key(
        False,
        "resnet, resnext: stride in the first 1x1 convolution, as in MSRA's weights, not in the 3x3.",
    ),
    "MODEL.CRNAS.NORM": Key(
        "auto",
        "auto: SyncBN when more than one process trains, otherwise BN; or a name for get_norm.",
        one_of("auto", "", "BN", "SyncBN", "naiveSyncBN", "nnSyncBN", "FrozenBN", "GN"),
    ),
    "MODEL.CRNAS.OUT_FEATURES": Key(
        ["res2", "res3", "res4", "res5"],
        "Stages that build_crnas_backbone returns; the FPN builders follow MODEL.FPN.IN_FEATURES.",
    ),
    "MODEL.CRNAS.STAGE_SPACE": Key(
        [],
        "Depths of each entry of the stage code in the supernet; empty: the paper's (Sec. 3.2.1, A.2).",
    ),
    "MODEL.CRNAS.SHARED": Key(
        False,
        "Depth n is the first n blocks of one chain, and the three dilation rates of a choice block "
        "have one weight, instead of a chain and a weight of their own (paper, Figure 2).",
    ),
    "MODEL.CRNAS.WEIGHTS": Key(
        "",
        "Published ImageNet weights, a path or an address, from which the backbone starts where "
        "MODEL.WEIGHTS is empty; its blocks take them by position (tools/convert_weights.py says "
        "of which files). A search starts all its supernets and networks from them.",
    ),
    "MODEL.CRNAS.RECOMPUTE": Key(
        False,
        "Activations of each block are computed again in the backward pass instead of being kept: "
        "less memory, about a third more time, the same results.",
    ),
    "MODEL.NAS_FPN.NUM_CELLS": Key(
        7, "Stacked cells; the paper's 7 have FPN.OUT_CHANNELS 384 (Table 9).", at_least(1)
    ),
    "MODEL.CLASSIFIER.NUM_CLASSES": Key(1000, "Of META_ARCHITECTURE ImageClassifier.", at_least(1)),
    "INPUT.CLASSIFIER_CROP": Key(224, "Pixels: the side of what a classifier sees.", at_least(1)),
    "INPUT.CLASSIFIER_TEST_RESIZE": Key(
        256, "Pixels: the shorter side of a classifier's test image before it is cropped."
    ),
}
SCHEDULE_AND_DATA = {
    "SOLVER.EPOCHS": Key(
        0,
        "Passes over the training images. Above 0 it sets SOLVER.MAX_ITER, and STEP_EPOCHS sets "
        "SOLVER.STEPS; 0: Detectron2's keys count. The paper's 1x is 13 (Sec. 4.1).",
        at_least(0),
    ),
    "SOLVER.STEP_EPOCHS": Key((), "Epochs after which the learning rate drops; the paper's 1x: 8, 11."),
    "SOLVER.MIN_ITER": Key(
        0,
        "Iterations that a schedule in epochs has at least, for small sets; its steps move along.",
        at_least(0),
    ),
    "SOLVER.LR_PER_IMAGE": Key(
        0.0,
        "Learning rate for each image of the batch; above 0 it sets SOLVER.BASE_LR (paper: 0.00125).",
        at_least(0),
    ),
    "SOLVER.ACCUMULATE": Key(
        1,
        "Parts into which a process splits its images of a step; their gradients are accumulated.",
        at_least(1),
    ),
    "DATASETS.TRAIN_JSON": Key(
        "", "A COCO JSON to train on: in our scripts instead of DATASETS.TRAIN and NUM_CLASSES."
    ),
    "DATASETS.TRAIN_IMAGES": Key("", "The folder of its images."),
    "DATASETS.TEST_JSON": Key("", "A COCO JSON to test on: in our scripts instead of DATASETS.TEST."),
    "DATASETS.TEST_IMAGES": Key("", "The folder of its images."),
}
SEARCH = {
    "SEARCH.PHASES": Key(
        ("stage", "dilation"),
        "What search_net.py does (paper, Sec. 3.3). test compares, with SEARCH.JOINT, the found "
        "network's path with the baseline's on the test set; retrain trains the baseline and the "
        "found networks by FOUND_BASE's schedule. Without stage, the dilation search takes "
        "MODEL.CRNAS.STAGE_CODE.",
        one_of("stage", "dilation", "test", "retrain"),
    ),
    "SEARCH.BUDGETS": Key(
        (16,),
        "What the found network may cost; one stage supernet serves all. A number: blocks (8, 16, "
        "33) in the ResNet series, weighted blocks (16) in MobileNetV2 (paper, A.2). Or limits "
        "that hold together, each a value and by what fraction the cost may differ: {macs: "
        "[46.7e9, 0.02], params: [23.5e6, 0.1]} for configs/OwnData/r50.yaml. They are of "
        "FOUND_BASE's network at its test size: blocks, macs and params of the backbone, and latency, "
        "seconds that the whole detector takes for an image on MODEL.DEVICE. Costs other than blocks "
        "need STAGE.ONLY_ELIGIBLE False and STAGE.SAMPLING uniform.",
    ),
    "SEARCH.FOUND_BASE": Key(
        (),
        "Configs, relative to the search's, that found.yaml is based on, with full widths and "
        "their own schedule; one for all budgets, or one for each. None: the search's own config, "
        "with the KEY VALUE pairs of the command line.",
    ),
    "SEARCH.PRETRAIN": Key(
        "",
        "A classification config, relative to the search's, with which each network is trained "
        "first (paper, A.1); empty: none.",
    ),
    "SEARCH.ARCHVAL.SIZE": Key(
        0,
        "Images of the training set held out for scoring; 0: 5,000 (paper, Sec. 4.1), but at most "
        "a fifth of the set.",
    ),
    "SEARCH.ARCHVAL.SPLIT_FIELD": Key(
        "id", "Images whose JSON entries are equal in this field stay on one side of the split."
    ),
    "SEARCH.JOINT": Key(
        False,
        "One supernet of all stage and dilation codes for both searches, with MODEL.CRNAS.SHARED; "
        "the paper trains one for each.",
    ),
    "SEARCH.STAGE.METHOD": Key(
        "exhaustive",
        "exhaustive: every code that meets the budget (paper, Sec. 3.3.1); the others score "
        "SEARCH.EVALUATIONS of them.",
        one_of("exhaustive", "evolution", "random"),
    ),
    "SEARCH.STAGE.ONLY_ELIGIBLE": Key(
        False,
        "The supernet is without branches that no code within the budgets, which are of blocks, uses.",
    ),
    "SEARCH.STAGE.SAMPLING": Key(
        "uniform",
        "uniform: the path of an iteration is drawn in each stage by itself (paper, Sec. 3.3.1); "
        "eligible: from the codes within the budgets, which are of blocks.",
        one_of("uniform", "eligible"),
    ),
    "SEARCH.DILATION.METHOD": Key(
        "greedy",
        "greedy: block by block (paper, Algorithm 1); the others score SEARCH.EVALUATIONS whole codes.",
        one_of("greedy", "evolution", "random"),
    ),
    "SEARCH.DILATION.TOP_K": Key(
        3, "Partial codes that greedy keeps after each block (paper, Sec. 3.3.2).", at_least(1)
    ),
    "SEARCH.DILATION.EVIDENCE": Key(
        False,
        "Dilation rates above 1 are found only if the same weights score better with them than with "
        "rate 1 everywhere, with 95 % certainty over archval's images and less the luck of the greedy "
        "search.",
    ),
    "SEARCH.EVALUATIONS": Key(200, "Candidates of each evolutionary or random search.", at_least(1)),
    "SEARCH.EVAL.TASK": Key("bbox", "Of the score: COCO's task.", one_of("bbox", "segm")),
    "SEARCH.EVAL.METRIC": Key(
        "AP",
        "The score: COCO's metric on archval, 0 to 100.",
        one_of("AP", "AP50", "AP75", "APs", "APm", "APl"),
    ),
    "SEARCH.EVAL.RECALIBRATION_IMAGES": Key(
        200,
        "archtrain's images over which a path's BatchNorm statistics are recomputed; 0: as trained.",
        Check(lambda n: n == 0 or n >= 3, "0 or at least 3"),
    ),
    "SEARCH.EVAL.BATCH_SIZE": Key(
        8,
        "Images in one batch of scoring and of recalibration, over all processes. Scores depend "
        "on it: a batch is padded to one size, and recalibration normalises it by itself (three "
        "batches at least).",
        at_least(1),
    ),
    "SEARCH.EVAL.CACHE_GB": Key(
        8.0,
        "Most GB of a process's host memory for archval's decoded images, and again for those of "
        "recalibration.",
        at_least(0),
    ),
    "SEARCH.EVAL.AMP": Key("", "Mixed precision in scoring; empty: none.", one_of("", "bf16", "fp16")),
    "SEARCH.EVAL.CHANNELS_LAST": Key(False, "Scoring in torch's channels_last memory format."),
    "SEARCH.RACE.CONFIDENCE": Key(
        0.0,
        "Above 0: candidates race over growing portions of archval, and one that is not among the "
        "leading quarter in this fraction of bootstraps is dropped (0.96 was measured). 0: none, "
        "as in the paper.",
        Check(lambda c: c == 0 or 0.5 < c < 1, "0 or 0.5 < value < 1"),
    ),
    "SEARCH.FINALISTS.NUM": Key(
        0,
        "Above 0: so many first candidates of each search and the baseline are trained alone on "
        "archtrain; found is the best mean on archval. 0: the search's first, as in the paper.",
        at_least(0),
    ),
    "SEARCH.FINALISTS.SEEDS": Key(
        3,
        "Rounds. The first trains all finalists with one seed, each later one the better half with one "
        "more.",
        at_least(1),
    ),
    "SEARCH.FINALISTS.SCHEDULE": Key(
        1.0,
        "Of FOUND_BASE's schedule, the part that finalists are trained with.",
        Check(lambda factor: 0 < factor <= 1, "0 < value <= 1"),
    ),
    "SEARCH.FINALISTS.TRY_LONGER": Key(
        False,
        "One more training of the baseline, with half as many iterations again: is the schedule "
        "too short?",
    ),
    "SEARCH.INHERIT": Key(
        False,
        "Networks trained alone start from their paths in the joint supernet, not from scratch, and "
        "found.yaml from found.pth; the noise of seeds is then known after the supernet's training.",
    ),
    "SEARCH.RETRAIN.SEEDS": Key(
        1, "Trainings of each network in the table that ends a run.", at_least(1)
    ),
}
RUN = {
    "NUM_THREADS": Key(
        0,
        "Threads of one operation on the CPU, on which results depend; 0: torch's default.",
        at_least(0),
    ),
    "DIST_TIMEOUT_MINUTES": Key(
        30,
        "Minutes that a process waits for the others in a collective operation, such as while "
        "rank 0 computes the metrics of a test set.",
        at_least(1),
    ),
}
# By the titles of docs/REFERENCE.md.
SECTIONS = {
    "The network": NETWORK,
    "The schedule and your own data": SCHEDULE_AND_DATA,
    "The search": SEARCH,
    "The run": RUN,
}
KEYS = {name: key for section in SECTIONS.values() for name, key in section.items()}

# Keys that --resume of a search may change: always, and until a candidate is scored.
RESUME_ALWAYS = (
    *("CUDNN_BENCHMARK", "DATALOADER.NUM_WORKERS", "DIST_TIMEOUT_MINUTES", "OUTPUT_DIR"),
    *("MODEL.CRNAS.RECOMPUTE", "SEARCH.EVAL.CACHE_GB", "SEARCH.PHASES", "SEARCH.RETRAIN.SEEDS"),
    "SOLVER.CHECKPOINT_PERIOD",
    *(f"SEARCH.FINALISTS.{name}" for name in ("NUM", "SEEDS", "TRY_LONGER")),
)
RESUME_UNTIL_SCORED = ("SEARCH.EVAL.AMP", "SEARCH.EVAL.BATCH_SIZE", "SEARCH.EVAL.CHANNELS_LAST")
