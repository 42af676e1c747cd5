"""Trained networks for other runtimes: torch.export and ONNX.

The backbone with its neck takes normalised images of any number and any size that is a multiple of its
strides. A whole detector takes one image, as detectron2's models do, and cannot have a batch.
"""

from __future__ import annotations

import io
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

import detectron2
from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.modeling import Backbone

Outputs = Sequence[torch.Tensor]
DETECTIONS = ("boxes", "scores", "classes", "masks")  # outputs of a detector
OPSET = 17  # of a traced detector: ONNX has ROIAlign as torchvision's from 16 on
TRACED_HEADS = ("StandardROIHeads", "CascadeROIHeads")  # whose export is tested
WARM_UP, REPEATS = 2, 7  # forward passes; the median of the repeats counts


def strides_of(backbone: Backbone) -> tuple[int, int]:
    """What height and width must be multiples of, and what both must exceed: its coarsest stride."""
    strides = [shape.stride for shape in backbone.output_shape().values()]
    return backbone.size_divisibility or math.lcm(*strides), max(strides)


def export_backbone(backbone: Backbone, channels: int) -> tuple[Any, bytes]:
    """A program for torch.export.save, and an ONNX file, of a backbone with its neck in eval mode.

    Both take an image tensor (N, channels, H, W), float32 and normalised; for H and W see
    ``strides_of``. The outputs are its features, in the order and of the shapes of output_shape().
    """
    stride, coarsest = strides_of(backbone)
    # torch.export takes a side of 1, of an input or a feature, for a constant.
    rows = 2 * math.ceil(coarsest / stride) + 1
    example = torch.zeros(2, channels, rows * stride, (rows + 1) * stride)
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

    Boxes are in pixels of the image, (n, 4) as (x1, y1, x2, y2); scores and classes (n,), best first;
    masks, of a detector that has them, (n, 1, 28, 28), probabilities within the boxes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = [{"image": image}]
        if hasattr(self.model, "roi_heads"):  # masks stay in their boxes
            found = self.model.inference(images, do_postprocess=False)[0]
        else:
            found = self.model(images)[0]["instances"]
        outputs = (found.pred_boxes.tensor, found.scores, found.pred_classes)
        return (*outputs, found.pred_masks) if found.has("pred_masks") else outputs


def check_traceable(cfg: CfgNode) -> None:
    """Raise InputError for a detector whose trace is not known to do what the detector does."""
    network, heads = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME
    if network not in ("GeneralizedRCNN", "RetinaNet"):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: {network!r}: allowed are GeneralizedRCNN, RetinaNet"
        )
    if network == "RetinaNet" and detectron2.__version__ == "0.5":
        why = "detectron2 0.5 loses TOPK_CANDIDATES_TEST in a trace; main does not"
        raise InputError(f"MODEL.META_ARCHITECTURE: {network!r}: {why}")
    if network == "GeneralizedRCNN" and heads not in TRACED_HEADS:
        raise InputError(f"MODEL.ROI_HEADS.NAME: {heads!r}: allowed are {', '.join(TRACED_HEADS)}")
    if cfg.MODEL.KEYPOINT_ON:
        raise InputError("MODEL.KEYPOINT_ON: True: allowed is False")


def export_detector(detector: Traced, image: torch.Tensor) -> bytes:
    """An ONNX file of a whole detector in eval mode; height and width are free.

    ``image``: (C, H, W), float32, resized as INPUT says, in the order of INPUT.FORMAT's channels, 0 to
    255. The trace keeps what the detector does for it, but not how many objects it finds.
    """
    file = io.BytesIO()
    with torch.no_grad(), _traced_lengths(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace makes a constant; the outputs are compared
        names = [*DETECTIONS[: len(detector(image))]]
        free = {"image": {1: "height", 2: "width"}}
        options = {"input_names": ["image"], "output_names": names, "dynamic_axes": free}
        torch.onnx.export(detector, (image,), file, dynamo=False, opset_version=OPSET, **options)
    return file.getvalue()


@contextmanager
def _traced_lengths() -> Iterator[None]:
    """How many proposals and objects there are stays in the trace: len() would make it a constant.

    detectron2's patch_builtin_len does the same; in 0.5 it cannot be imported without caffe2.
    """
    with ExitStack() as patches:
        for name in ("fast_rcnn", "cascade_rcnn", "mask_head"):
            place = f"detectron2.modeling.roi_heads.{name}.len"
            patches.enter_context(mock.patch(place, lambda of: of.__len__(), create=True))
        yield


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


def differences(found: Outputs, expected: Outputs) -> tuple[float, float]:
    """The largest of all values, and the largest of an output relative to its largest value.

    Values are compared by their place, so two objects of equal scores in another order differ. Both are
    infinite if there are other numbers of values.
    """
    if [each.shape for each in found] != [each.shape for each in expected]:
        return math.inf, math.inf
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected) if a.numel()]
    largest = [float((a - b).abs().max()) for a, b in pairs]
    relative = [d / max(float(b.abs().max()), 1e-9) for d, (_, b) in zip(largest, pairs)]
    return max(largest, default=0.0), max(relative, default=0.0)


@torch.no_grad()
def milliseconds(network: Callable[[torch.Tensor], Any], image: torch.Tensor) -> float:
    """Of a forward pass."""
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        network(image)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[WARM_UP:])
