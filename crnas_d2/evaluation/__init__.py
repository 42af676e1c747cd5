"""Scores of paths on archval, and the top-k evaluator of classifiers.

scorer.py: scores by way of matches on disk. path_detector.py: detections along a group of paths, with
recalibration.py (BatchNorm statistics of paths), shared_forward.py (what paths have in common) and
batches.py (images, distributed to ranks). ground_truth.py, matching.py, matches.py: COCO's metric, from
objects and detections to AP. topk.py: top-1 and top-5.
"""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
