"""What reads networks and results and never trains: costs.py counts multiply-accumulates."""

from crnas_d2 import lines

lines.prepare()  # before anything of detectron2 is imported
