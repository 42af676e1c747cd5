"""The networks that a report compares: their arithmetic, their latency and their weights."""

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

TURNS = 3  # in which latencies are measured


class Compared(NamedTuple):
    """A network of the report: a baseline, a stage search's winner, or what was found."""

    name: str  # as in the tables; found_N16 and so on where there are several budgets
    architecture: Architecture
    cfg: CfgNode | None  # None where its base config is not there any more
    weights: Path | None  # made on archtrain

    @property
    def role(self) -> str:
        """baseline, stage or found; of a search that has not ended, best."""
        return self.name.rstrip("0123456789").partition("_")[0].partition(" ")[0]


def compared(run: RunFolder) -> list[Compared]:
    """Baselines first, then by budget what the searches found, or have as their best so far."""
    names: dict[str, str] = {f"baseline{i or ''}": text for i, text in enumerate(run.baselines)}
    if run.tested:
        names |= {row["network"]: row["architecture"] for row in run.tested}
    elif run.has_ended:
        verdicts = run.results.get("verdicts", {})
        for budget, verdict in verdicts.items():
            names[f"found_{budget}" if len(verdicts) > 1 else "found"] = verdict["found"]
    else:
        for phase in ("stage", "dilation"):
            if text := run.best(phase):
                names[f"best of the {phase} search so far"] = text
    found = []
    for name, text in names.items():
        architecture = Architecture.parse(text)
        cfg = network_config(run.cfg, run.base, architecture) if run.cfg and run.is_whole else None
        found.append(Compared(name, architecture, cfg, _weights(run, name, architecture)))
    return found


def _weights(run: RunFolder, name: str, architecture: Architecture) -> Path | None:
    """Of a training alone, or of the path in the supernet that the search has left."""
    folder = str(architecture).replace("/", "_")
    paths = [*sorted(run.path.glob(f"trainings/archtrain_*/{folder}/model_final.pth"))]
    if name.startswith("baseline"):
        paths += sorted(run.path.glob("baseline*.pth"))  # of any budget: all have its base
    else:
        paths.append(run.path / f"{name}.pth")
    return next((path for path in paths if path.is_file()), None)


def costs(network: Compared) -> Mapping[str, float]:
    """``macs`` of an image and ``params`` of the backbone; empty if the base config is not there."""
    return backbone_costs(network.cfg)(network.architecture) if network.cfg is not None else {}


def macs_by_stage(network: Compared) -> Mapping[str, float]:
    """Multiply-accumulates of an image, by stage, the stem first; empty as ``costs``."""
    counts = module_costs(network.cfg) if network.cfg is not None else {}
    return {name: counted["macs"] for name, counted in counts.items() if name and "." not in name}


def measure_latencies(run: RunFolder, networks: Sequence[Compared]) -> None:
    """Write report/latency.jsonl: seconds an image of every network, and the device.

    All are measured anew, in turns, and the least counts: what else the machine does, it does to all.
    """
    stopwatches = {n.architecture: Stopwatch(n.cfg) for n in networks if n.cfg is not None}
    seconds: dict[Architecture, float] = {}
    for _ in range(TURNS):
        for architecture, stopwatch in stopwatches.items():
            measured = stopwatch(architecture)
            seconds[architecture] = min(measured, seconds.get(architecture, measured))
    (run.path / LATENCIES).unlink(missing_ok=True)
    journal = Journal(run.path / LATENCIES)
    for architecture, least in seconds.items():
        journal.add(PHASE, architecture, least, device=stopwatches[architecture].device)
