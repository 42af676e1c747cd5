"""search_net.py's course: split, stage supernet, stage search, dilation supernet, dilation search,
found.yaml, and retraining if asked. Every step resumes where it was left.

    OUTPUT_DIR/splits/archtrain.json archval.json
    OUTPUT_DIR/stage/pretrain/           checkpoints of the classifier, with SEARCH.PRETRAIN
    OUTPUT_DIR/stage/                    checkpoints, journal.jsonl; of a race also race.jsonl, matches/
    OUTPUT_DIR/latency.jsonl             what was measured for budgets of latency
    OUTPUT_DIR/dilation/                 as stage/; dilation_N16/ where there are several budgets
    OUTPUT_DIR/found.yaml                found_N16.yaml where there are several budgets
    OUTPUT_DIR/retrain/found_CODES/      checkpoints, results.json; also of the baseline
    OUTPUT_DIR/retrain/table.csv         what retraining gave
    OUTPUT_DIR/report.html               all of this to look at
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.analysis.latency import LatencyCosts, Stopwatch
from crnas_d2.analysis.report import write_report
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.data.datasets import register_coco
from crnas_d2.data.splits import write_split
from crnas_d2.engine.setup import write_config
from crnas_d2.engine.trainer import SupernetTrainer, seed_of
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.pipeline.checks import ALTERNATIVES, LATENCIES, Plan, check_met
from crnas_d2.pipeline.found_config import found_config, write_found
from crnas_d2.pipeline.pretraining import pretrained
from crnas_d2.pipeline.retraining import retrain
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.pipeline.search_hook import Search, SearchHook, run_searches
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Candidate, Journal
from crnas_d2.search.race import Compare
from crnas_d2.search.stage import stage_search
from crnas_d2.space import DilationSpace, StageSpace, block_cost
from detectron2.config import CfgNode
from detectron2.utils import comm


def run_search(plan: Plan, resume: bool) -> list[str]:
    """Take the steps of SEARCH.PHASES.

    Returns:
        paths of what was written, for the last line.
    """
    cfg, folder = plan.cfg, plan.folder
    parts = _write_split(plan)
    written = []
    named = architecture_of(cfg)
    winners = {Budget.parse(block_cost(named)): named}
    if "stage" in cfg.SEARCH.PHASES:
        results = _stage_step(plan, parts, resume)
        winners = {budget: found[0].architecture for budget, found in results.items()}
    for budget, architecture in winners.items():
        suffix = f"_{budget.name}" if len(winners) > 1 else ""
        if "dilation" in cfg.SEARCH.PHASES:
            best = _dilation_step(plan, parts, resume, budget, architecture, f"dilation{suffix}")
            architecture = best.architecture
        path = folder / f"found{suffix}.yaml"
        if comm.is_main_process():
            comment = f"{architecture}, found by search_net.py for a budget of {budget}"
            write_found(path, found_config(cfg, plan.base, architecture), comment)
        comm.synchronize()
        written.append(str(path))
    if "retrain" in cfg.SEARCH.PHASES:
        written += retrain(cfg, plan.base, written, folder / "retrain", plan.pretrain)
    if comm.is_main_process():
        written.append(str(write_report(folder)))
    return written


def _write_split(plan: Plan) -> Split:
    folder = plan.folder / "splits"
    if comm.is_main_process():
        write_split(plan.parts, folder)
    comm.synchronize()
    names = []
    for part in ("archtrain", "archval"):
        path = (folder / f"{part}.json").resolve()
        names.append(f"{part} in {path.parent}")
        register_coco(names[-1], str(path), plan.images)
    logging.getLogger(__name__).info(
        "archtrain: %d images, archval: %d images", *(len(p["images"]) for p in plan.parts)
    )
    return Split(names[0], names[1], plan.parts[1])


def _step_config(
    plan: Plan, parts: Split, supernet: str, folder: str, architecture: Architecture | None = None
) -> CfgNode:
    cfg = plan.cfg.clone()
    cfg.defrost()
    cfg.MODEL.CRNAS.SUPERNET = supernet
    if supernet == "dilation" and "stage" in cfg.SEARCH.PHASES:
        if cfg.MODEL.WEIGHTS:
            logging.getLogger(__name__).warning(
                "MODEL.WEIGHTS %s were for the stage supernet; the dilation supernet starts from "
                "random weights. To give it some, too, search in two runs (docs/PAPER.md)",
                cfg.MODEL.WEIGHTS,
            )
        cfg.MODEL.WEIGHTS = ""
    if architecture is not None:
        cfg.MODEL.CRNAS.STAGE_CODE = list(architecture.stage_code)
        cfg.MODEL.CRNAS.DILATION_CODE = []
    cfg.DATASETS.TRAIN = (parts.archtrain,)
    cfg.DATASETS.TEST = ()
    cfg.OUTPUT_DIR = str(plan.folder / folder)
    cfg.freeze()
    write_config(cfg)
    return cfg


def _alternative(cfg: CfgNode, name: str) -> Search | None:
    """The search of that name, if it is none of the paper's."""
    if name not in ALTERNATIVES:
        return None
    return functools.partial(ALTERNATIVES[name], evaluations=cfg.SEARCH.EVALUATIONS, seed=seed_of(cfg))


def _search_hook(cfg: CfgNode, parts: Split, **options: Any) -> SearchHook:
    """run_searches at the end of a phase's training; the options are what the phases differ in."""
    return SearchHook(
        functools.partial(
            run_searches,
            build_scorer=functools.partial(build_scorer, cfg, parts),
            folder=Path(cfg.OUTPUT_DIR),
            confidence=cfg.SEARCH.RACE.CONFIDENCE,
            **options,
        )
    )


def _stage_costs(plan: Plan, space: StageSpace) -> Costs:
    """Of the network that will be trained; its latency, too, where a budget limits that."""
    costs = backbone_costs(plan.network)
    limits = [limit for budget in plan.budgets for limit in budget.limits if limit.cost == "latency"]
    if not limits:
        return costs
    stopwatch = Stopwatch(plan.network)
    journal = Journal(plan.folder / LATENCIES, writes=comm.is_main_process())
    comm.synchronize()  # everybody has read it before rank 0 writes to it
    return LatencyCosts(
        costs,
        space=space,
        limits=limits,
        measure=stopwatch,
        device=stopwatch.device,
        journal=journal,
    )


def _stage_step(plan: Plan, parts: Split, resume: bool) -> dict[Budget, list[Candidate]]:
    cfg = _step_config(plan, parts, "stage", "stage")
    space = stage_space_of(cfg)
    costs = _stage_costs(plan, space)
    check_met(cfg, plan.budgets, costs)  # what takes measuring, too: before weeks of training
    cfg = pretrained(cfg, plan.pretrain, resume)
    trainer = SupernetTrainer(cfg)
    search = _search_hook(
        cfg,
        parts,
        space=space,
        budgets=plan.budgets,
        search=_alternative(cfg, cfg.SEARCH.STAGE.METHOD) or stage_search,
        costs=costs,
    )
    trainer.register_hooks([search])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return search.results


def _dilation_step(
    plan: Plan,
    parts: Split,
    resume: bool,
    budget: Budget,
    architecture: Architecture,
    folder: str,
) -> Candidate:
    cfg = _step_config(plan, parts, "dilation", folder, architecture)
    cfg = pretrained(cfg, plan.pretrain, resume)
    trainer = SupernetTrainer(cfg)

    def greedy(space: DilationSpace, _: Budget, compare: Compare, __: Costs) -> list[Candidate]:
        return greedy_search(space, compare, cfg.SEARCH.DILATION.TOP_K)  # every dilation code meets the budget

    search = _search_hook(
        cfg,
        parts,
        space=DilationSpace(architecture.family, architecture.stage_code),
        budgets=[budget],
        search=_alternative(cfg, cfg.SEARCH.DILATION.METHOD) or greedy,
        costs=backbone_costs(plan.network),
    )
    trainer.register_hooks([search])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return search.results[budget][0]
