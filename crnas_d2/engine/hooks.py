"""The path of an iteration."""

from __future__ import annotations

from collections.abc import Sequence

from crnas_d2.architecture import Architecture
from crnas_d2.modeling.backbone.supernet import Supernet
from detectron2.engine import HookBase


class PathSampler(HookBase):
    """Sets the supernet's path before each step, drawn by (seed, iteration), from ``codes`` if any."""

    def __init__(self, supernet: Supernet, seed: int, codes: Sequence[Architecture] = ()) -> None:
        self._supernet, self._seed, self._codes = supernet, seed, codes

    def before_step(self) -> None:
        path = self._supernet.space.sample(self._seed, self.trainer.iter, self._codes)
        self._supernet.set_path(path)
        depths = {f"path/stage {i}": depth for i, depth in enumerate(path.stage_code)}
        self.trainer.storage.put_scalars(smoothing_hint=False, **depths)

    def after_train(self) -> None:
        self._supernet.set_path(None)
