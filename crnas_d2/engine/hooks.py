"""The path of an iteration."""

from __future__ import annotations

from collections.abc import Sequence

from crnas_d2.architecture import DIGITS, Architecture
from crnas_d2.modeling.backbone.supernet import StageSupernet, Supernet
from detectron2.engine import HookBase


class PathSampler(HookBase):
    """Sets the supernet's path before each step, drawn by (seed, iteration), from ``codes`` if any."""

    def __init__(self, supernet: Supernet, seed: int, codes: Sequence[Architecture] = ()) -> None:
        self._supernet, self._seed, self._codes = supernet, seed, codes

    def before_step(self) -> None:
        path = self._supernet.space.sample(self._seed, self.trainer.iter, self._codes)
        self._supernet.set_path(path)
        known = {f"path/stage {i}": depth for i, depth in enumerate(path.stage_code)}
        if not isinstance(self._supernet, StageSupernet):  # whose paths have rate 1
            rates = {f"path/blocks of rate {d + 1}": path.dilation_code.count(d) for d in DIGITS}
            known.update(rates)
        self.trainer.storage.put_scalars(smoothing_hint=False, **known)

    def after_train(self) -> None:
        self._supernet.set_path(None)
