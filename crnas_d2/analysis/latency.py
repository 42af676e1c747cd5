"""Latency: seconds that the whole detector takes for one image on the present device.

The detector that will be trained is measured with random weights, from an image in memory to instances.
The heads get the same random features whichever network is measured, since how long they take depends
on what they find: as many proposals as a trained network, but more or fewer detections.

A stage space is too large to measure. Latency is fitted as a constant and an amount for each block of
each stage; undilated codes are measured where the fit is near a budget, dilated ones always.
"""

from __future__ import annotations

import functools
import logging
import operator
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from crnas_d2.analysis.costs import input_size
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs, Limit
from crnas_d2.errors import InputError
from crnas_d2.search.journal import Journal
from crnas_d2.space import StageSpace
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.utils import comm

WARM_UP, REPEATS = 3, 9  # forward passes; the median of the repeats counts
PHASE = "latency"  # of the records in the journal
NEAR = 2  # a code is measured if its fit is within this many times the tolerance of a budget


class Stopwatch:
    """Measures whole architectures in the detector of ``cfg``, on the device named ``device``."""

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg.clone()
        self._cfg.defrost()
        device = torch.device(cfg.MODEL.DEVICE)
        self._on_gpu = device.type == "cuda"
        self.device = torch.cuda.get_device_name(device) if self._on_gpu else device.type
        self._features: dict[str, torch.Tensor] = {}

    @functools.cached_property
    def _detector(self) -> torch.nn.Module:
        return build_model(self._cfg).eval()

    def _same_features(self, module: Any, inputs: Any, output: dict[str, torch.Tensor]) -> Any:
        """What the heads get instead of the backbone's output."""
        if not self._features:
            self._features = {n: torch.randn(f.shape).to(f.device) for n, f in output.items()}
        return self._features

    @torch.no_grad()
    def __call__(self, architecture: Architecture) -> float:
        """Seconds an image; the global random state stays as it is."""
        cfg, seconds = self._cfg, []
        cfg.MODEL.CRNAS.STAGE_CODE = list(architecture.stage_code)
        cfg.MODEL.CRNAS.DILATION_CODE = list(architecture.dilation_code)
        image = torch.zeros(len(cfg.MODEL.PIXEL_MEAN), *input_size(cfg), dtype=torch.uint8)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self._detector.backbone = build_backbone(cfg).to(cfg.MODEL.DEVICE).eval()
            self._detector.backbone.register_forward_hook(self._same_features)
            for _ in range(WARM_UP + REPEATS):
                start = time.perf_counter()
                self._detector([{"image": image}])
                if self._on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[WARM_UP:])


class _WithLatency(dict[str, float]):
    """Costs whose latency is found out when it is looked up."""

    find: Callable[[], float]

    def __missing__(self, name: str) -> float:
        return {"latency": self.find}[name]()


@dataclass(eq=False)
class LatencyCosts:
    """Costs with ``latency`` in seconds: see the module. All ranks call it alike; rank 0 measures.

    Raises:
        InputError: the journal is of another device.
    """

    costs: Costs  # the other ones
    space: StageSpace
    limits: Sequence[Limit]  # of latency, of all budgets
    measure: Callable[[Architecture], float]  # seconds
    device: str  # that it measures on; rank 0's counts
    journal: Journal  # what was measured, as ``score``: a resumed search sees the same seconds

    def __post_init__(self) -> None:
        self.device = comm.all_gather(self.device)[0]
        for record in self.journal.records:
            if record.get("device") != self.device:
                raise InputError(
                    f"MODEL.DEVICE: {self.device}: latency was measured on {record.get('device')} "
                    "before; --resume continues on the same device only"
                )

    def __call__(self, architecture: Architecture) -> dict[str, float]:
        """The costs; ``latency`` can be looked up, and is among the keys once it is measured."""
        found = _WithLatency(self.costs(architecture))
        found.find = functools.partial(self._latency, architecture)
        if (known := self.journal.score(PHASE, str(architecture))) is not None:
            found["latency"] = known
        return found

    def _latency(self, architecture: Architecture) -> float:
        if not any(architecture.dilation_code):
            constant, of_a_block = self._fit
            fitted = constant + sum(map(operator.mul, architecture.stage_code, of_a_block))
            if not any(limit.allows(fitted, times=NEAR) for limit in self.limits):
                return fitted
        return self._measured(architecture)

    @functools.cached_property
    def _fit(self) -> tuple[float, list[float]]:
        """From the smallest code, and those with one stage as deep as it may be."""
        smallest, of_a_block = [min(depths) for depths in self.space.depths], []
        least = self._measured(self.space.with_code(smallest))
        for i, depths in enumerate(self.space.depths):
            deep = [*smallest[:i], max(depths), *smallest[i + 1 :]]
            longer = self._measured(self.space.with_code(deep)) - least
            of_a_block.append(longer / max(1, max(depths) - smallest[i]))
        return least - sum(map(operator.mul, smallest, of_a_block)), of_a_block

    def _measured(self, architecture: Architecture) -> float:
        if (known := self.journal.score(PHASE, str(architecture))) is not None:
            return known
        seconds = comm.all_gather(self.measure(architecture) if comm.is_main_process() else 0.0)[0]
        logging.getLogger(__name__).info("%s: %.4g s an image", architecture, seconds)
        record = {"phase": PHASE, "architecture": str(architecture), "score": seconds}
        self.journal.add({**record, "device": self.device})
        return seconds
