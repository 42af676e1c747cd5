"""What search_net.py is asked to do, checked from end to end before anything is written."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.budget import Budget, Costs
from crnas_d2.config import read_config
from crnas_d2.data.datasets import check_dataset, use_own_data
from crnas_d2.data.loader import check_loading
from crnas_d2.data.pictures import check_decodes
from crnas_d2.data.splits import check_same_splits, split
from crnas_d2.engine.schedule import check_schedule
from crnas_d2.engine.setup import (
    check_data,
    check_network,
    check_output,
    check_same_run,
    check_weights,
)
from crnas_d2.engine.trainer import seed_of
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.pipeline.configs import (
    base_paths,
    config_path,
    differing_keys,
    network_config,
    pretrain_config,
    supernet_config,
)
from crnas_d2.pipeline.scorer import check_scoring
from crnas_d2.search.alternatives import eligible_draws
from crnas_d2.search.journal import Journal
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

LATENCIES = "latency.jsonl"
# What a search leaves in its OUTPUT_DIR.
TRACES = (
    *("stage/last_checkpoint", "stage/journal.jsonl", "stage/race.jsonl", "stage/matches"),
    *("dilation*/last_checkpoint", "dilation*/journal.jsonl", "dilation*/race.jsonl"),
    "dilation*/matches",
    *("retrain/*/last_checkpoint", "*/pretrain/last_checkpoint", "retrain/*/pretrain/last_checkpoint"),
    LATENCIES,
)


@dataclass
class Plan:
    """A checked search. Ranks above 0 receive it without the parts.

    Attributes:
        cfg: its config.
        budgets: at least one.
        bases: for each budget the path of the config that found.yaml is based on.
        networks: for each budget that config, for our data and device; all have the same costs.
        pretrain: path of the classification config; empty: none.
        parts: contents of COCO JSONs, on rank 0 until they are written (data/splits.py).
        images: folder of the training set.
    """

    cfg: CfgNode
    budgets: tuple[Budget, ...]
    bases: list[str]
    networks: list[CfgNode]
    pretrain: str
    parts: dict[str, dict[str, Any]] | None
    images: str

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "parts": None}

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
        raise InputError("--eval-only: a search has nothing to evaluate; train_net.py takes it")
    cfg = read_config(args.config_file, args.opts)
    budgets = _check_search_keys(cfg)
    check_network(cfg)
    first = supernet_config(cfg, "stage" if "stage" in cfg.SEARCH.PHASES else "dilation")
    check_network(first)
    retrains = "retrain" in cfg.SEARCH.PHASES
    content = use_own_data(cfg, test=retrains).get("TRAIN")
    _check_training(cfg)
    if len(cfg.DATASETS.TRAIN) != 1:
        raise InputError(f"DATASETS.TRAIN: {tuple(cfg.DATASETS.TRAIN)}: a search takes one set")
    bases = base_paths(cfg, args.config_file, budgets)
    networks = _check_bases(cfg, bases)
    if "stage" in cfg.SEARCH.PHASES:
        known = [budget.without("latency") for budget in budgets]  # that is measured later
        check_budgets(cfg, known, networks, backbone_costs(networks[0]))
    pretrain = _check_pretraining(cfg, first, args)
    if retrains:
        for base, network in dict(zip(bases, networks)).items():
            _check_retraining(base, network, pretrain)
    content = content or check_dataset(cfg, "TRAIN", cfg.DATASETS.TRAIN[0])
    if content is None:
        name = cfg.DATASETS.TRAIN[0]
        raise InputError(f"DATASETS.TRAIN: {name!r}: has no COCO JSON, which a search splits")
    node, images = cfg.SEARCH, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).image_root
    recalibration = node.EVAL.RECALIBRATION_IMAGES
    parts = split(content, node.ARCHVAL.SIZE, node.ARCHVAL.SPLIT_FIELD, seed_of(cfg), recalibration)
    check_scoring(cfg, len(parts["archtrain"]["images"]), parts["archval"])
    check_output(cfg.OUTPUT_DIR, args.resume, TRACES)
    _check_journals(Path(cfg.OUTPUT_DIR))
    if args.resume:
        check_same_run(cfg)
        check_same_splits(parts, Path(cfg.OUTPUT_DIR) / "splits")
    if "stage" not in cfg.SEARCH.PHASES and (Path(cfg.OUTPUT_DIR) / "stage").exists():
        raise InputError(
            f"SEARCH.PHASES: {tuple(cfg.SEARCH.PHASES)}: {cfg.OUTPUT_DIR} holds a stage search, whose "
            "result the next phases take; name stage, too: what is done is not done again"
        )
    check_weights(first, args.resume)
    for part in ("archval", "recalibration"):  # found out now, not after weeks of training
        files = [os.path.join(images, image["file_name"]) for image in parts[part]["images"]]
        check_decodes(files, "DATASETS.TRAIN")
    cfg.freeze()
    return Plan(cfg, budgets, bases, networks, pretrain, parts, images)


def _check_search_keys(cfg: CfgNode) -> tuple[Budget, ...]:
    """The budgets, when these keys are sound together."""
    node = cfg.SEARCH
    if cfg.MODEL.CRNAS.SUPERNET:
        raise InputError(
            f"MODEL.CRNAS.SUPERNET: {cfg.MODEL.CRNAS.SUPERNET!r}: leave it empty, search_net.py sets it"
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


def _check_bases(cfg: CfgNode, bases: Sequence[str]) -> list[CfgNode]:
    """The configs that found networks are based on, as ``network_config`` gives them."""
    networks: list[CfgNode] = []
    for path in bases:
        network = network_config(cfg, path)
        check_network(network)
        where, node = f"SEARCH.FOUND_BASE: {path}", network.MODEL.CRNAS
        if "crnas" not in network.MODEL.BACKBONE.NAME:
            raise InputError(f"{where}: {network.MODEL.BACKBONE.NAME!r} is none of our backbones")
        if node.SUPERNET or node.FAMILY != cfg.MODEL.CRNAS.FAMILY:
            raise InputError(
                f"{where}: has MODEL.CRNAS.FAMILY {node.FAMILY!r} and SUPERNET {node.SUPERNET!r}; a "
                f"fixed network of {cfg.MODEL.CRNAS.FAMILY!r} is needed"
            )
        networks.append(network)
        baseline = architecture_of(network)
        if backbone_costs(network)(baseline) != backbone_costs(networks[0])(baseline):
            raise InputError(
                f"{where}: its blocks cost other than those of {bases[0]}; one search serves networks "
                "of the same widths and test size"
            )
        keys = ", ".join(differing_keys(cfg, network))
        if keys:
            logging.getLogger(__name__).warning(
                "the search judges another detector than %s describes: %s differ", path, keys
            )
    return networks


def check_budgets(
    cfg: CfgNode, budgets: Sequence[Budget], networks: Sequence[CfgNode], costs: Costs
) -> None:
    """Every budget is met by a code that the stage search finds, and by the network of its base config.

    Raises InputError: the first that is not, with the costs.
    """
    space = stage_space_of(cfg)
    for budget, network in zip(budgets, networks):
        if cfg.SEARCH.STAGE.METHOD == "exhaustive":
            space.eligible(budget, costs)
        else:
            next(eligible_draws(space, budget, costs, seed_of(cfg)))
        baseline = architecture_of(network)
        found = costs(baseline)
        for limit in budget.limits:
            if not limit.allows(found[limit.cost]):
                raise InputError(
                    f"SEARCH.BUDGETS: {budget}: the baseline {baseline} of SEARCH.FOUND_BASE has "
                    f"{limit.cost} {found[limit.cost]:g}, so it is no match for what would be found; "
                    "name a budget that it meets, or another base config"
                )


def _check_training(cfg: CfgNode, *sides: str) -> None:
    """A phase's training has a batch, a schedule, and data of these sides, TRAIN and TEST."""
    check_loading(cfg)
    check_schedule(cfg)
    for side in sides:
        check_data(cfg, side)


def _check_pretraining(cfg: CfgNode, first: CfgNode, args: argparse.Namespace) -> str:
    """The path of SEARCH.PRETRAIN's config, checked for the first network; empty if there is none."""
    if not cfg.SEARCH.PRETRAIN:
        return ""
    path = config_path(cfg.SEARCH.PRETRAIN, args.config_file, "SEARCH.PRETRAIN")
    run = pretrain_config(first, path)
    check_network(run)
    _check_training(run, "TRAIN", *(["TEST"] if "retrain" in cfg.SEARCH.PHASES else []))
    return path


def _check_retraining(base: str, run: CfgNode, pretrain: str) -> None:
    if run.MODEL.WEIGHTS:
        raise InputError(
            f"SEARCH.FOUND_BASE: {base}: has MODEL.WEIGHTS {run.MODEL.WEIGHTS}, which a found network "
            "of another code could not take; to retrain (SEARCH.PHASES), allowed is none"
        )
    if pretrain:
        pretrain_config(run, pretrain)
    if len(run.DATASETS.TEST) != 1:
        names = tuple(run.DATASETS.TEST)
        raise InputError(f"DATASETS.TEST: {names}: one test set is needed to retrain (SEARCH.PHASES)")
    _check_training(run, "TRAIN", "TEST")


def _check_journals(folder: Path) -> None:
    """The journals of a search can be read, and each is of its folder's phase."""
    for path in (*folder.glob("*/journal.jsonl"), *folder.glob("*/race.jsonl")):
        phase = path.parent.name.split("_")[0]
        for number, record in enumerate(Journal(path, writes=False).records, start=1):
            if str(record["phase"]).split()[:1] != [phase]:
                raise InputError(
                    f"{path}:{number}: phase {record['phase']!r}: allowed is {phase!r}; "
                    "fix or remove the line"
                )
