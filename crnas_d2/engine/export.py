"""Trained networks for other runtimes: torch.export and ONNX.

The backbone with its neck takes normalised images of any number and any size that is a multiple of its
strides. A whole detector takes one image, as detectron2's models do, and cannot have a batch.
"""

from __future__ import annotations

import io
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.modeling import Backbone

Outputs = Sequence[torch.Tensor]
DETECTIONS = ["boxes", "scores", "classes"]  # outputs of a detector
OPSET = 17  # of a traced detector: ONNX has ROIAlign as torchvision's from 16 on
WARM_UP, REPEATS = 2, 7  # forward passes; the median of the repeats counts


def stride_of(backbone: Backbone) -> int:
    """What height and width must be multiples of."""
    strides = [shape.stride for shape in backbone.output_shape().values()]
    # A top level made by a pooling alone, such as p6, takes any size.
    return backbone.size_divisibility or math.lcm(*strides)


def export_backbone(backbone: Backbone, channels: int) -> tuple[Any, bytes]:
    """A program for torch.export.save, and an ONNX file, of a backbone with its neck in eval mode.

    Both take an image tensor (N, channels, H, W), float32 and normalised; H and W are multiples of
    ``stride_of``, and so large that no feature is 1 wide or high. The outputs are its features, in the
    order and of the shapes of output_shape().
    """
    stride = stride_of(backbone)
    # torch.export takes a side of 1 for a constant: two images, and sides for a p7.
    example = torch.zeros(2, channels, 6 * stride, 8 * stride)
    sides = {2: torch.export.Dim("rows") * stride, 3: torch.export.Dim("columns") * stride}
    shapes = ({0: torch.export.Dim("images"), **sides},)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts
        program = torch.export.export(backbone, (example,), dynamic_shapes=shapes)
        names = {"input_names": ["image"], "output_names": list(backbone.output_shape())}
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    return program, onnx.model_proto.SerializeToString()


class Traced(nn.Module):
    """A detector as a function of tensors: an image, as detectron2's models take it, to DETECTIONS.

    Boxes are in pixels of the image, (n, 4) as (x1, y1, x2, y2); scores and classes (n,), best first.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = [{"image": image}]
        found = self.model(images)[0]["instances"]
        return found.pred_boxes.tensor, found.scores, found.pred_classes


def check_traceable(cfg: CfgNode) -> None:
    """Raise InputError for a detector in whose trace the number of objects would be a constant."""
    allowed: list[tuple[str, Any, tuple[Any, ...]]]
    allowed = [("META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, ("GeneralizedRCNN", "RetinaNet"))]
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        allowed.append(("ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME, ("StandardROIHeads",)))
        allowed.append(("MASK_ON", cfg.MODEL.MASK_ON, (False,)))
    for key, value, values in allowed:
        if value not in values:
            raise InputError(f"MODEL.{key}: {value!r}: allowed are {', '.join(map(str, values))}")


def export_detector(detector: Traced, image: torch.Tensor) -> bytes:
    """An ONNX file of a whole detector in eval mode; height and width are free.

    ``image``: (C, H, W), float32, resized as INPUT says, in the order of INPUT.FORMAT's channels, 0 to
    255. It is traced, with what the detector does for this image, so it should show some objects.
    """
    file = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace makes a constant; the outputs are compared
        names = {"input_names": ["image"], "output_names": DETECTIONS}
        free = {"image": {1: "height", 2: "width"}}
        torch.onnx.export(
            detector, (image,), file, dynamo=False, opset_version=OPSET, dynamic_axes=free, **names
        )
    detector.eval()  # the export leaves it in the mode of its own making
    return file.getvalue()


class OnnxNetwork:
    """An ONNX file as a function of a tensor, run by onnxruntime on the CPU."""

    def __init__(self, file: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised
        self._session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, image: torch.Tensor) -> Outputs:
        return [torch.from_numpy(found) for found in self._session.run(None, {"image": image.numpy()})]


def largest_difference(found: Outputs, expected: Outputs) -> float:
    """Of all values; infinite if there are other numbers of them."""
    if [each.shape for each in found] != [each.shape for each in expected]:
        return math.inf
    pairs = ((a, b) for a, b in zip(found, expected) if a.numel())
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0)


@torch.no_grad()
def milliseconds(network: Callable[[torch.Tensor], Any], image: torch.Tensor) -> float:
    """Of a forward pass."""
    seconds = []
    for _ in itertools.repeat(None, WARM_UP + REPEATS):
        start = time.perf_counter()
        network(image)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[WARM_UP:])
