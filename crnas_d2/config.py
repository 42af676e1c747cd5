"""Every config key of ours, with its meaning, unit and the paper's section. Other keys: detectron2's.

None of detectron2's defaults is changed, so that a project that adds our keys keeps its behaviour.
"""

from __future__ import annotations

from crnas_d2.data import datasets  # noqa: F401  (registers our data sets)
from crnas_d2.modeling import build  # noqa: F401  (registers our backbones)
from crnas_d2.search.greedy import TOP_K
from crnas_d2.space import RESNET_DEPTHS
from detectron2.config import CfgNode as CN


def add_crnas_config(cfg: CN) -> None:
    """Add our keys to a detectron2 config, in place."""
    _C = cfg

    # ---- the network -------------------------------------------------------------------------
    _C.MODEL.CRNAS = CN()
    # resnet_basic (ResNet18, 34) or resnet (ResNet50, 101, 152).
    _C.MODEL.CRNAS.FAMILY = "resnet"
    # Blocks in each stage (paper, Table 5).
    _C.MODEL.CRNAS.STAGE_CODE = [3, 4, 6, 3]
    # One digit a block, 0, 1, 2 for rates 1, 2, 3 (paper, Table 6); empty: rate 1 everywhere.
    _C.MODEL.CRNAS.DILATION_CODE = []
    # "": the fixed network of the two codes; "stage", "dilation": a supernet. search_net.py sets it.
    _C.MODEL.CRNAS.SUPERNET = ""
    # Channels after the stem, and width of each stage; out = 4 * width in resnet. Supernets of the
    # paper have half of it (A.1).
    _C.MODEL.CRNAS.STEM_CHANNELS = 64
    _C.MODEL.CRNAS.WIDTHS = [64, 128, 256, 512]
    # "auto": SyncBN when more than one process trains, BN otherwise; or a name of detectron2's
    # get_norm.
    _C.MODEL.CRNAS.NORM = "auto"
    # Stages that build_crnas_backbone returns; the FPN builders go by MODEL.FPN.IN_FEATURES.
    _C.MODEL.CRNAS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Depths that each stage of the stage supernet may have (paper, Sec. 3.2.1).
    _C.MODEL.CRNAS.STAGE_SPACE = [list(depths) for depths in RESNET_DEPTHS]
    # Depth n is the first n blocks of one chain, instead of a chain of its own (paper, Figure 2).
    _C.MODEL.CRNAS.NESTED_DEPTHS = False

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
    # Costs that a stage code must have (blocks, in the ResNet series: 8, 16, 33), from one supernet.
    _C.SEARCH.BUDGETS = (16,)
    # Leave branches out of the stage supernet that no eligible code uses.
    _C.SEARCH.ONLY_ELIGIBLE = False
    # "uniform": independent in each stage (paper, Sec. 3.3.1); "eligible": over the eligible codes.
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
    # The score: a COCO task ("bbox", "segm") and metric ("AP", "AP50", "AP75", "APs", "APm", "APl").
    _C.SEARCH.TASK = "bbox"
    _C.SEARCH.METRIC = "AP"
    # Partial dilation codes kept after each block (paper, Sec. 3.3.2).
    _C.SEARCH.TOP_K = TOP_K
    # The config of the found network: full widths and its own schedule; found.yaml is based on it.
    _C.SEARCH.FOUND_BASE = ""

    # ---- the run -----------------------------------------------------------------------------
    # Threads of one operation on the CPU, the same for any number of processes, since results
    # depend on it to the bit; 0: as torch has it. Our scripts read SEED -1 as 0: always seeded.
    _C.NUM_THREADS = 0
