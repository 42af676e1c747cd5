"""Latency of a stage code: seconds that the whole detector takes for one image on the present device.

What is measured is the detector that will be trained, with random weights: from an image in memory, of
``input_size`` pixels, to its instances. How long the heads take depends on how many proposals and
detections there are, and so on the weights. Hence the heads get the same random features whichever
network is measured: of the seconds, the backbone and its neck are each code's own, and the rest is the
same for all. From random features a proposal network proposes as many boxes as it may, as a trained one
does; of detections there are more or fewer than later, with 80 classes none: then no mask head runs.

A space is too large to measure each of its codes. So latency is fitted as a constant and an amount for
each block of each stage, and only codes for which that comes near a budget are measured.
"""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from crnas_d2.analysis.costs import input_size
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Costs, Limit
from crnas_d2.errors import InputError
from crnas_d2.search.journal import Journal
from crnas_d2.space import StageSpace
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.utils import comm

WARM_UP, REPEATS = 3, 9  # forward passes; the middle one of the repeats counts
PHASE = "latency"  # of the records in the journal
NEAR = 2  # measured is what is predicted within this many times the tolerance of a budget


class Stopwatch:
    """Measures architectures; the detector is built at the first one.

    Args:
        cfg: of the detector; its stage and dilation codes do not matter.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg.clone()
        self._cfg.defrost()
        self._features: dict[str, torch.Tensor] = {}

    @property
    def device(self) -> str:
        """The device's name."""
        device = torch.device(self._cfg.MODEL.DEVICE)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @functools.cached_property
    def _detector(self) -> nn.Module:
        return build_model(self._cfg).eval()

    def _same_for_all(self, module: nn.Module, inputs: Any, output: dict[str, torch.Tensor]) -> Any:
        """The features that the heads get in place of the backbone's."""
        if not self._features:
            for name, feature in output.items():
                self._features[name] = torch.randn(feature.shape).to(feature.device)
        return self._features

    @torch.no_grad()
    def __call__(self, architecture: Architecture) -> float:
        """Seconds an image."""
        with torch.random.fork_rng(devices=[]):  # nobody else's draws are touched
            torch.default_generator.manual_seed(0)
            return self._measure(architecture)

    def _measure(self, architecture: Architecture) -> float:
        cfg = self._cfg
        cfg.MODEL.CRNAS.STAGE_CODE = list(architecture.stage_code)
        cfg.MODEL.CRNAS.DILATION_CODE = list(architecture.dilation_code)
        backbone = build_backbone(cfg).to(cfg.MODEL.DEVICE).eval()
        backbone.register_forward_hook(self._same_for_all)
        self._detector.backbone = backbone
        height, width = input_size(cfg)
        image = torch.zeros(len(cfg.MODEL.PIXEL_MEAN), height, width, dtype=torch.uint8)
        inputs = [{"image": image, "height": height, "width": width}]
        seconds = [self._pass(inputs) for _ in range(WARM_UP + REPEATS)]
        return statistics.median(seconds[WARM_UP:])

    def _pass(self, inputs: list[dict[str, Any]]) -> float:
        start = time.perf_counter()
        self._detector(inputs)
        if torch.device(self._cfg.MODEL.DEVICE).type == "cuda":
            torch.cuda.synchronize(self._cfg.MODEL.DEVICE)
        return time.perf_counter() - start


class _WithLatency(dict[str, float]):
    """Costs whose latency is found out when somebody asks for it."""

    def __init__(self, costs: Any, latency: Callable[[], float]) -> None:
        super().__init__(costs)
        self._latency = latency

    def __missing__(self, name: str) -> float:
        if name != "latency":
            raise KeyError(name)
        return self._latency()


class LatencyCosts:
    """Costs of undilated architectures with their ``latency`` in seconds: see the module.

    It is measured where the prediction comes near one of the limits, and predicted elsewhere. All
    processes call this alike; rank 0 measures.

    Args:
        costs: the other costs.
        space: of the architectures.
        limits: of latency, of all budgets.
        measure: seconds of an architecture.
        device: the name of the device that it measures on.
        journal: remembers what was measured, as ``score``, so that a search that is resumed sees the
            same seconds.

    Raises:
        InputError: the journal is of another device.
    """

    def __init__(
        self,
        costs: Costs,
        *,
        space: StageSpace,
        limits: Sequence[Limit],
        measure: Callable[[Architecture], float],
        device: str,
        journal: Journal,
    ) -> None:
        self._costs = costs
        self._space = space
        self._limits = limits
        self._measure = measure
        self._device = comm.all_gather(device)[0]
        self._journal = journal
        others = {str(record.get("device")) for record in journal.records} - {self._device}
        if others:
            raise InputError(
                f"MODEL.DEVICE: {self._device}: latency was measured on {', '.join(others)} before; "
                "--resume goes on with the same device only"
            )

    def __call__(self, architecture: Architecture) -> _WithLatency:
        found = _WithLatency(self._costs(architecture), lambda: self._latency(architecture))
        known = self._journal.score(PHASE, str(architecture))
        if known is not None:
            found["latency"] = known
        return found

    def _latency(self, architecture: Architecture) -> float:
        smallest, of_smallest, of_a_block = self._fit
        predicted = of_smallest + sum(
            (n - low) * seconds
            for n, low, seconds in zip(architecture.stage_code, smallest, of_a_block)
        )
        if any(limit.allows(predicted, times=NEAR) for limit in self._limits):
            return self._measured(architecture)
        return predicted

    @functools.cached_property
    def _fit(self) -> tuple[list[int], float, list[float]]:
        """The smallest code, its seconds, and those of a block of each stage.

        From the smallest code, and those with one stage as deep as it may be.
        """
        smallest = [min(depths) for depths in self._space.depths]
        of_smallest = self._measured(self._space.with_code(smallest))
        of_a_block = []
        for i, depths in enumerate(self._space.depths):
            code, blocks = list(smallest), max(depths) - smallest[i]
            code[i] += blocks
            longer = self._measured(self._space.with_code(code)) - of_smallest
            of_a_block.append(longer / blocks if blocks else 0.0)
        return smallest, of_smallest, of_a_block

    def _measured(self, architecture: Architecture) -> float:
        known = self._journal.score(PHASE, str(architecture))
        if known is not None:
            return known
        seconds = self._measure(architecture) if comm.is_main_process() else 0.0
        seconds = comm.all_gather(seconds)[0]
        logging.getLogger(__name__).info("%s: %.4g s an image", architecture, seconds)
        record = {"phase": PHASE, "architecture": str(architecture), "score": seconds}
        self._journal.add({**record, "device": self._device})
        return seconds
