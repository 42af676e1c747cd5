"""Data: what a run reads.

datasets.py: data sets in detectron2's catalogs, read and checked. coco_json.py: the records of a COCO
JSON. pictures.py: its images, checked before training. imagenet.py: labelled images in folders.
splits.py: archtrain and archval. loader.py: the training loader, whose batches are a function of (seed,
iteration), and the test loaders. records.py: what rank 0 has read, on all ranks. shapes.py: a generated
data set for the demo and the tests.
"""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
