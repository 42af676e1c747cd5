"""Schedules in epochs: SOLVER.EPOCHS, STEP_EPOCHS and LR_PER_IMAGE converted to detectron2's keys.

An epoch is one pass over the images that are trained on, without those that detectron2 drops since they
have no annotation (117,266 of 118,287 remain in COCO train2017). Keys of ours that are 0 do not count.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.solver.build import build_lr_scheduler, maybe_add_gradient_clipping


def check_schedule(cfg: CfgNode) -> None:
    """The keys of SOLVER are sound, by themselves and together.

    Raises:
        InputError: a negative value, steps without EPOCHS, out of order or not before its end, or
            values that torch's SGD or detectron2's schedules refuse.
    """
    solver = cfg.SOLVER
    epochs, steps = solver.EPOCHS, tuple(solver.STEP_EPOCHS)
    for key in ("EPOCHS", "LR_PER_IMAGE"):
        if solver[key] < 0:
            raise InputError(f"SOLVER.{key}: {solver[key]}: at least 0 is needed; 0: detectron2's keys")
    if steps and not epochs:
        raise InputError(f"SOLVER.STEP_EPOCHS: {steps}: SOLVER.EPOCHS is 0; set it, or SOLVER.STEPS")
    numbers = all(type(step) in (int, float) for step in steps)
    bounds = (0, *steps, epochs)
    if not numbers or (steps and any(a >= b for a, b in zip(bounds, bounds[1:]))):
        raise InputError(f"SOLVER.STEP_EPOCHS: {steps}: ascending numbers in (0, {epochs}) are needed")
    # What detectron2 makes of the other keys of SOLVER shows on one weight.
    weight = torch.zeros(1, requires_grad=True)
    try:
        sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
            [weight], lr=solver.BASE_LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY
        )
        build_lr_scheduler(cfg, sgd)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(f"SOLVER: cannot be used: {' '.join(str(error).split())}") from error


def learning_rate(solver: Mapping[str, Any]) -> float:
    """The one that SOLVER's keys amount to."""
    return solver["LR_PER_IMAGE"] * solver["IMS_PER_BATCH"] or solver["BASE_LR"]


def resolve_schedule(cfg: CfgNode, images: int) -> CfgNode:
    """A frozen copy whose MAX_ITER, STEPS and BASE_LR follow from our keys.

    Args:
        images: in one epoch, without those that are dropped.

    Raises:
        InputError: as check_schedule, or steps that fall on the same iteration.
    """
    check_schedule(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    epochs, batch = solver.EPOCHS, solver.IMS_PER_BATCH
    said = []
    if epochs:
        *steps, end = (math.ceil(e * images / batch) for e in (*solver.STEP_EPOCHS, epochs))
        solver.STEPS, solver.MAX_ITER = tuple(steps), end
        at = ", ".join(map(str, steps)) or "none"
        said = [f"{epochs} epochs of {images} images at batch {batch}: {end} iterations, steps at {at}"]
        if len({*steps, end}) <= len(steps):
            raise InputError(
                f"SOLVER.STEP_EPOCHS: {solver.STEP_EPOCHS}: {images} images at batch {batch} make "
                f"{end} iterations, with steps at {solver.STEPS}: distinct ones are needed"
            )
    solver.BASE_LR = learning_rate(solver)
    if epochs or solver.LR_PER_IMAGE:
        said += [f"learning rate {solver.BASE_LR:g}"]
        logging.getLogger(__name__).info(", ".join(said))
    cfg.freeze()
    return cfg
