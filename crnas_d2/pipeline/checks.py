"""What search_net.py is asked to do, checked from end to end before anything is written."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.budget import Budget, Costs
from crnas_d2.config import read_config
from crnas_d2.data.datasets import check_dataset, use_own_data
from crnas_d2.data.loader import check_loading
from crnas_d2.data.splits import split
from crnas_d2.engine.schedule import check_schedule
from crnas_d2.engine.setup import (
    SEARCH,
    check_data,
    check_network,
    check_output,
    check_same_run,
    check_weights,
    processes,
)
from crnas_d2.engine.trainer import seed_of
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import stage_space_of
from crnas_d2.pipeline.pretraining import pretrain_config
from crnas_d2.pipeline.retraining import retrain_config
from crnas_d2.pipeline.scorer import check_scoring
from crnas_d2.search.alternatives import eligible_draws, evolution, random_search
from crnas_d2.search.journal import Candidate
from crnas_d2.space import block_costs
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

# Searches that take SEARCH.EVALUATIONS, in place of the paper's.
ALTERNATIVES: dict[str, Callable[..., list[Candidate]]] = {
    "evolution": evolution,
    "random": random_search,
}
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
    retrains = "retrain" in cfg.SEARCH.PHASES
    use_own_data(cfg, test=retrains)
    check_loading(cfg, processes(args))
    if len(cfg.DATASETS.TRAIN) != 1:
        raise InputError(
            f"DATASETS.TRAIN: {tuple(cfg.DATASETS.TRAIN)}: a search takes one training set"
        )
    check_schedule(cfg)
    base, network = _found_base(cfg, args.config_file)
    if "stage" in cfg.SEARCH.PHASES:
        counted = [budget.without("latency") for budget in budgets]
        only_blocks = all(budget.limits_only("blocks") for budget in counted)
        check_met(cfg, counted, block_costs if only_blocks else backbone_costs(network))
    pretrain = _pretrain_config(cfg, first, args)
    if retrains:
        _check_retraining(cfg, base, pretrain, args)
    content = check_dataset(cfg.DATASETS.TRAIN[0], "DATASETS.TRAIN")
    if content is None:
        raise InputError(
            f"DATASETS.TRAIN: {cfg.DATASETS.TRAIN[0]!r}: has no COCO JSON, which a search splits"
        )
    parts = split(content, cfg.SEARCH.ARCHVAL.SIZE, cfg.SEARCH.ARCHVAL.SPLIT_FIELD, seed_of(cfg))
    check_scoring(cfg, len(parts[0]["images"]), parts[1])
    check_output(cfg.OUTPUT_DIR, args.resume, (*SEARCH, LATENCIES))
    if args.resume:
        check_same_run(cfg)
        _check_same_split(parts, Path(cfg.OUTPUT_DIR))
    if "stage" not in cfg.SEARCH.PHASES and (Path(cfg.OUTPUT_DIR) / "stage").exists():
        raise InputError(
            f"SEARCH.PHASES: {tuple(cfg.SEARCH.PHASES)}: {cfg.OUTPUT_DIR} holds a stage search, whose "
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
            "of another code could not take; to retrain (SEARCH.PHASES), allowed is none"
        )
    if pretrain:
        pretrain_config(run, pretrain)
    if len(run.DATASETS.TEST) != 1:
        raise InputError(
            f"DATASETS.TEST: {tuple(run.DATASETS.TEST)}: "
            "one test set is needed to retrain (SEARCH.PHASES)"
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
    if cfg.MODEL.CRNAS.SUPERNET:
        raise InputError(
            f"MODEL.CRNAS.SUPERNET: {cfg.MODEL.CRNAS.SUPERNET!r}: "
            "search_net.py sets it for each step; leave it empty"
        )
    if node.EVAL.TASK == "segm" and not cfg.MODEL.MASK_ON:
        raise InputError("SEARCH.EVAL.TASK: 'segm': MODEL.MASK_ON is False; allowed is bbox")
    budgets = tuple(map(Budget.parse, node.BUDGETS))
    if not budgets or len({budget.name for budget in budgets}) != len(budgets):
        raise InputError(
            f"SEARCH.BUDGETS: {tuple(node.BUDGETS)}: different numbers of blocks, or limits of "
            "different values, are needed"
        )
    if "stage" in node.PHASES and node.STAGE.SAMPLING == "eligible":
        stage_space_of(cfg).only_eligible(budgets)
    return budgets


def check_met(cfg: CfgNode, budgets: Sequence[Budget], costs: Costs) -> None:
    """Every budget is met by a code that the stage search comes upon.

    Raises:
        InputError: the first that is not.
    """
    space = stage_space_of(cfg)
    for budget in budgets:
        if cfg.SEARCH.STAGE.METHOD == "exhaustive":
            space.eligible(budget, costs)
        else:
            next(eligible_draws(space, budget, costs, seed_of(cfg)))


def _first_step(cfg: CfgNode) -> CfgNode:
    """The config of the first supernet that is trained, as far as its network and weights go."""
    first = cfg.clone()
    for step in ("dilation", "stage"):
        if step in cfg.SEARCH.PHASES:
            first.MODEL.CRNAS.SUPERNET = step
            first.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / step)
    return first


def _found_base(cfg: CfgNode, config_file: str) -> tuple[str, CfgNode]:
    """Path of the config that found.yaml is based on, and that config for our device and classes.

    SEARCH.FOUND_BASE, relative to the search's config or to here; else the search's own config file.
    It counts as it stands in its file: no KEY VALUE reaches it.
    """
    named = (cfg.SEARCH.FOUND_BASE or [""])[0] or os.path.basename(config_file)
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
    if "retrain" in cfg.SEARCH.PHASES:
        check_data(run, "TEST")
    return path
