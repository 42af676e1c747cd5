"""Networks: fixed ones and supernets, built from the same blocks.

family.py: what a family is. resnet.py: the ResNet family. supernet.py: stage and dilation supernet.
norm.py: which BatchNorm. weights.py: checkpoints checked.
build.py: the builders in BACKBONE_REGISTRY, the only readers of cfg here.
Nothing here knows of search, engine or data.
"""

from crnas_d2 import lines

lines.prepare()  # before anything of detectron2 is imported
