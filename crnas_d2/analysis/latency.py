"""Latency: seconds that the whole detector takes for one image on the present device.

The detector that will be trained is measured with random weights, from an image in memory to instances;
its heads get the same random features from every network, as their time depends on what they find.

A stage space is too large to measure: undilated codes are measured where a fit (a constant and an
amount for a block of each stage) is near a budget; dilated ones always.
"""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
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
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
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
                if "cuda" in cfg.MODEL.DEVICE:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[WARM_UP:])


@dataclass(eq=False)
class LatencyCosts:
    """Costs with ``latency`` in seconds. All ranks call it alike; rank 0 measures.

    Raises InputError: the journal is of another device.
    """

    costs: Costs  # the other ones
    space: StageSpace
    limits: Sequence[Limit]  # of latency, of all budgets
    stopwatch: Stopwatch
    journal: Journal  # what was measured, as ``score``: a resumed search sees the same seconds

    def __post_init__(self) -> None:
        self._device = comm.all_gather(self.stopwatch.device)[0]
        for device in (record.get("device") for record in self.journal.records):
            if device != self._device:
                raise InputError(
                    f"MODEL.DEVICE: {self._device}: allowed is {device}, where latency was measured"
                )

    def __call__(self, architecture: Architecture) -> dict[str, float]:
        """The costs; ``latency`` is a key if it has been measured, or else found when looked up."""
        find = functools.partial(self._latency, architecture)
        found = defaultdict(find, self.costs(architecture))  # no other cost is missing
        if (known := self.journal.score(PHASE, architecture)) is not None:
            found["latency"] = known
        return found

    def _latency(self, architecture: Architecture) -> float:
        if any(architecture.dilation_code):
            return self._measured(architecture)
        constant, of_a_block = self._fit
        fitted = constant + sum(n * each for n, each in zip(architecture.stage_code, of_a_block))
        is_near = any(limit.allows(fitted, times=NEAR) for limit in self.limits)
        return self._measured(architecture) if is_near else fitted

    @functools.cached_property
    def _fit(self) -> tuple[float, list[float]]:
        """A constant, and seconds a block of each stage, from codes with one stage at its deepest."""
        smallest, of_a_block = [depths[0] for depths in self.space.depths], []
        constant = seconds = self._measured(self.space.with_code(smallest))
        for i, depths in enumerate(self.space.depths):
            deep = self.space.with_code([*smallest[:i], depths[-1], *smallest[i + 1 :]])
            of_a_block.append((self._measured(deep) - seconds) / max(1, depths[-1] - depths[0]))
            constant -= depths[0] * of_a_block[i]
        return constant, of_a_block

    def _measured(self, architecture: Architecture) -> float:
        if (known := self.journal.score(PHASE, architecture)) is not None:
            return known
        seconds = comm.all_gather(self.stopwatch(architecture) if comm.is_main_process() else 0.0)[0]
        logging.getLogger(__name__).info("%s: %.4g s an image", architecture, seconds)
        self.journal.add(PHASE, architecture, seconds, device=self._device)
        return seconds
