"""Training and the search's course.

trainer.py: DetectionTrainer, whose run is a function of the seed, and SupernetTrainer. draws.py:
the random draws inside a detector's losses. schedule.py: epochs. gradients.py and checkpoint.py.
hooks.py: path sampling, progress bar, search. scoring.py: the scorer from a config. launch.py:
processes. setup.py: from the command line to a checked config. plan.py and chain.py: search_net.py's
checks and its course, with pretrain.py, found.py and retrain.py. looks.py: what candidates of a race
have seen.
"""

from crnas_d2 import lines

lines.prepare()  # before anything of detectron2 is imported
