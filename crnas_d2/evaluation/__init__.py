"""Scores of paths on archval, and the top-k evaluator of classifiers.

scorer.py: scores by way of matches on disk. path_detector.py: BatchNorm statistics and detections of a
group of paths, over batches.py's images. matching.py, matches.py: COCO's metric, from objects and
detections to AP.
"""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
