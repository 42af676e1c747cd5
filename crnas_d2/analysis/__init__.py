"""What reads and never trains: costs.py and flops.py count, latency.py measures, report.py shows."""

from crnas_d2 import compat

compat.prepare()  # before anything of detectron2 is imported
