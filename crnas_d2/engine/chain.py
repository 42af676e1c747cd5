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
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.analysis.latency import LatencyCosts, Stopwatch
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.data.datasets import check_dataset, register_coco, use_own_data
from crnas_d2.data.loader import check_loading
from crnas_d2.data.splits import split, write_split
from crnas_d2.engine.found import found_config, write_found
from crnas_d2.engine.hooks import Search, SearchHook
from crnas_d2.engine.pretrain import pretrain_config, pretrained
from crnas_d2.engine.retrain import retrain, retrain_config
from crnas_d2.engine.schedule import check_schedule
from crnas_d2.engine.scoring import Split, build_metric, build_scorer
from crnas_d2.engine.setup import (
    SEARCH,
    check_data,
    check_network,
    check_output,
    check_same_run,
    check_weights,
    processes,
    read_config,
)
from crnas_d2.engine.trainer import SupernetTrainer, seed_of
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.search.candidates import Candidate, Compare
from crnas_d2.search.evolution import evolution
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Journal
from crnas_d2.search.random_search import eligible_draws, random_search
from crnas_d2.search.stage import stage_search
from crnas_d2.space import DilationSpace, StageSpace, block_cost, block_costs
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

STEPS = ("stage", "dilation", "retrain")
# Searches that take SEARCH.EVALUATIONS, in place of the paper's.
ALTERNATIVES: dict[str, Callable[..., list[Candidate]]] = {
    "evolution": evolution,
    "random": random_search,
}
CHOICES = {
    "SAMPLING": ("uniform", "eligible"),
    "STAGE_SEARCH": ("exhaustive", *ALTERNATIVES),
    "DILATION_SEARCH": ("greedy", *ALTERNATIVES),
}
LEAST = {"BATCH_SIZE": 1, "GROUP_SIZE": 1, "TOP_K": 1, "EVALUATIONS": 1, "RECALIBRATION_IMAGES": 0}
LATENCIES = "latency.jsonl"


@dataclass(frozen=True)
class Plan:
    """A checked search: its config, those of the found network and of pre-training, the two parts."""

    cfg: CfgNode
    budgets: tuple[Budget, ...]
    base: str
    network: CfgNode  # that of base, for this data and device: what costs are those of
    pretrain: str  # path of the classification config, or empty
    parts: tuple[dict[str, Any], dict[str, Any]]
    images: str  # folder of the training set

    @property
    def folder(self) -> Path:
        """OUTPUT_DIR."""
        return Path(self.cfg.OUTPUT_DIR)


def plan_search(args: argparse.Namespace) -> Plan:
    """Read and check everything that a search needs; nothing is written.

    Raises:
        InputError: the key, its value and what is allowed.
    """
    if args.eval_only:
        raise InputError("--eval-only: a search evaluates nothing; train_net.py takes it")
    cfg = read_config(args.config_file, args.opts)
    budgets = _check_search_keys(cfg)
    check_network(cfg)
    first = _first_step(cfg)
    check_network(first)
    retrains = "retrain" in cfg.SEARCH.STEPS
    use_own_data(cfg, test=retrains)
    check_loading(cfg, processes(args))
    if len(cfg.DATASETS.TRAIN) != 1:
        raise InputError(
            f"DATASETS.TRAIN: {tuple(cfg.DATASETS.TRAIN)}: a search takes one training set"
        )
    check_schedule(cfg)
    base, network = _found_base(cfg, args.config_file)
    if "stage" in cfg.SEARCH.STEPS:
        counted = [budget.without("latency") for budget in budgets]
        only_blocks = all(budget.limits_only("blocks") for budget in counted)
        _check_met(cfg, counted, block_costs if only_blocks else backbone_costs(network))
    pretrain = _pretrain_config(cfg, first, args)
    if retrains:
        _check_retraining(cfg, base, pretrain, args)
    content = check_dataset(cfg.DATASETS.TRAIN[0], "DATASETS.TRAIN")
    if content is None:
        raise InputError(
            f"DATASETS.TRAIN: {cfg.DATASETS.TRAIN[0]!r}: has no COCO JSON, which a search splits"
        )
    parts = split(content, cfg.SEARCH.ARCHVAL_SIZE, cfg.SEARCH.SPLIT_FIELD, seed_of(cfg))
    build_metric(cfg, Split("", "", parts[1]))
    check_output(cfg.OUTPUT_DIR, args.resume, (*SEARCH, LATENCIES))
    if args.resume:
        check_same_run(cfg)
        _check_same_split(parts, Path(cfg.OUTPUT_DIR))
    if "stage" not in cfg.SEARCH.STEPS and (Path(cfg.OUTPUT_DIR) / "stage").exists():
        raise InputError(
            f"SEARCH.STEPS: {tuple(cfg.SEARCH.STEPS)}: {cfg.OUTPUT_DIR} holds a stage search, whose "
            "result the next steps take; name stage, too: what is done is not done again"
        )
    check_weights(first, args.resume)
    cfg.freeze()
    images = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).image_root
    return Plan(cfg, budgets, base, network, pretrain, parts, images)


def _check_retraining(cfg: CfgNode, base: str, pretrain: str, args: argparse.Namespace) -> None:
    run = retrain_config(cfg, base)
    check_loading(run, processes(args))
    check_schedule(run)
    if run.MODEL.WEIGHTS:
        raise InputError(
            f"SEARCH.FOUND_BASE: {base}: has MODEL.WEIGHTS {run.MODEL.WEIGHTS}, which a found network "
            "of another code could not take; to retrain (SEARCH.STEPS), allowed is none"
        )
    if pretrain:
        pretrain_config(run, pretrain)
    if len(run.DATASETS.TEST) != 1:
        raise InputError(
            f"DATASETS.TEST: {tuple(run.DATASETS.TEST)}: "
            "one test set is needed to retrain (SEARCH.STEPS)"
        )
    check_data(run, "TRAIN")
    check_data(run, "TEST")


def _check_same_split(parts: tuple[dict[str, Any], dict[str, Any]], folder: Path) -> None:
    for part, now in zip(("archtrain", "archval"), parts):
        path = folder / "splits" / f"{part}.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != now:
            raise InputError(
                f"DATASETS.TRAIN: its JSON gives another {part} than {path}; "
                "--resume goes on with the same data only"
            )


def _check_search_keys(cfg: CfgNode) -> tuple[Budget, ...]:
    """Returns: the budgets."""
    node = cfg.SEARCH
    if not node.STEPS or any(step not in STEPS for step in node.STEPS):
        raise InputError(f"SEARCH.STEPS: {tuple(node.STEPS)}: allowed are some of {STEPS}")
    for key, allowed in CHOICES.items():
        if node[key] not in allowed:
            raise InputError(f"SEARCH.{key}: {node[key]!r}: allowed are {allowed}")
    if cfg.MODEL.CRNAS.SUPERNET:
        raise InputError(
            f"MODEL.CRNAS.SUPERNET: {cfg.MODEL.CRNAS.SUPERNET!r}: "
            "search_net.py sets it for each step; leave it empty"
        )
    if node.TASK == "segm" and not cfg.MODEL.MASK_ON:
        raise InputError("SEARCH.TASK: 'segm': MODEL.MASK_ON is False; allowed is bbox")
    for key, least in LEAST.items():
        if node[key] < least:
            raise InputError(f"SEARCH.{key}: {node[key]}: at least {least} is needed")
    if node.RACE_CONFIDENCE and not 0.5 < node.RACE_CONFIDENCE < 1:
        raise InputError(
            f"SEARCH.RACE_CONFIDENCE: {node.RACE_CONFIDENCE}: allowed are 0.0 (no race), and above 0.5 "
            "and below 1"
        )
    budgets = tuple(map(Budget.parse, node.BUDGETS))
    if not budgets or len({budget.name for budget in budgets}) != len(budgets):
        raise InputError(
            f"SEARCH.BUDGETS: {tuple(node.BUDGETS)}: different numbers of blocks, or limits of "
            "different values, are needed"
        )
    if "stage" in node.STEPS and node.SAMPLING == "eligible":
        stage_space_of(cfg).only_eligible(budgets)
    return budgets


def _check_met(cfg: CfgNode, budgets: Sequence[Budget], costs: Costs) -> None:
    """Every budget is met by a code that the stage search comes upon.

    Raises:
        InputError: the first that is not.
    """
    space = stage_space_of(cfg)
    for budget in budgets:
        if cfg.SEARCH.STAGE_SEARCH == "exhaustive":
            space.eligible(budget, costs)
        else:
            next(eligible_draws(space, budget, costs, seed_of(cfg)))


def _first_step(cfg: CfgNode) -> CfgNode:
    """The config of the first supernet that is trained, as far as its network and weights go."""
    first = cfg.clone()
    for step in ("dilation", "stage"):
        if step in cfg.SEARCH.STEPS:
            first.MODEL.CRNAS.SUPERNET = step
            first.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / step)
    return first


def _found_base(cfg: CfgNode, config_file: str) -> tuple[str, CfgNode]:
    """Path of the config that found.yaml is based on, and that config for our device and classes.

    SEARCH.FOUND_BASE, relative to the search's config or to here; else the search's own config file.
    It counts as it stands in its file: no KEY VALUE reaches it.
    """
    named = cfg.SEARCH.FOUND_BASE or os.path.basename(config_file)
    path = _beside(config_file, named, "SEARCH.FOUND_BASE")
    found = read_config(path, [])
    check_network(found)
    ours, node = cfg.MODEL.CRNAS, found.MODEL.CRNAS
    if "crnas" not in found.MODEL.BACKBONE.NAME:
        raise InputError(
            f"SEARCH.FOUND_BASE: {path}: has MODEL.BACKBONE.NAME {found.MODEL.BACKBONE.NAME!r}, "
            "which is none of ours"
        )
    if node.SUPERNET or node.FAMILY != ours.FAMILY:
        raise InputError(
            f"SEARCH.FOUND_BASE: {path}: has MODEL.CRNAS.FAMILY {node.FAMILY!r} and "
            f"SUPERNET {node.SUPERNET!r}; a fixed network of {ours.FAMILY!r} is needed"
        )
    found.MODEL.DEVICE = cfg.MODEL.DEVICE
    if cfg.DATASETS.TRAIN_JSON:
        for head in ("ROI_HEADS", "RETINANET"):
            found.MODEL[head].NUM_CLASSES = cfg.MODEL[head].NUM_CLASSES
    return path, found


def _beside(config_file: str, named: str, key: str) -> str:
    """The path of a config that is named relative to another one, or to here.

    Raises:
        InputError: no such file.
    """
    places = [Path(config_file).parent / named, Path(named)]
    path = next((str(place) for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"{key}: {named!r}: no such config file")
    return path


def _pretrain_config(cfg: CfgNode, first: CfgNode, args: argparse.Namespace) -> str:
    """The path of SEARCH.PRETRAIN's config, checked for the first network; empty if there is none."""
    if not cfg.SEARCH.PRETRAIN:
        return ""
    path = _beside(args.config_file, cfg.SEARCH.PRETRAIN, "SEARCH.PRETRAIN")
    run = pretrain_config(first, path)
    check_network(run)
    check_loading(run, processes(args))
    check_schedule(run)
    check_data(run, "TRAIN")
    if "retrain" in cfg.SEARCH.STEPS:
        check_data(run, "TEST")
    return path


def run_search(plan: Plan, resume: bool) -> list[str]:
    """Take the steps of SEARCH.STEPS.

    Returns:
        paths of what was written, for the last line.
    """
    cfg, folder = plan.cfg, plan.folder
    parts = _write_split(plan)
    written = []
    named = architecture_of(cfg)
    winners = {Budget.parse(block_cost(named)): named}
    if "stage" in cfg.SEARCH.STEPS:
        results = _stage_step(plan, parts, resume)
        winners = {budget: found[0].architecture for budget, found in results.items()}
    for budget, architecture in winners.items():
        suffix = f"_{budget.name}" if len(winners) > 1 else ""
        if "dilation" in cfg.SEARCH.STEPS:
            best = _dilation_step(plan, parts, resume, budget, architecture, f"dilation{suffix}")
            architecture = best.architecture
        path = folder / f"found{suffix}.yaml"
        if comm.is_main_process():
            comment = f"{architecture}, found by search_net.py for a budget of {budget}"
            write_found(path, found_config(cfg, plan.base, architecture), comment)
        comm.synchronize()
        written.append(str(path))
    if "retrain" in cfg.SEARCH.STEPS:
        written += retrain(cfg, plan.base, written, folder / "retrain", plan.pretrain)
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
    if supernet == "dilation" and "stage" in cfg.SEARCH.STEPS:
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
    if comm.is_main_process():
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    comm.synchronize()
    return cfg


def _alternative(cfg: CfgNode, name: str) -> Search | None:
    """The search of that name, if it is none of the paper's."""
    if name not in ALTERNATIVES:
        return None
    return functools.partial(ALTERNATIVES[name], evaluations=cfg.SEARCH.EVALUATIONS, seed=seed_of(cfg))


def _comparison(cfg: CfgNode) -> dict[str, Any]:
    """SearchHook's arguments that both steps have in common."""
    return {
        "folder": Path(cfg.OUTPUT_DIR),
        "group_size": cfg.SEARCH.GROUP_SIZE,
        "race_confidence": cfg.SEARCH.RACE_CONFIDENCE,
        "seed": seed_of(cfg),
    }


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
    _check_met(cfg, plan.budgets, costs)  # what takes measuring, too: before weeks of training
    cfg = pretrained(cfg, plan.pretrain, resume)
    trainer = SupernetTrainer(cfg)
    search = SearchHook(
        functools.partial(build_scorer, cfg, parts),
        space=space,
        budgets=plan.budgets,
        search=_alternative(cfg, cfg.SEARCH.STAGE_SEARCH) or stage_search,
        costs=costs,
        **_comparison(cfg),
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
        return greedy_search(space, compare, cfg.SEARCH.TOP_K)  # every dilation code meets the budget

    search = SearchHook(
        functools.partial(build_scorer, cfg, parts),
        space=DilationSpace(architecture.family, architecture.stage_code),
        budgets=[budget],
        search=_alternative(cfg, cfg.SEARCH.DILATION_SEARCH) or greedy,
        costs=backbone_costs(plan.network),
        **_comparison(cfg),
    )
    trainer.register_hooks([search])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return search.results[budget][0]
