"""Another project's training script: plain Detectron2, and add_crnas_config. test_guest.py runs it.

    python guest_train.py found.yaml DATA OUTPUT

DATA holds train.json, val.json and images/. The two marked lines are all that is of crnas_d2.
"""

import os
import sys

from crnas_d2 import add_crnas_config  # ours; before detectron2, as detectron2 0.5 needs it
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import COCOEvaluator


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


def main(found, data, output):
    for split in ("train", "val"):
        images = os.path.join(data, "images")
        register_coco_instances(f"guest_{split}", {}, os.path.join(data, f"{split}.json"), images)
    cfg = get_cfg()
    add_crnas_config(cfg)  # ours
    cfg.merge_from_file(found)
    cfg.DATASETS.TRAIN = ("guest_train",)
    cfg.DATASETS.TEST = ("guest_val",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.OUTPUT_DIR = output
    cfg.freeze()
    default_setup(cfg, None)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    modules = trainer.model.backbone.bottom_up.modules()
    print("rates:", [m.dilation[0] for m in modules if getattr(m, "kernel_size", 0) == (3, 3)])


if __name__ == "__main__":
    main(*sys.argv[1:])
