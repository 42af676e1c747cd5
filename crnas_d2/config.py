"""Every config key of ours, with its meaning, unit and the paper's section. Other keys: detectron2's.

None of detectron2's defaults is changed, so that a project that adds our keys keeps its behaviour.
"""

from __future__ import annotations

from crnas_d2.data import datasets, imagenet  # noqa: F401  (register our data sets)
from crnas_d2.modeling import build, classifier  # noqa: F401  (register backbones and classifier)
from crnas_d2.search.greedy import TOP_K
from detectron2.config import CfgNode as CN


def add_crnas_config(cfg: CN) -> None:
    """Add our keys to a detectron2 config, in place."""
    _C = cfg

    # ---- the network -------------------------------------------------------------------------
    _C.MODEL.CRNAS = CN()
    # resnet_basic (ResNet18, 34), resnet (ResNet50, 101, 152), resnext or mobilenetv2.
    _C.MODEL.CRNAS.FAMILY = "resnet"
    # Blocks in each stage (paper, Table 5).
    _C.MODEL.CRNAS.STAGE_CODE = [3, 4, 6, 3]
    # One digit a block, 0, 1, 2 for rates 1, 2, 3 (paper, Table 6); empty: rate 1 everywhere.
    _C.MODEL.CRNAS.DILATION_CODE = []
    # "": the fixed network of the two codes; "stage", "dilation": a supernet. search_net.py sets it.
    _C.MODEL.CRNAS.SUPERNET = ""
    # Channels after the stem, and width of each stage; 0 and empty: the family's own, 64 and
    # [64, 128, 256, 512] in ResNets, whose stages have 4 * width channels but for resnet_basic.
    _C.MODEL.CRNAS.STEM_CHANNELS = 0
    _C.MODEL.CRNAS.WIDTHS = []
    # Factor on both. Supernets of ResNet and ResNeXt have 0.5 in the paper (A.1).
    _C.MODEL.CRNAS.WIDTH_MULTIPLIER = 1.0
    # resnext: groups of the 3x3 convolution, and channels of a group in the first stage at full width.
    _C.MODEL.CRNAS.NUM_GROUPS = 32
    _C.MODEL.CRNAS.WIDTH_PER_GROUP = 4
    # resnet and resnext: stride in the first 1x1 convolution, as in MSRA's weights, not in the 3x3.
    _C.MODEL.CRNAS.STRIDE_IN_1X1 = False
    # "auto": SyncBN when more than one process trains, BN otherwise; or a name of detectron2's
    # get_norm.
    _C.MODEL.CRNAS.NORM = "auto"
    # Stages that build_crnas_backbone returns; the FPN builders go by MODEL.FPN.IN_FEATURES.
    _C.MODEL.CRNAS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Depths that each entry of the stage code may have in the stage supernet; empty: the paper's
    # (Sec. 3.2.1, A.2).
    _C.MODEL.CRNAS.STAGE_SPACE = []
    # Depth n is the first n blocks of one chain, instead of a chain of its own (paper, Figure 2).
    _C.MODEL.CRNAS.NESTED_DEPTHS = False

    # ---- NAS-FPN and classification ----------------------------------------------------------
    # Stacked cells of build_crnas_nas_fpn_backbone (paper, Table 9: 7, with FPN.OUT_CHANNELS 384).
    _C.MODEL.NAS_FPN = CN()
    _C.MODEL.NAS_FPN.NUM_CELLS = 7
    # META_ARCHITECTURE ImageClassifier: number of classes, and the stage that it looks at.
    _C.MODEL.CLASSIFIER = CN()
    _C.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    _C.MODEL.CLASSIFIER.IN_FEATURE = "res5"
    # Side in pixels of the square that a classifier sees; the shorter side of a test image is resized
    # to TEST_RESIZE before the middle is cut out.
    _C.INPUT.CLASSIFIER_CROP = 224
    _C.INPUT.CLASSIFIER_TEST_RESIZE = 256

    # ---- the schedule ------------------------------------------------------------------------
    # Passes over the images that are trained on; above 0 it gives SOLVER.MAX_ITER, and STEP_EPOCHS
    # gives SOLVER.STEPS (paper, Sec. 4.1: 13, with 8 and 11). 0: the iterations stand as they are.
    _C.SOLVER.EPOCHS = 0
    _C.SOLVER.STEP_EPOCHS = ()
    # Learning rate for each image of the batch; above 0 it gives SOLVER.BASE_LR (paper: 0.00125).
    _C.SOLVER.LR_PER_IMAGE = 0.0
    # Parts that a process's images go through the network in, one after another, before each step.
    _C.SOLVER.ACCUMULATE = 1

    # ---- a person's own data -----------------------------------------------------------------
    # A COCO JSON and its image folder; class names come from the JSON. They replace DATASETS.TRAIN
    # or DATASETS.TEST, and the number of classes of the heads, in our two scripts.
    _C.DATASETS.TRAIN_JSON = ""
    _C.DATASETS.TRAIN_IMAGES = ""
    _C.DATASETS.TEST_JSON = ""
    _C.DATASETS.TEST_IMAGES = ""

    # ---- the search --------------------------------------------------------------------------
    _C.SEARCH = CN()
    # Which steps search_net.py takes: "stage" and "dilation" (paper, Sec. 3.3), and "retrain", which
    # trains the baseline and the found networks with FOUND_BASE's schedule and prints the table.
    # Without "stage", the dilation search is that of MODEL.CRNAS.STAGE_CODE.
    _C.SEARCH.STEPS = ("stage", "dilation")
    # What the found network may cost, each served by the one stage supernet. A number: blocks (8, 16,
    # 33) in the ResNet series, weighted blocks (16) in MobileNetV2 (paper, A.2). Text: limits that hold
    # together, as "macs=4.1e9~2%, params=25e6~5%", of blocks, of macs and params of the backbone, and
    # of latency, seconds that the whole detector takes for an image on MODEL.DEVICE
    # (crnas_d2/analysis/latency.py). All are those of FOUND_BASE's network, at its INPUT's test size.
    _C.SEARCH.BUDGETS = (16,)
    # "exhaustive": every code that meets the budget (paper, Sec. 3.3.1); "evolution" or "random":
    # EVALUATIONS of them, where they are too many.
    _C.SEARCH.STAGE_SEARCH = "exhaustive"
    # "greedy" (paper, Sec. 3.3.2), "evolution" or "random".
    _C.SEARCH.DILATION_SEARCH = "greedy"
    # Candidates that each evolutionary or random search scores; fewer where there are no more.
    _C.SEARCH.EVALUATIONS = 200
    # Leave branches out of the stage supernet that no eligible code uses; with budgets of blocks alone.
    _C.SEARCH.ONLY_ELIGIBLE = False
    # "uniform": independent in each stage (paper, Sec. 3.3.1); "eligible": over the eligible codes,
    # with budgets of blocks alone.
    _C.SEARCH.SAMPLING = "uniform"
    # Images of the training set held out for scoring; 0: 5,000 (paper, Sec. 4.1), but at most a
    # fifth of the set.
    _C.SEARCH.ARCHVAL_SIZE = 0
    # Entry of an image in the JSON: images with an equal value stay on one side ("id": each alone).
    _C.SEARCH.SPLIT_FIELD = "id"
    # archtrain images over which a path's BatchNorm statistics are recomputed; 0: as trained.
    _C.SEARCH.RECALIBRATION_IMAGES = 200
    # Images in one batch of scoring and of recalibration, over all processes' shares alike.
    _C.SEARCH.BATCH_SIZE = 8
    # Memory in GB of each process for the decoded images of archval, and as much again for those of
    # recalibration; what does not fit is read again each time. Of the host, or of MODEL.DEVICE.
    _C.SEARCH.CACHE_GB = 8.0
    _C.SEARCH.CACHE_ON_DEVICE = False
    # Mixed precision in scoring: "", "bf16" or "fp16"; and torch's channels_last memory format, which
    # suits GPUs with mixed precision. torch.compile of the blocks for detection (torch 2.6 or later and
    # a C++ compiler): minutes before the first score.
    _C.SEARCH.AMP = ""
    _C.SEARCH.CHANNELS_LAST = False
    _C.SEARCH.COMPILE = False
    # Candidates that are scored together, so that what their paths have in common is computed once, and
    # journalled together. No score depends on it.
    _C.SEARCH.GROUP_SIZE = 32
    # Above 0: candidates race over growing portions of archval, and one that is not among the leading
    # quarter in this fraction of bootstraps is dropped (crnas_d2/search/race.py; 0.96 was measured).
    # 0: every candidate sees all of archval, as in the paper.
    _C.SEARCH.RACE_CONFIDENCE = 0.0
    # The score: a COCO task ("bbox", "segm") and metric ("AP", "AP50", "AP75", "APs", "APm", "APl").
    _C.SEARCH.TASK = "bbox"
    _C.SEARCH.METRIC = "AP"
    # Partial dilation codes kept after each block (paper, Sec. 3.3.2).
    _C.SEARCH.TOP_K = TOP_K
    # The config of the found network: full widths and its own schedule; found.yaml is based on it.
    _C.SEARCH.FOUND_BASE = ""

    # A classification config, with which each supernet is trained first (paper, A.1), and with the step
    # "retrain" the baseline and the found networks, too; empty: none. Relative to the search's config.
    _C.SEARCH.PRETRAIN = ""

    # ---- the run -----------------------------------------------------------------------------
    # Threads of one operation on the CPU, the same for any number of processes, since results
    # depend on it to the bit; 0: as torch has it. Our scripts read SEED -1 as 0: always seeded.
    _C.NUM_THREADS = 0
