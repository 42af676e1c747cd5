"""A trained detector that draws what it finds, on pictures and in videos. Here OpenCV is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer


class Detector:
    """It draws boxes, class names, scores and, where it has them, masks, as detectron2's demo does."""

    def __init__(self, cfg: CfgNode, classes: Sequence[str], threshold: float) -> None:
        """``cfg``: as check_detector accepts it; ``threshold``: the least score drawn, 0 to 1.

        Raises InputError: INPUT.FORMAT is not one of colours.
        """
        if (order := cfg.INPUT.FORMAT) not in ("RGB", "BGR"):
            raise InputError(f"INPUT.FORMAT: {order!r}: allowed are RGB and BGR, to draw")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
        self._predictor = DefaultPredictor(cfg)
        self._metadata = Metadata(thing_classes=list(classes))

    def draw(self, image: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, int]:
        """The detections on a picture, and their number; RGB, uint8 (height, width, 3).

        ``scale``: of what is drawn, to the picture.
        """
        found = self._detect(image[:, :, ::-1])
        drawn = Visualizer(image, self._metadata, scale).draw_instance_predictions(found)
        return drawn.get_image(), len(found)

    def draw_video(self, video: cv2.VideoCapture) -> Iterator[np.ndarray]:
        """The detections on each frame that can be read: BGR, uint8 (height, width, 3).

        An object keeps its color from frame to frame, and masks have no boxes.
        """
        visualizer = VideoVisualizer(self._metadata)
        while True:
            is_read, frame = video.read()
            if not is_read:
                return
            drawn = visualizer.draw_instance_predictions(frame[:, :, ::-1], self._detect(frame))
            yield np.ascontiguousarray(drawn.get_image()[:, :, ::-1])

    def _detect(self, image: np.ndarray) -> Instances:
        """On the CPU; ``image``: BGR."""
        return self._predictor(np.ascontiguousarray(image))["instances"].to("cpu")
