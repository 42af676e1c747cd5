"""The path of an iteration, and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from crnas_d2.architecture import Architecture
from crnas_d2.modeling.backbone.supernet import Supernet
from detectron2.engine import HookBase
from detectron2.utils import comm


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """A tqdm bar, on rank 0 only; a line every ten seconds where standard error is a file."""
    disable, interval = not comm.is_main_process(), 0.2 if sys.stderr.isatty() else 10
    return tqdm(*args, disable=disable, mininterval=interval, dynamic_ncols=True, **kwargs)


class PathSampler(HookBase):
    """Sets the supernet's path before each step, drawn by (seed, iteration), from ``codes`` if any."""

    def __init__(self, supernet: Supernet, seed: int, codes: Sequence[Architecture] = ()) -> None:
        self._supernet, self._seed, self._codes = supernet, seed, codes

    def before_step(self) -> None:
        self._supernet.set_path(self._supernet.space.sample(self._seed, self.trainer.iter, self._codes))

    def after_train(self) -> None:
        self._supernet.set_path(None)
