"""Data sets in detectron2's catalogs, read and checked before a run; their split, and the loaders."""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
