#!/usr/bin/env python
"""Search a backbone: stage supernet, stage search, dilation supernet, greedy search, found.yaml.

    python search_net.py --config-file configs/BCCD/search.yaml OUTPUT_DIR output/bccd

Options are detectron2's, and stand before the pairs: --num-gpus, --resume. --plan shows what the search
would read, train and score, and ends; with --timed a few steps are timed first, to say how long it will
take. detectron2's own lines go to OUTPUT_DIR/log.txt alone.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch

from crnas_d2.engine.setup import start_run
from crnas_d2.errors import InputError
from crnas_d2.files import EARLY, write_to_log
from crnas_d2.launch import run
from crnas_d2.pipeline.course import Work, begin_progress, course
from crnas_d2.pipeline.estimate import Estimate, estimate, shown
from crnas_d2.pipeline.outline import outline
from crnas_d2.pipeline.plan import Plan, plan_search
from crnas_d2.pipeline.run import run_search
from crnas_d2.pipeline.starts import record_start
from crnas_d2.report.page import write_report
from detectron2.engine import default_argument_parser
from detectron2.utils import comm


def options() -> argparse.ArgumentParser:
    """detectron2's options, and ours."""
    parser = default_argument_parser()
    parser.add_argument("--plan", action="store_true", help="show what the search would do, and end")
    parser.add_argument("--timed", action="store_true", help="time a few steps: how long will it take?")
    return parser


def prepare(args: argparse.Namespace) -> Plan:
    """The checked plan, on rank 0."""
    if args.timed and comm.get_world_size() > 1:  # also of torchrun
        raise InputError("--timed: takes one process; without --num-gpus it times one")
    return plan_search(args)


def work(plan: Plan, args: argparse.Namespace) -> None:
    """What each process does."""
    logger = logging.getLogger("crnas_d2")
    works = course(plan) if comm.is_main_process() else []
    if args.plan:
        if comm.is_main_process():
            show(plan, works, args.timed)
        return
    start_run(plan.cfg, args, quiet=True)
    if comm.is_main_process():
        logger.info("the plan:\n%s", outline(plan, works))
        begin_progress(plan, works)
    expected = estimate(plan, works) if args.timed else None
    if expected:
        logger.info("%s", expected)
    if comm.is_main_process():
        record_start(plan, expected, args.resume)
    start = time.perf_counter()
    written = run_search(plan, resume=args.resume)
    if expected and expected.seconds:
        tell_how_far_off(plan, expected, time.perf_counter() - start)
    if comm.is_main_process():
        print("written:", ", ".join([*written, *report(Path(plan.cfg.OUTPUT_DIR))]))


def tell_how_far_off(plan: Plan, expected: Estimate, seconds: float) -> None:
    """Log what the run took beside what was estimated."""
    logger = logging.getLogger("crnas_d2")
    factor = seconds / expected.seconds
    logger.info("it took %s, %.2f times what was estimated", shown(seconds), factor)
    size = sum(path.stat().st_size for path in Path(plan.cfg.OUTPUT_DIR).rglob("model_*.pth"))
    text = "checkpoints have %.1f GB, %.2f times what was estimated"
    logger.info(text, size / 1e9, size / expected.disk_bytes)
    if expected.gpu_bytes:
        peak = torch.cuda.max_memory_allocated()
        text = "the peak of GPU memory was %.1f GB, %.2f times what was estimated for training"
        logger.info(text, peak / 1e9, peak / expected.gpu_bytes)


def report(folder: Path) -> list[str]:
    """Write report.html; its path, or none: a search whose results are written has not failed."""
    try:
        return [str(write_report(folder, measure=True))]
    except Exception as error:  # of images, weights or drawing libraries
        text = f"report.html: not written ({error!r}); tools/report.py {folder} tries again"
        write_to_log(logging.WARNING, text, error)
        print(text)
        return []


def show(plan: Plan, works: list[Work], timed: bool) -> None:
    """Print the plan and what its checks warn of; nothing is written."""
    for record in EARLY.buffer:
        if record.levelno >= logging.WARNING:
            print(record.getMessage())
    print(outline(plan, works))
    if timed:
        if plan.cfg.NUM_THREADS > 0:
            torch.set_num_threads(plan.cfg.NUM_THREADS)
        print(estimate(plan, works))


if __name__ == "__main__":
    run(prepare, work, options())
