"""Schedules in epochs: SOLVER.EPOCHS, STEP_EPOCHS and LR_PER_IMAGE converted to detectron2's keys.

An epoch is one pass over the images that are trained on, without those that detectron2 drops since they
have no annotation (117,266 of 118,287 remain in COCO train2017). Keys of ours that are 0 do not count.
"""

from __future__ import annotations

import logging
import math

import torch

from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.solver.build import build_lr_scheduler, maybe_add_gradient_clipping


def check_schedule(cfg: CfgNode) -> None:
    """Check the keys of SOLVER together.

    Raises InputError: steps without EPOCHS, out of order or not before its end, or values that torch's
        SGD or detectron2's schedules refuse.
    """
    solver, epochs, steps = cfg.SOLVER, cfg.SOLVER.EPOCHS, tuple(cfg.SOLVER.STEP_EPOCHS)
    numbers = all(type(step) in (int, float) for step in steps)
    bounds = [0, *steps, epochs]
    if steps and not (numbers and sorted(set(bounds)) == bounds):
        needed = f"ascending numbers between 0 and SOLVER.EPOCHS, which is {epochs}, are needed"
        raise InputError(f"SOLVER.STEP_EPOCHS: {steps}: {needed}")
    # What detectron2 makes of the other keys of SOLVER shows on one weight.
    weight = torch.zeros(1, requires_grad=True)
    try:
        sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
            [weight], lr=solver.BASE_LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY
        )
        build_lr_scheduler(cfg, sgd)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(f"SOLVER: cannot be used: {' '.join(str(error).split())}") from error


def iterations(cfg: CfgNode, images: int) -> list[int]:
    """The steps and the end of a schedule, in iterations; ``images``: in one epoch."""
    solver = cfg.SOLVER
    if not solver.EPOCHS:
        return [*solver.STEPS, solver.MAX_ITER]
    each = max(images / solver.IMS_PER_BATCH, solver.MIN_ITER / solver.EPOCHS)
    return [math.ceil(round(e * each, 6)) for e in (*solver.STEP_EPOCHS, solver.EPOCHS)]


def resolve_schedule(cfg: CfgNode, images: int) -> CfgNode:
    """A frozen copy whose MAX_ITER, STEPS and BASE_LR follow from our keys; ``images``: in one epoch.

    Raises InputError: as check_schedule, or steps that fall on the same iteration.
    """
    check_schedule(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    solver, epochs, batch = cfg.SOLVER, cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH
    if epochs:
        *steps, end = iterations(cfg, images)
        solver.STEPS, solver.MAX_ITER = tuple(steps), end
        least = f", SOLVER.MIN_ITER {solver.MIN_ITER}" if end == solver.MIN_ITER else ""
        line = f"{epochs} epochs of {images} images at batch {batch}{least}: {end} iterations, "
        line += f"steps {steps}"
        logging.getLogger(__name__).info(line)
        if len({*steps, end}) <= len(steps):
            raise InputError(f"SOLVER.STEP_EPOCHS: {solver.STEP_EPOCHS}: some fall together: {line}")
    if solver.LR_PER_IMAGE:
        solver.BASE_LR = solver.LR_PER_IMAGE * batch
        logging.getLogger(__name__).info("learning rate %g", solver.BASE_LR)
    cfg.freeze()
    return cfg
