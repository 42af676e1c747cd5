"""Schedules in epochs: SOLVER.EPOCHS, STEP_EPOCHS and LR_PER_IMAGE turned into detectron2's keys.

An epoch is a pass over the images that are really trained on: detectron2 drops those without an
annotation (117,266 of 118,287 remain in COCO train2017). Keys of ours that are 0 leave detectron2's
alone.
"""

from __future__ import annotations

import logging
import math

import torch

from crnas_d2.errors import InputError
from detectron2.config import CfgNode
from detectron2.solver.build import build_lr_scheduler, maybe_add_gradient_clipping


def check_schedule(cfg: CfgNode) -> None:
    """The keys of SOLVER are sound, ours together too.

    Raises:
        InputError: a negative value, steps without EPOCHS, out of order or not before its end, or
            values that torch's SGD or detectron2's schedules refuse.
    """
    epochs, steps = cfg.SOLVER.EPOCHS, tuple(cfg.SOLVER.STEP_EPOCHS)
    for key in ("EPOCHS", "LR_PER_IMAGE"):
        if cfg.SOLVER[key] < 0:
            raise InputError(
                f"SOLVER.{key}: {cfg.SOLVER[key]}: a positive number is needed, or 0 for "
                "detectron2's own keys"
            )
    if steps and not epochs:
        raise InputError(
            f"SOLVER.STEP_EPOCHS: {steps}: SOLVER.EPOCHS is 0; set it, or SOLVER.STEPS in iterations"
        )
    numbers = all(type(step) in (int, float) for step in steps)
    bounds = (0, *steps, epochs)
    if not numbers or (steps and any(a >= b for a, b in zip(bounds, bounds[1:]))):
        raise InputError(
            f"SOLVER.STEP_EPOCHS: {steps}: ascending numbers between 0 and SOLVER.EPOCHS {epochs} "
            "are needed"
        )
    # What detectron2 makes of the other keys of SOLVER shows on one weight.
    weight = torch.zeros(1, requires_grad=True)
    solver = cfg.SOLVER
    try:
        sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
            [weight], lr=solver.BASE_LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY
        )
        build_lr_scheduler(cfg, sgd)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(f"SOLVER: cannot be used: {' '.join(str(error).split())}") from error


def resolve_schedule(cfg: CfgNode, images: int) -> CfgNode:
    """A frozen copy whose MAX_ITER, STEPS and BASE_LR follow from our keys.

    Args:
        images: in one epoch, after empty ones are dropped.

    Raises:
        InputError: as check_schedule, or steps that the batches are too large to tell apart.
    """
    check_schedule(cfg)
    resolved = cfg.clone()
    resolved.defrost()
    solver = resolved.SOLVER
    batch = solver.IMS_PER_BATCH
    said = []
    if solver.EPOCHS:

        def iterations(epochs: float) -> int:
            return math.ceil(epochs * images / batch)

        solver.MAX_ITER = iterations(solver.EPOCHS)
        solver.STEPS = tuple(iterations(step) for step in solver.STEP_EPOCHS)
        bounds = (*solver.STEPS, solver.MAX_ITER)
        if any(a == b for a, b in zip(bounds, bounds[1:])):
            raise InputError(
                f"SOLVER.STEP_EPOCHS: {tuple(solver.STEP_EPOCHS)}: {images} images at batch {batch} "
                f"make {solver.MAX_ITER} iterations with steps at {solver.STEPS}; different ones "
                "before the end are needed"
            )
        steps = ", ".join(map(str, solver.STEPS)) or "none"
        said = [
            f"{solver.EPOCHS} epochs of {images} images at batch {batch}: {solver.MAX_ITER} iterations",
            f"steps at {steps}",
        ]
    if solver.LR_PER_IMAGE:
        solver.BASE_LR = solver.LR_PER_IMAGE * batch
    if solver.EPOCHS or solver.LR_PER_IMAGE:
        said.append(f"learning rate {solver.BASE_LR:g}")
        logging.getLogger(__name__).info(", ".join(said))
    resolved.freeze()
    return resolved
