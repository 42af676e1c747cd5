#!/usr/bin/env python
"""Search a backbone: stage supernet, stage search, dilation supernet, greedy search, found.yaml.

    python search_net.py --config-file configs/BCCD/search.yaml OUTPUT_DIR output/bccd

Options are detectron2's, and stand before the pairs: --num-gpus, --resume. detectron2's own lines go to
OUTPUT_DIR/log.txt alone.
"""

from __future__ import annotations

import argparse

from crnas_d2.engine.setup import start_run
from crnas_d2.launch import run
from crnas_d2.pipeline.plan import Plan, plan_search
from crnas_d2.pipeline.run import run_search
from detectron2.engine import default_argument_parser
from detectron2.utils import comm


def work(plan: Plan, args: argparse.Namespace) -> None:
    """What each process does."""
    start_run(plan.cfg, args, quiet=True)
    written = run_search(plan, resume=args.resume)
    if comm.is_main_process():
        print("written:", ", ".join(written))


if __name__ == "__main__":
    run(plan_search, work, default_argument_parser())
