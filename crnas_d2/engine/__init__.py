"""Training, as detectron2 means the word: trainer, hooks, checkpoints, schedules, gradients.

setup.py: the checked config of train_net.py, and the start of a run.
"""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
