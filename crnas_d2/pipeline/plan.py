"""What search_net.py is asked to do, checked from end to end before anything is written."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.config import read_config
from crnas_d2.data.coco_json import Record
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
from crnas_d2.pipeline.weights import check_inherits
from crnas_d2.search.alternatives import eligible_draws
from crnas_d2.search.journal import Journal
from crnas_d2.space import block_costs
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

NEEDS_TEST = (
    "needs one test set: name it (DATASETS.TEST_JSON), or leave the phase out of SEARCH.PHASES, as "
    "\"('stage', 'dilation')\""
)
VOC_METRICS = ("AP", "AP50", "AP75")  # of detectron2's evaluator of Pascal VOC
LATENCIES, TRAININGS = "latency.jsonl", "trainings"
# What a search leaves in its OUTPUT_DIR, and below it in the folders of its phases.
FOLDERS = ("joint", "stage", "dilation*", "test", f"{TRAININGS}/*/*", TRAININGS)
FILES = ("last_checkpoint", "journal.jsonl", "race.jsonl", "matches", "pretrain/last_checkpoint")
TRACES = (LATENCIES, *map("/".join, itertools.product(FOLDERS, FILES)))


@dataclass
class Plan:
    """A checked search."""

    cfg: CfgNode
    bases: dict[Budget, str]  # path of the config that found.yaml is based on; their blocks cost alike
    pretrain: str  # path of the classification config; empty: none
    parts: dict[str, Record] | None  # of the training set (data/splits.py), on rank 0 until written

    def base_of(self, budget: Budget) -> str:
        """Also of a budget that is not asked for: that of a named code."""
        return self.bases.get(budget) or next(iter(self.bases.values()))

    def suffix(self, budget: Budget) -> str:
        """Of the names of a budget's files."""
        return f"_{budget.name}" if len(self.bases) > 1 else ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "parts": None}


def plan_search(args: argparse.Namespace) -> Plan:
    """Read and check everything that a search needs; nothing is written.

    Raises InputError: the key, its value and what is allowed.
    """
    if args.eval_only:
        raise InputError("--eval-only: a search has nothing to evaluate; train_net.py takes it")
    cfg = read_config(args.config_file, args.opts)
    _check_keys(cfg)
    check_network(cfg)
    bases = base_paths(cfg, args.config_file)
    _leave_out_retraining(cfg)
    content = _training_set(cfg)
    kind = "stage" if "stage" in cfg.SEARCH.PHASES else "dilation"
    first = supernet_config(cfg, "joint" if cfg.SEARCH.JOINT else kind)
    _check_training(first)

    networks = {path: network_config(cfg, path) for path in bases.values()}
    costs = _check_bases(cfg, networks)
    if "stage" in cfg.SEARCH.PHASES:
        known = [(budget.without("latency"), base) for budget, base in bases.items()]
        check_budgets(cfg, known, costs)  # latency is measured later
    else:
        bases = named_budget(cfg, bases, costs)
    pretrain = cfg.SEARCH.PRETRAIN
    if pretrain:
        pretrain = config_path(pretrain, args.config_file, "SEARCH.PRETRAIN")
        _check_training(pretrain_config(first, pretrain), "TRAIN")
    if "test" in cfg.SEARCH.PHASES:
        if len(cfg.DATASETS.TEST) != 1:
            found = tuple(cfg.DATASETS.TEST)
            raise InputError(f"DATASETS.TEST: {found}: the phase test {NEEDS_TEST}")
        check_data(cfg, "TEST")
        if not hasattr(MetadataCatalog.get(cfg.DATASETS.TEST[0]), "json_file"):
            found = tuple(cfg.DATASETS.TEST)
            raise InputError(
                f"DATASETS.TEST: {found}: a set with a COCO JSON is needed to test (SEARCH.PHASES)"
            )
    if cfg.SEARCH.JOINT:
        _check_joint(cfg, first, networks)
    is_retrained = "retrain" in cfg.SEARCH.PHASES
    if is_retrained or cfg.SEARCH.FINALISTS.NUM:
        for path, network in networks.items():
            _check_alone(cfg, path, network, pretrain, is_retrained)

    archval, recalibration = cfg.SEARCH.ARCHVAL, cfg.SEARCH.EVAL.RECALIBRATION_IMAGES
    parts = split(content, archval.SIZE, archval.SPLIT_FIELD, seed_of(cfg), recalibration)
    check_scoring(cfg, len(parts["archtrain"]["images"]), parts["archval"])
    _check_folder(cfg, parts, args.resume)
    check_weights(first, args.resume)
    # Images that scoring reads: else a bad one would end the run after weeks of training.
    images = [*parts["archval"]["images"], *parts["recalibration"]["images"]]
    folder = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).image_root
    check_decodes([os.path.join(folder, image["file_name"]) for image in images], "DATASETS.TRAIN")
    cfg.freeze()
    return Plan(cfg, bases, pretrain, parts)


def _check_keys(cfg: CfgNode) -> None:
    """Keys that have to suit each other."""
    supernet, node = cfg.MODEL.CRNAS.SUPERNET, cfg.SEARCH
    if supernet:
        raise InputError(f"MODEL.CRNAS.SUPERNET: {supernet!r}: leave it empty, search_net.py sets it")
    if (norm := cfg.MODEL.CRNAS.NORM) == "FrozenBN":
        why = "a search recomputes statistics of BatchNorm; allowed are auto, BN, SyncBN"
        raise InputError(f"MODEL.CRNAS.NORM: {norm!r}: {why}")
    if node.EVAL.TASK == "segm" and not cfg.MODEL.MASK_ON:
        raise InputError("SEARCH.EVAL.TASK: 'segm': MODEL.MASK_ON is False; allowed is bbox")
    if node.JOINT and not cfg.MODEL.CRNAS.SHARED:
        raise InputError("SEARCH.JOINT: True: MODEL.CRNAS.SHARED is False; the joint supernet needs it")
    if node.INHERIT and not node.JOINT:
        raise InputError("SEARCH.INHERIT: True: SEARCH.JOINT is False; it takes one supernet for all")
    if node.INHERIT and set(node.PHASES) <= {"retrain"}:
        why = "SEARCH.INHERIT is True, and takes a supernet; name another phase, too"
        raise InputError(f"SEARCH.PHASES: {tuple(node.PHASES)}: {why}")
    if "test" in node.PHASES and not node.JOINT:
        raise InputError("SEARCH.PHASES: 'test': compares paths of one supernet, with SEARCH.JOINT")
    if node.DILATION.EVIDENCE and (method := node.DILATION.METHOD) != "greedy":
        why = f"knows the luck of METHOD 'greedy' only; SEARCH.DILATION.METHOD is {method!r}"
        raise InputError(f"SEARCH.DILATION.EVIDENCE: True: {why}")
    if node.FINALISTS.TRY_LONGER and not node.FINALISTS.NUM:
        raise InputError(
            "SEARCH.FINALISTS.TRY_LONGER: True: NUM is 0; without finalists allowed is False"
        )
    if "stage" in node.PHASES and node.STAGE.SAMPLING == "eligible":
        stage_space_of(cfg).only_eligible(node.BUDGETS)  # which may limit blocks alone


def _leave_out_retraining(cfg: CfgNode) -> None:
    """Of own data without a test set, which the table of fresh seeds would need."""
    phases = [phase for phase in cfg.SEARCH.PHASES if phase != "retrain"]
    if (
        cfg.DATASETS.TRAIN_JSON
        and not cfg.DATASETS.TEST_JSON
        and 0 < len(phases) < len(cfg.SEARCH.PHASES)
    ):
        cfg.SEARCH.PHASES = tuple(phases)
        text = "no test set is named (DATASETS.TEST_JSON): the phase retrain is left out"
        logging.getLogger(__name__).warning(text)


def _training_set(cfg: CfgNode) -> Record:
    """The COCO JSON of DATASETS.TRAIN; your own data replace what is named there."""
    own = use_own_data(cfg, test=bool({"test", "retrain"} & {*cfg.SEARCH.PHASES}))
    names, content = tuple(cfg.DATASETS.TRAIN), own.get("TRAIN")
    if len(names) == 1:
        content = content or check_dataset(cfg, "TRAIN", names[0])
    if not content:
        needed = "one set, with a COCO JSON, is needed; TRAIN_JSON and TRAIN_IMAGES name your own"
        raise InputError(f"DATASETS.TRAIN: {names}: {needed}")
    return content


def _check_training(cfg: CfgNode, *sides: str) -> None:
    """A training has a network, a batch, a schedule, and data of these sides, TRAIN and TEST."""
    check_network(cfg)
    check_loading(cfg)
    check_schedule(cfg)
    for side in sides:
        check_data(cfg, side)


def _check_bases(cfg: CfgNode, networks: Mapping[str, CfgNode]) -> Costs:
    """Configs by path are fixed networks of the search's family; the costs that they share."""
    family = cfg.MODEL.CRNAS.FAMILY
    for path, network in networks.items():
        check_network(network)
        node, name = network.MODEL.CRNAS, network.MODEL.BACKBONE.NAME
        if "crnas" not in name or node.SUPERNET or node.FAMILY != family:
            raise InputError(
                f"SEARCH.FOUND_BASE: {path}: has MODEL.CRNAS.FAMILY {node.FAMILY!r}, SUPERNET "
                f"{node.SUPERNET!r}, in {name!r}; a fixed network of {family!r} is needed"
            )
        if node.WEIGHTS:
            check_weights(network, resume=False)
        keys = ", ".join(differing_keys(cfg, network))
        if keys:
            text = "the search judges another detector than %s describes; keys that differ: %s"
            logging.getLogger(__name__).warning(text, path, keys)
    first, *others = networks
    costs = backbone_costs(networks[first])
    for path in others:
        baseline = architecture_of(networks[path])
        if backbone_costs(networks[path])(baseline) != costs(baseline):
            why = f"its blocks cost other than those of {first}; the same widths and sizes are needed"
            raise InputError(f"SEARCH.FOUND_BASE: {path}: {why}")
    return costs


def check_budgets(cfg: CfgNode, bases: Iterable[tuple[Budget, str]], costs: Costs) -> None:
    """Every budget is met by a code that the stage search finds, and by its base config's network.

    Raises InputError: the first that is not, with the costs.
    """
    space = stage_space_of(cfg)
    for budget, path in bases:
        if cfg.SEARCH.STAGE.METHOD == "exhaustive":
            space.eligible(budget, costs)
        else:
            next(eligible_draws(space, budget, costs, seed_of(cfg)))
        baseline = architecture_of(network_config(cfg, path))
        found = costs(baseline)
        for limit in budget.limits:
            if not limit.allows(found[limit.cost]):
                of = f" of SEARCH.FOUND_BASE {path}" if cfg.SEARCH.FOUND_BASE else ""
                raise InputError(
                    f"SEARCH.BUDGETS: {budget}: {baseline}, the baseline{of}, has {limit.cost} "
                    f"{found[limit.cost]:g}; each budget needs a baseline that meets it"
                )


def named_budget(cfg: CfgNode, bases: Mapping[Budget, str], costs: Costs) -> dict[Budget, str]:
    """The first budget that MODEL.CRNAS's codes meet, or the first of all, and its base config.

    Raises InputError: the named code is to be compared with a baseline that costs otherwise.
    """
    named = architecture_of(cfg)
    met = (b for b in bases if b.without("latency").meets(costs(named)))  # latency is measured later
    budget = next(met, None)
    path = bases[budget or next(iter(bases))]
    limits = budget.without("latency") if budget else Budget.parse(block_costs(named))
    baseline = architecture_of(network_config(cfg, path))
    is_compared = cfg.SEARCH.FINALISTS.NUM or "retrain" in cfg.SEARCH.PHASES
    if is_compared and not limits.meets(costs(baseline)):
        raise InputError(
            f"MODEL.CRNAS.STAGE_CODE: {tuple(named.stage_code)}: it is compared with {baseline} of "
            f"SEARCH.FOUND_BASE, which does not meet the same budget, {limits}; name one that does"
        )
    return {budget or next(iter(bases)): path}


def _check_joint(cfg: CfgNode, supernet: CfgNode, networks: Mapping[str, CfgNode]) -> None:
    """What is to be scored is a path of the joint supernet."""
    space = stage_space_of(supernet)
    asked = {} if "stage" in cfg.SEARCH.PHASES else {"MODEL.CRNAS": cfg}
    if "test" in cfg.SEARCH.PHASES or cfg.SEARCH.INHERIT:
        asked |= {f"SEARCH.FOUND_BASE: {path}": network for path, network in networks.items()}
    for key, of in asked.items():
        code = tuple(of.MODEL.CRNAS.STAGE_CODE)
        if Architecture.undilated(of.MODEL.CRNAS.FAMILY, code) not in space:
            why = f"not in the joint supernet, whose depths are {space.depths}"
            raise InputError(f"{key}: STAGE_CODE {code}: {why}")
    if cfg.SEARCH.INHERIT:
        for path, network in networks.items():
            check_inherits(supernet, network, path)


def _check_alone(cfg: CfgNode, path: str, network: CfgNode, pretrain: str, is_tested: bool) -> None:
    """A base config's network can be trained alone, and scored as the search's paths are."""
    weights, names = network.MODEL.WEIGHTS, network.DATASETS.TEST
    where = f"SEARCH.FOUND_BASE: {path}" if cfg.SEARCH.FOUND_BASE else path
    options = cfg.SEARCH.EVAL
    if weights:
        why = "networks trained alone take none; MODEL.CRNAS.WEIGHTS is for ImageNet's"
        raise InputError(f"MODEL.WEIGHTS: {weights}: in {where}: {why}")
    for side in ("TRAIN", "TEST") if is_tested else ("TRAIN",):
        ours, theirs = tuple(cfg.DATASETS[side]), tuple(network.DATASETS[side])
        if ours and ours != theirs:  # a search alone needs no test set
            raise InputError(f"DATASETS.{side}: {ours}: {where} has {theirs}; the same are needed")
    if options.TASK == "segm" and not network.MODEL.MASK_ON:
        raise InputError(f"{where}: has MODEL.MASK_ON False; SEARCH.EVAL.TASK 'segm' needs masks")
    if pretrain and not cfg.SEARCH.INHERIT:
        _check_training(pretrain_config(network, pretrain), "TEST")
    _check_training(network, "TRAIN", *(["TEST"] if is_tested else []))
    if is_tested:
        if len(names) != 1:
            found = tuple(names)
            raise InputError(f"DATASETS.TEST: {found}: the phase retrain {NEEDS_TEST}")
        kind = MetadataCatalog.get(names[0]).get("evaluator_type")
        if kind == "pascal_voc" and options.METRIC not in VOC_METRICS:
            why = f"the test set {names[0]!r} of Pascal VOC has {', '.join(VOC_METRICS)}"
            raise InputError(f"SEARCH.EVAL.METRIC: {options.METRIC!r}: {why}")


def _check_folder(cfg: CfgNode, parts: Mapping[str, Record], resume: bool) -> None:
    """OUTPUT_DIR is free or, to resume, holds this very search; its journals can be read."""
    folder, phases = Path(cfg.OUTPUT_DIR), tuple(cfg.SEARCH.PHASES)
    check_output(cfg.OUTPUT_DIR, resume, TRACES)
    if resume:
        check_same_run(cfg)
        check_same_splits(parts, folder / "splits")
    for phase in ("stage", "dilation"):
        if phase not in phases and any(folder.glob(f"{phase}*")):
            why = f"{folder} holds a {phase} search, whose result is to be taken; name {phase}, too"
            raise InputError(f"SEARCH.PHASES: {phases}: {why}")
    for path in (*folder.glob("[sd]*/journal.jsonl"), *folder.glob("[sd]*/race.jsonl")):
        phase = path.parent.name.split("_")[0]
        for number, record in enumerate(Journal(path, writes=False).records, start=1):
            if str(record["phase"]).split()[:1] != [phase]:
                found = f"phase {record['phase']!r}: allowed is {phase!r}"
                raise InputError(f"{path}:{number}: {found}; fix or remove the line")
