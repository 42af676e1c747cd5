"""ImageClassifier: a META_ARCHITECTURE over the same backbones, for pre-training (paper, A.1).

Backbone, global average pooling, one linear layer. Parameters: backbone.*, fc.*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from crnas_d2.errors import InputError
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList

LAST = "res5"  # stage
FC_STD = 0.01  # of the linear layer's weights (Goyal et al. 2017, Sec. 5.1)


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """Class scores of images, from the pooled last stage of a fixed network or supernet."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.output_shape()[LAST].channels, num_classes)
        nn.init.normal_(self.fc.weight, std=FC_STD)
        nn.init.zeros_(self.fc.bias)
        # Not in checkpoints: as in detectron2's detectors, they belong to the config.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """An InputError if the backbone does not return its last stage."""
        backbone, name = build_backbone(cfg), cfg.MODEL.BACKBONE.NAME
        if LAST not in backbone.output_shape():
            what = f"{name!r} returns {', '.join(backbone.output_shape())}"
            raise InputError(f"MODEL.BACKBONE.NAME: {what}; ImageClassifier needs {LAST}")
        pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
        return {"backbone": backbone, "num_classes": cfg.MODEL.CLASSIFIER.NUM_CLASSES, **pixels}

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """The normalised images as one batch (N, C, H, W)."""
        images = (x["image"].to(self.device) for x in batched_inputs)
        normalised = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(normalised, self.backbone.size_divisibility)

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        """Of ``image`` (C, H, W), 0..255, all of one size: in training, with ``label``, a dict of the
        mean cross entropy, ``loss_classification``; else ``{"scores": (num_classes,)}`` for each image.
        """
        features = self.backbone(self.preprocess_image(batched_inputs).tensor)[LAST]
        logits = self.fc(features.mean(dim=(2, 3)))
        if self.training:
            labels = torch.tensor([x["label"] for x in batched_inputs], device=self.device)
            return {"loss_classification": F.cross_entropy(logits, labels)}
        return [{"scores": scores} for scores in logits.softmax(dim=1)]
