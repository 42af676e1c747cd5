"""The random draws inside a detector's losses, as a function of (seed, iteration, image).

detectron2's proposal network and box heads draw anchors and proposals for each image with the global
random state, so that the draws depend on all draws before them. Inside ``seeded_draws`` each image
has its own seed: a resumed run repeats them, and they do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from crnas_d2.seeding import derive_seed
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import roi_heads

# The modules that call subsample_labels once an image, in the order of the batch.
DRAWING = (rpn, roi_heads)


@contextmanager
def seeded_draws(seed: int, iteration: int, images: Sequence[Any]) -> Iterator[None]:
    """Seed every draw of a training step.

    Args:
        images: ids of the batch's images, in order; draws that are no image's (a dropout) follow
            the seed of (iteration, first image).
    """

    def per_image(module: Any, subsample: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def seeded(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            image = images[calls % len(images)]
            calls += 1
            _seed_torch(derive_seed(seed, module.__name__, iteration, image))
            return subsample(*args, **kwargs)

        return seeded

    _seed_torch(derive_seed(seed, "step", iteration, images[0]))
    originals = [module.subsample_labels for module in DRAWING]
    for module, original in zip(DRAWING, originals):
        module.subsample_labels = per_image(module, original)
    try:
        yield
    finally:
        for module, original in zip(DRAWING, originals):
            module.subsample_labels = original


def _seed_torch(seed: int) -> None:
    """As torch.manual_seed, which on a CPU alone takes a millisecond for devices that are not there."""
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
