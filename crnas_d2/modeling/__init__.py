"""Networks: fixed ones and supernets, built from the same blocks.

family.py: what a family is. resnet.py: ResNet and ResNeXt. mobilenetv2.py. supernet.py: stage and
dilation supernet. nas_fpn.py: a neck. classifier.py: a META_ARCHITECTURE. norm.py: which BatchNorm.
weights.py: checkpoints checked. convert.py, sources.py, array_pickle.py: weights of other projects.
build.py: the builders in BACKBONE_REGISTRY; it and the classifier alone read cfg here.
Nothing here knows of search, engine or data.
"""

from crnas_d2 import lines

lines.prepare()  # before anything of detectron2 is imported
