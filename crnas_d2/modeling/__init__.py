"""Networks: fixed ones and supernets, built from the same blocks.

backbone/: families, supernets, norm. neck/: NAS-FPN. meta_arch/: the image classifier. checkpoint/:
weights read, checked and converted. build.py: the builders in BACKBONE_REGISTRY.
"""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
