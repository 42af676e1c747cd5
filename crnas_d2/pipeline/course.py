"""What a search consists of: its parts in their order, how much there is of each, and what is done.

Most counts are the most that a search can come to: a finalist may have been trained before, a budget of
latency lets fewer candidates in. Pre-training (SEARCH.PRETRAIN) and the phase "test" are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.data.coco_json import Record
from crnas_d2.engine import progress
from crnas_d2.engine.progress import Part
from crnas_d2.engine.schedule import iterations
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.pipeline.configs import network_config, supernet_config
from crnas_d2.pipeline.plan import TRAININGS, Plan
from crnas_d2.pipeline.trainings import ARCHTRAIN, LONGER, WHOLE, scale_schedule
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Candidate, Journal
from crnas_d2.space import DilationSpace
from detectron2.config import CfgNode

BACKWARD = 3  # a training step's arithmetic for that of its forward pass
SHARED = 0.6  # of a candidate's arithmetic is left where candidates share blocks (docs/BENCHMARKS.md)


class Work(NamedTuple):
    """One part of a search, in its order; all counts are the most that it can come to."""

    name: str
    kind: str  # of the supernet that is trained or searched; empty: networks alone
    trainings: int
    iterations: int  # of each
    candidates: int
    images: int  # that each candidate sees, those of recalibration included
    done: int  # iterations or candidates
    cost: float  # of an iteration or a candidate, roughly, in multiply-accumulates of the backbone

    @property
    def units(self) -> int:
        """Iterations or candidates."""
        return self.trainings * self.iterations or self.candidates


def course(plan: Plan) -> list[Work]:
    """The parts of a search that ask for time, in their order."""
    cfg, parts, folder = plan.cfg, plan.parts, Path(plan.cfg.OUTPUT_DIR)
    assert parts is not None
    options, phases = cfg.SEARCH, cfg.SEARCH.PHASES
    archtrain, archval = trained_on(cfg, parts["archtrain"]), len(parts["archval"]["images"])
    scored = archval + len(parts["recalibration"]["images"])
    networks = [network_config(cfg, base) for base in dict.fromkeys(plan.bases.values())]
    baselines = {str(architecture_of(network)) for network in networks}
    macs = backbone_costs(networks[0])(architecture_of(networks[0]))["macs"]
    budgets = len(plan.bases)
    finalists, seeds = options.FINALISTS.NUM, options.FINALISTS.SEEDS
    searches = [phase for phase in ("stage", "dilation") if phase in phases]
    records = Journal(folder / TRAININGS / "journal.jsonl", writes=False).records

    def training(name: str, count: int, run: CfgNode, images: int, done: int | None) -> Work:
        """``done``: trainings; None: the iterations of the last checkpoint."""
        end, kind = iterations(run, images)[-1], run.MODEL.CRNAS.SUPERNET
        reached = trained(run, end) if done is None else done * end
        return Work(name, kind, count, end, 0, 0, reached, BACKWARD * macs * run.SOLVER.IMS_PER_BATCH)

    def alone(name: str, count: int, factor: float, done: Iterable[Any]) -> Work:
        run = networks[0].clone()
        scale_schedule(run.SOLVER, factor)
        return training(name, count, run, archtrain, len(list(done)))

    found, factor = [], options.FINALISTS.SCHEDULE
    ended = [r for r in records if r["phase"].startswith(ARCHTRAIN)]
    noise = []
    if finalists and searches:
        done = (r for r in ended if r["architecture"] in baselines)
        noise.append(alone("noise", len(networks) * seeds, factor, done))
        if options.FINALISTS.TRY_LONGER:
            done = (r for r in records if r["phase"].startswith(LONGER))
            noise.append(alone("longer schedule", len(networks), 1.5 * factor, done))
    if not options.INHERIT:
        found += noise
    for phase in searches:
        kind = "joint" if options.JOINT else phase
        if not options.JOINT or phase == searches[0]:
            count = 1 if options.JOINT or phase == "stage" else budgets
            supernet = supernet_config(cfg, kind)
            found.append(training(f"{kind} supernet", count, supernet, archtrain, None))
        files = [*folder.glob(f"{phase}*/journal.jsonl"), *folder.glob(f"{phase}*/race.jsonl")]
        known = sum(len(Journal(path, writes=False).records) for path in files)
        count, cost = candidates(plan, phase), SHARED * macs * scored
        found.append(Work(f"{phase} search", kind, 0, 0, count, scored, known, cost))
        if options.INHERIT and phase == searches[0]:
            found += noise
        if noise:
            new = [r for r in ended if r["architecture"] not in baselines]
            done = (r for r in new if _is_dilated(r) == (phase == "dilation"))
            count = budgets * entrants(finalists, seeds)
            found.append(alone(f"{phase} finalists", count, factor, done))
    if "retrain" in phases:
        images = archtrain + trained_on(cfg, parts["archval"])
        others = 2 if "dilation" in searches else 1  # the stage winner or the named code, and found
        count = options.RETRAIN.SEEDS * (len(networks) + budgets * others)
        known = sum(record["phase"].startswith(f"{WHOLE} ") for record in records)
        found.append(training("retraining", count, networks[0], images, known))
    return found


def _is_dilated(record: Mapping[str, Any]) -> bool:
    return any(Architecture.parse(record["architecture"]).dilation_code)


def begin_progress(plan: Plan, works: Iterable[Work]) -> None:
    """Let the bars of this process know the course, unless its costs are unlike those counted here."""
    if not (plan.pretrain or plan.cfg.SEARCH.RACE.CONFIDENCE):
        progress.begin({work.name: Part(work.units, work.done, work.cost) for work in works})


def candidates(plan: Plan, phase: str) -> int:
    """How many a search scores, for all budgets; greedily, those of the baseline's stage code."""
    cfg, count = plan.cfg, 0
    is_named = "stage" not in cfg.SEARCH.PHASES
    for budget, base in plan.bases.items():
        method = cfg.SEARCH[phase.upper()].METHOD
        network = network_config(cfg, base)
        if method == "exhaustive":
            known = budget.without("latency")
            count += len(stage_space_of(cfg).eligible(known, backbone_costs(network)))
        elif method == "greedy":
            code = architecture_of(cfg if is_named else network)
            count += greedy_candidates(DilationSpace(code.family, code.stage_code), cfg)
        else:
            count += cfg.SEARCH.EVALUATIONS
    return count


def greedy_candidates(space: DilationSpace, cfg: CfgNode) -> int:
    """Counted by a search in which the first ones of each step are the best."""
    seen: set[Architecture] = set()

    def compare(group: Sequence[Architecture], keep: int) -> list[Candidate]:
        seen.update(group)
        return [Candidate(architecture, 0.0, {}) for architecture in group[:keep]]

    greedy_search(space, compare, cfg.SEARCH.DILATION.TOP_K)
    return len(seen) + cfg.SEARCH.DILATION.EVIDENCE  # and rate 1 everywhere


def entrants(finalists: int, seeds: int) -> int:
    """Trainings of a search's finalists, without the baseline's."""
    count = 0
    for _ in range(seeds):
        count, finalists = count + finalists, (finalists + 1) // 2
    return count


def trained_on(cfg: CfgNode, part: Record) -> int:
    """Images of a part that detectron2 does not leave out."""
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return len(part["images"])
    return len({a["image_id"] for a in part["annotations"] if not a["iscrowd"]})


def trained(run: CfgNode, iterations: int) -> int:
    """Iterations of the last checkpoints of a training, or of those of several budgets."""
    count, folder = 0, Path(run.OUTPUT_DIR)
    for tag in folder.parent.glob(f"{folder.name}*/last_checkpoint"):
        name = tag.read_text("utf-8", errors="replace")
        number = re.search(r"model_(\d+)\.pth", name)
        count += int(number[1]) + 1 if number else iterations if "model_final" in name else 0
    return count
