"""search_net.py's phases: stage supernet and search, dilation supernet and search, found.yaml, and
retraining if asked. Each resumes where it was interrupted.

    OUTPUT_DIR/splits/                   archtrain.json, archval.json, recalibration.json
    OUTPUT_DIR/stage/pretrain/           checkpoints of the classifier, with SEARCH.PRETRAIN
    OUTPUT_DIR/stage/                    checkpoints, journal.jsonl, matches/; of a race also race.jsonl
    OUTPUT_DIR/joint/                    checkpoints of the one supernet, with SEARCH.JOINT
    OUTPUT_DIR/latency.jsonl             what was measured for budgets of latency
    OUTPUT_DIR/dilation/                 as stage/; dilation_N16/ where there are several budgets
    OUTPUT_DIR/found.yaml, found.pth     found_N16.yaml where there are several budgets
    OUTPUT_DIR/baseline.pth              without finalists: the baseline's path, if the supernet has it
    OUTPUT_DIR/trainings/                networks trained alone, see trainings.py; while one of
                                         SEARCH.INHERIT trains, inherited.pth is what it started from
    OUTPUT_DIR/table.csv, results.json   see table.py
    OUTPUT_DIR/starts.jsonl              see starts.py
    OUTPUT_DIR/report.html, report/      all of this to look at (search_net.py; see report/)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from crnas_d2.data.coco_json import load_json
from crnas_d2.data.datasets import register_coco
from crnas_d2.data.splits import write_splits
from crnas_d2.engine import progress
from crnas_d2.pipeline.configs import network_config
from crnas_d2.pipeline.contest import Contest
from crnas_d2.pipeline.found import write_found
from crnas_d2.pipeline.phases import Phases
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.scorer import Split
from crnas_d2.pipeline.table import NETWORKS, PATHS, retrain, write_results
from crnas_d2.pipeline.trainings import ARCHTRAIN, Network, Trainings, baseline_of
from crnas_d2.pipeline.weights import copy_weights, origin_of
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

Networks = dict[str, Network]  # by name


def run_search(plan: Plan, resume: bool) -> list[str]:
    """Run the phases of SEARCH.PHASES; the paths of what was written, on rank 0."""
    cfg, folder = plan.cfg, Path(plan.cfg.OUTPUT_DIR)
    archtrain, split = register_splits(plan)
    trainings = Trainings(plan, archtrain, split.archval)
    searches = {"stage", "dilation"} & {*cfg.SEARCH.PHASES}
    contest = Contest(plan, trainings) if searches and cfg.SEARCH.FINALISTS.NUM else None
    phases = Phases(plan, archtrain, split, resume, contest)
    if contest and not cfg.SEARCH.INHERIT:
        contest.noise()  # before any supernet is trained
    winners = phases.stage() if "stage" in searches else phases.named()
    written, verdicts, networks = [], {}, _baselines(plan)
    for budget, (architecture, verdict) in winners.items():
        suffix, base = plan.suffix(budget), plan.base_of(budget)
        if "dilation" in searches:
            networks[f"stage{suffix}"] = Network(architecture, base)
            architecture, verdict = phases.dilation(budget, architecture)
        found = networks[f"found{suffix}"] = Network(architecture, base)
        path = folder / f"found{suffix}.yaml"
        text, weights = verdict["text"], path.with_suffix(".pth")
        logging.getLogger(__name__).info("%s: %s", path, text)
        if comm.is_main_process():
            if contest:
                best = trainings.best(found, ARCHTRAIN, cfg.SEARCH.FINALISTS.SEEDS)
                copy_weights(weights, network_config(cfg, base), *best)
            comment = f"{architecture}, found by search_net.py for a budget of {budget}\n{text}"
            write_found(path, cfg, base, architecture, comment)
        comm.synchronize()
        verdicts[budget.name] = {"found": str(architecture), **verdict, "weights": origin_of(weights)}
        written += [str(each) for each in (path, weights) if each.is_file()]
    results: dict[str, Any] = {"noise": contest.noise() if contest else [], "verdicts": verdicts}
    if "test" in cfg.SEARCH.PHASES:
        results[PATHS] = phases.test(networks)
    if "retrain" in cfg.SEARCH.PHASES:
        with progress.at("retraining"):
            results[NETWORKS] = retrain(plan, trainings, networks)
    if comm.is_main_process():
        written += map(str, write_results(folder, results))
    return written


def _baselines(plan: Plan) -> Networks:
    """Of each base config, in the order of the budgets."""
    networks: Networks = {}
    for base in dict.fromkeys(plan.bases.values()):
        networks[f"baseline{len(networks) or ''}"] = baseline_of(plan, base)
    return networks


def register_splits(plan: Plan) -> tuple[str, Split]:
    """Write the splits, and register them: archtrain by name, archval and recalibration images."""
    folder = Path(plan.cfg.OUTPUT_DIR, "splits").resolve()
    if comm.is_main_process():
        assert plan.parts is not None
        write_splits(plan.parts, folder)
        plan.parts = None  # the training set, as objects, leaves its memory
    comm.synchronize()
    images = MetadataCatalog.get(plan.cfg.DATASETS.TRAIN[0]).image_root
    names = {part: f"{part} in {folder}" for part in ("archtrain", "archval", "recalibration")}
    for part, name in names.items():
        register_coco(name, str(folder / f"{part}.json"), images)
    archval = load_json(str(folder / "archval.json"), "--resume")
    return names["archtrain"], Split(names["recalibration"], names["archval"], archval)
