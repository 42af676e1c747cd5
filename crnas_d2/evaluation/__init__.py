"""Scores of paths on archval, and the evaluators of train_net.py.

scorer.py: scores by way of matches on disk. path_detector.py: BatchNorm statistics and detections of a
group of paths, over batches.py's images. matching.py, matches.py: COCO's metric, from objects and
detections to AP. coco.py and topk.py: AP, and top-1 and top-5, of a test set.
"""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
