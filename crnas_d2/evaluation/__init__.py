"""Scoring paths on archval, and the top-k evaluator of classifiers.

archval.py: the scorer. batches.py: fixed batches, kept in memory. sharing.py: what paths have in
common. compiled.py: torch.compile of blocks. recalibration.py: BatchNorm statistics of paths. coco.py:
the metric. matches.py: the metric of weighted images. classification.py: top-1 and top-5.
"""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
