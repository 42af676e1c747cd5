"""Training, as detectron2 means the word: trainer, hooks, checkpoints, schedules, gradients.

setup.py: the checked config of train_net.py, and the start of a run. detector.py: a trained detector
that draws, which demo.py runs on a person's files.
"""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
