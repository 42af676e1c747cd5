"""Scoring a path on archval.

archval.py: the scorer. recalibration.py: BatchNorm statistics of a path. coco.py: the metric.
"""

from crnas_d2 import lines

lines.prepare()  # before anything of detectron2 is imported
