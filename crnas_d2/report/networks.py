"""The networks that a report compares: where their arithmetic is, and how fast they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from crnas_d2.analysis.costs import backbone_costs, module_costs
from crnas_d2.analysis.latency import PHASE, Stopwatch
from crnas_d2.architecture import Architecture
from crnas_d2.pipeline.configs import network_config
from crnas_d2.report.folder import LATENCIES, RunFolder
from crnas_d2.search.journal import Journal
from detectron2.config import CfgNode


class Compared(NamedTuple):
    """A network of the report: a baseline, a stage search's winner, or what was found."""

    name: str
    architecture: Architecture
    cfg: CfgNode | None  # None where its base config is not there any more


def compared(run: RunFolder) -> list[Compared]:
    """Baselines first, then by budget what the searches found, or have as their best so far."""
    names: dict[str, str] = {f"baseline{i or ''}": text for i, text in enumerate(run.baselines)}
    if run.tested:
        names |= {row["network"]: row["architecture"] for row in run.tested}
    elif run.has_ended:
        for budget, verdict in run.results.get("verdicts", {}).items():
            names[f"found {budget}"] = verdict["found"]
    else:
        for phase in ("stage", "dilation"):
            if text := run.best(phase):
                names[f"best of the {phase} search so far"] = text
    base = next((path for path in run.bases if Path(path).is_file()), None)
    found = []
    for name, text in names.items():
        architecture = Architecture.parse(text)
        cfg = network_config(run.cfg, base, architecture) if run.cfg and base else None
        found.append(Compared(name, architecture, cfg))
    return found


def costs(network: Compared) -> Mapping[str, float]:
    """``macs`` of an image and ``params`` of the backbone; empty if the base config is not there."""
    return backbone_costs(network.cfg)(network.architecture) if network.cfg is not None else {}


def macs_by_stage(network: Compared) -> Mapping[str, float]:
    """Multiply-accumulates of an image, by stage, the stem first; empty as ``costs``."""
    counts = module_costs(network.cfg) if network.cfg is not None else {}
    return {name: counted["macs"] for name, counted in counts.items() if name and "." not in name}


def measure_latencies(run: RunFolder, networks: Sequence[Compared]) -> None:
    """Append to report/latency.jsonl what is not known yet: seconds an image, and the device."""
    journal = Journal(run.path / LATENCIES)
    for network in networks:
        if network.cfg is not None and journal.score(PHASE, network.architecture) is None:
            stopwatch = Stopwatch(network.cfg)
            seconds = stopwatch(network.architecture)
            journal.add(PHASE, network.architecture, seconds, device=stopwatch.device)
