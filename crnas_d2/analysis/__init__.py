"""What reads and never trains: costs.py and flops.py count, latency.py and erf.py measure."""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
