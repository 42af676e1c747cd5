"""Faster R-CNN with FPN over CR-ResNet18 as a LazyConfig of detectron2, on BCCD.

Its names are those that detectron2's lazyconfig_train_net.py asks for; docs/GETTING_STARTED.md has the
few lines that train it without that script. For another network give another text to `build_backbone`.
"""

from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, OmegaConf
from torch.optim import SGD

from crnas_d2 import build_backbone
from detectron2.config import LazyCall
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, StandardROIHeads
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params

CODES = "resnet_basic/1-1-2-4/0-0-10-1021"  # CR-ResNet18 (paper, Tables 5 and 6)
STAGES = ["res2", "res3", "res4", "res5"]
LEVELS = ["p2", "p3", "p4", "p5"]
CHANNELS = 256  # of each level
CLASSES = 3
STRIDES = [4, 8, 16, 32]
SIZES = [[16], [32], [64], [128], [256]]  # of anchors, in pixels; half of COCO's

model = LazyCall(GeneralizedRCNN)(
    backbone=LazyCall(FPN)(
        bottom_up=LazyCall(build_backbone)(architecture=CODES, out_features=STAGES, norm="BN"),
        in_features=STAGES,
        out_channels=CHANNELS,
        norm="BN",
        top_block=LazyCall(LastLevelMaxPool)(),
    ),
    proposal_generator=LazyCall(RPN)(
        in_features=[*LEVELS, "p6"],
        head=LazyCall(StandardRPNHead)(in_channels=CHANNELS, num_anchors=3),
        anchor_generator=LazyCall(DefaultAnchorGenerator)(
            sizes=SIZES, aspect_ratios=[0.5, 1.0, 2.0], strides=[*STRIDES, 64], offset=0.0
        ),
        anchor_matcher=LazyCall(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=LazyCall(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 1000),  # training, test
        post_nms_topk=(1000, 1000),
    ),
    roi_heads=LazyCall(StandardROIHeads)(
        num_classes=CLASSES,
        batch_size_per_image=128,
        positive_fraction=0.25,
        proposal_matcher=LazyCall(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=LEVELS,
        box_pooler=LazyCall(ROIPooler)(
            output_size=7,
            scales=[1 / stride for stride in STRIDES],
            sampling_ratio=0,
            pooler_type="ROIAlignV2",
        ),
        box_head=LazyCall(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=CHANNELS, height=7, width=7),
            conv_dims=[],
            fc_dims=[1024, 1024],
        ),
        box_predictor=LazyCall(FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=1024),
            box2box_transform=LazyCall(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes=CLASSES,
            test_score_thresh=0.05,
        ),
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)

RESIZE = LazyCall(T.ResizeShortestEdge)(short_edge_length=[480, 480], max_size=640)
dataloader: DictConfig = OmegaConf.create()
dataloader.train = LazyCall(build_detection_train_loader)(
    dataset=LazyCall(get_detection_dataset_dicts)(names="bccd_train"),
    mapper=LazyCall(DatasetMapper)(
        is_train=True, augmentations=[RESIZE, LazyCall(T.RandomFlip)()], image_format="RGB"
    ),
    total_batch_size=8,
    num_workers=2,
)
dataloader.test = LazyCall(build_detection_test_loader)(
    dataset=LazyCall(get_detection_dataset_dicts)(names="bccd_val", filter_empty=False),
    mapper=LazyCall(DatasetMapper)(is_train=False, augmentations=[RESIZE], image_format="RGB"),
    num_workers=2,
)
dataloader.evaluator = LazyCall(COCOEvaluator)(dataset_name="bccd_val")

optimizer = LazyCall(SGD)(
    params=LazyCall(get_default_optimizer_params)(weight_decay_norm=0.0),  # and params.model
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
)
lr_multiplier = LazyCall(WarmupParamScheduler)(
    scheduler=LazyCall(MultiStepParamScheduler)(values=[1, 0.1, 0.01], milestones=[800, 1100, 1200]),
    warmup_length=0.1,
    warmup_factor=0.001,
)
train = OmegaConf.create(
    {
        "output_dir": "output/lazy",
        "init_checkpoint": "",
        "max_iter": 1200,
        "amp": {"enabled": False},
        "ddp": {"broadcast_buffers": False},
        "checkpointer": {"period": 400, "max_to_keep": 1},
        "eval_period": 400,
        "log_period": 20,
        "device": "cuda",
    }
)
