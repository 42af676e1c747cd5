"""search_net.py's course: split, stage supernet, stage search, dilation supernet, greedy search,
found.yaml, and retraining if asked. Every step resumes where it was left.

    OUTPUT_DIR/splits/archtrain.json archval.json
    OUTPUT_DIR/stage/                    checkpoints, journal.jsonl
    OUTPUT_DIR/dilation/                 the same; dilation_N16/ where there are several budgets
    OUTPUT_DIR/found.yaml                found_N16.yaml where there are several budgets
    OUTPUT_DIR/retrain/found_CODES/      checkpoints, results.json; also of the baseline
    OUTPUT_DIR/retrain/table.csv         what retraining gave
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.data.datasets import check_dataset, register_coco, use_own_data
from crnas_d2.data.loader import check_loading
from crnas_d2.data.splits import split, write_split
from crnas_d2.engine.found import found_config, write_found
from crnas_d2.engine.hooks import DilationSearch, StageSearch
from crnas_d2.engine.retrain import retrain, retrain_config
from crnas_d2.engine.scoring import Split, build_metric, build_scorer
from crnas_d2.engine.setup import (
    SEARCH,
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
from crnas_d2.search.candidates import Candidate
from crnas_d2.space import DilationSpace
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

STEPS = ("stage", "dilation", "retrain")
SAMPLING = ("uniform", "eligible")


@dataclass(frozen=True)
class Plan:
    """A checked search: its config, the config of the found network, and the two parts."""

    cfg: CfgNode
    base: str
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
    _check_search_keys(cfg)
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
    base = _found_base(cfg, args.config_file)
    if retrains:
        run = retrain_config(cfg, base)
        check_loading(run, processes(args))
        if len(run.DATASETS.TEST) != 1:
            raise InputError(
                f"DATASETS.TEST: {tuple(run.DATASETS.TEST)}: "
                "one test set is needed to retrain (SEARCH.STEPS)"
            )
        check_weights(run, resume=False, strict=False)
        for side in ("TRAIN", "TEST"):
            for name in run.DATASETS[side]:
                check_dataset(name, f"DATASETS.{side}")
    content = check_dataset(cfg.DATASETS.TRAIN[0], "DATASETS.TRAIN")
    parts = split(content, cfg.SEARCH.ARCHVAL_SIZE, cfg.SEARCH.SPLIT_FIELD, seed_of(cfg))
    build_metric(cfg, Split("", "", parts[1]))
    check_output(cfg.OUTPUT_DIR, args.resume, SEARCH)
    if args.resume:
        check_same_run(cfg)
        _check_same_split(parts, Path(cfg.OUTPUT_DIR))
    if "stage" not in cfg.SEARCH.STEPS and (Path(cfg.OUTPUT_DIR) / "stage").exists():
        raise InputError(
            f"SEARCH.STEPS: {tuple(cfg.SEARCH.STEPS)}: {cfg.OUTPUT_DIR} holds a stage search, whose "
            "result the next steps take; name stage, too: what is done is not done again"
        )
    check_weights(first, args.resume, strict=bool(first.MODEL.CRNAS.SUPERNET))
    cfg.freeze()
    return Plan(cfg, base, parts, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).image_root)


def _check_same_split(parts: tuple[dict[str, Any], dict[str, Any]], folder: Path) -> None:
    for part, now in zip(("archtrain", "archval"), parts):
        path = folder / "splits" / f"{part}.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != now:
            raise InputError(
                f"DATASETS.TRAIN: its JSON gives another {part} than {path}; "
                "--resume goes on with the same data only"
            )


def _check_search_keys(cfg: CfgNode) -> None:
    node = cfg.SEARCH
    if not node.STEPS or any(step not in STEPS for step in node.STEPS):
        raise InputError(f"SEARCH.STEPS: {tuple(node.STEPS)}: allowed are some of {STEPS}")
    if node.SAMPLING not in SAMPLING:
        raise InputError(f"SEARCH.SAMPLING: {node.SAMPLING!r}: allowed are {SAMPLING}")
    if cfg.MODEL.CRNAS.SUPERNET:
        raise InputError(
            f"MODEL.CRNAS.SUPERNET: {cfg.MODEL.CRNAS.SUPERNET!r}: "
            "search_net.py sets it for each step; leave it empty"
        )
    if node.TASK == "segm" and not cfg.MODEL.MASK_ON:
        raise InputError("SEARCH.TASK: 'segm': MODEL.MASK_ON is False; allowed is bbox")
    for key, least in (("BATCH_SIZE", 1), ("TOP_K", 1), ("RECALIBRATION_IMAGES", 0)):
        if node[key] < least:
            raise InputError(f"SEARCH.{key}: {node[key]}: at least {least} is needed")
    numbers = all(type(budget) in (int, float) for budget in node.BUDGETS)
    if not node.BUDGETS or not numbers or len(set(node.BUDGETS)) != len(node.BUDGETS):
        raise InputError(f"SEARCH.BUDGETS: {tuple(node.BUDGETS)}: different numbers are needed")
    if "stage" in node.STEPS:
        for budget in node.BUDGETS:
            stage_space_of(cfg).eligible(budget)


def _first_step(cfg: CfgNode) -> CfgNode:
    """The config of the first supernet that is trained, as far as its network and weights go."""
    first = cfg.clone()
    for step in ("dilation", "stage"):
        if step in cfg.SEARCH.STEPS:
            first.MODEL.CRNAS.SUPERNET = step
            first.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / step)
    return first


def _found_base(cfg: CfgNode, config_file: str) -> str:
    """The config that found.yaml is based on, as it stands in its file: no KEY VALUE reaches it.

    SEARCH.FOUND_BASE, relative to the search's config or to here; else the search's own config file.
    """
    named = cfg.SEARCH.FOUND_BASE
    places = [Path(config_file).parent / named, Path(named)] if named else [Path(config_file)]
    path = next((str(place) for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"SEARCH.FOUND_BASE: {named!r}: no such config file")
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
    return path


def run_search(plan: Plan, resume: bool) -> list[str]:
    """Take the steps of SEARCH.STEPS.

    Returns:
        paths of what was written, for the last line.
    """
    cfg, folder = plan.cfg, plan.folder
    parts = _write_split(plan)
    written = []
    winners = {float(sum(cfg.MODEL.CRNAS.STAGE_CODE)): architecture_of(cfg)}
    if "stage" in cfg.SEARCH.STEPS:
        results = _stage_step(plan, parts, resume)
        winners = {budget: found[0].architecture for budget, found in results.items()}
    for budget, architecture in winners.items():
        suffix = f"_N{budget:g}" if len(winners) > 1 else ""
        if "dilation" in cfg.SEARCH.STEPS:
            best = _dilation_step(plan, parts, resume, budget, architecture, f"dilation{suffix}")
            architecture = best.architecture
        path = folder / f"found{suffix}.yaml"
        if comm.is_main_process():
            comment = f"{architecture}, found by search_net.py for a budget of {budget:g}"
            write_found(path, found_config(cfg, plan.base, architecture), comment)
        comm.synchronize()
        written.append(str(path))
    if "retrain" in cfg.SEARCH.STEPS:
        written += retrain(cfg, plan.base, written, folder / "retrain")
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
        cfg.MODEL.WEIGHTS = ""  # they are of the first supernet
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


def _stage_step(plan: Plan, parts: Split, resume: bool) -> dict[float, list[Candidate]]:
    cfg = _step_config(plan, parts, "stage", "stage")
    trainer = SupernetTrainer(cfg)
    search = StageSearch(
        functools.partial(build_scorer, cfg, parts),
        backbone_costs(cfg),
        Path(cfg.OUTPUT_DIR) / "journal.jsonl",
        space=stage_space_of(cfg),
        budgets=cfg.SEARCH.BUDGETS,
    )
    trainer.register_hooks([search])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return search.results


def _dilation_step(
    plan: Plan,
    parts: Split,
    resume: bool,
    budget: float,
    architecture: Architecture,
    folder: str,
) -> Candidate:
    cfg = _step_config(plan, parts, "dilation", folder, architecture)
    trainer = SupernetTrainer(cfg)
    search = DilationSearch(
        functools.partial(build_scorer, cfg, parts),
        backbone_costs(cfg),
        Path(cfg.OUTPUT_DIR) / "journal.jsonl",
        space=DilationSpace(architecture.family, architecture.stage_code),
        budget=budget,
        top_k=cfg.SEARCH.TOP_K,
    )
    trainer.register_hooks([search])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return search.results[budget][0]
