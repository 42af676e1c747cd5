"""The configs that a search derives from its own: supernets, pre-training, networks trained alone; and
found.yaml.
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import leaves, read_config
from crnas_d2.data.datasets import HEADS, use_own_data
from crnas_d2.errors import InputError
from crnas_d2.modeling.build import input_convention, stage_space_of
from crnas_d2.modeling.meta_arch.classifier import ImageClassifier
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n

OWN_DATA = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
# Keys of MODEL and INPUT in which a search and the config of its found network may differ.
OF_THE_SEARCH = (
    *("MODEL.CRNAS.STAGE_CODE", "MODEL.CRNAS.DILATION_CODE", "MODEL.CRNAS.SUPERNET"),
    *("MODEL.CRNAS.STAGE_SPACE", "MODEL.CRNAS.SHARED", "MODEL.CRNAS.WIDTH_MULTIPLIER"),
    *("MODEL.CRNAS.NORM", "MODEL.CRNAS.RECOMPUTE", "MODEL.WEIGHTS", "MODEL.DEVICE"),
    *(f"MODEL.{head}.NUM_CLASSES" for head in HEADS.values()),
)


def supernet_config(
    cfg: CfgNode, phase: str, architecture: Architecture | None = None, folder: str = ""
) -> CfgNode:
    """The search's config for the supernet of a phase, ``stage`` or ``dilation``, or for ``joint``, the
    one of both; not frozen.

    The dilation supernet is of the architecture's stage code, by default MODEL.CRNAS.STAGE_CODE.
    ``folder`` is below OUTPUT_DIR, by default the phase's name.

    Raises InputError: with SEARCH.STAGE.ONLY_ELIGIBLE, a budget that no code meets.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.CRNAS
    node.SUPERNET, cfg.OUTPUT_DIR = phase, str(Path(cfg.OUTPUT_DIR) / (folder or phase))
    if phase != "dilation" and cfg.SEARCH.STAGE.ONLY_ELIGIBLE:
        space = stage_space_of(cfg).only_eligible(cfg.SEARCH.BUDGETS)
        node.STAGE_SPACE = list(map(list, space.depths))
    if phase == "dilation":
        node.STAGE_CODE = list(architecture.stage_code if architecture else node.STAGE_CODE)
        node.DILATION_CODE = []
        if cfg.MODEL.WEIGHTS and "stage" in cfg.SEARCH.PHASES:
            text = f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} are for the stage supernet alone; "
            text += "those of MODEL.CRNAS.WEIGHTS are for all networks"
            log_first_n(logging.WARNING, text, key="message")
            cfg.MODEL.WEIGHTS = ""
    return cfg


def config_path(named: str, search_config: str, key: str) -> str:
    """The path of a config that is named relative to the search's config, or to the current folder."""
    for path in (Path(search_config).parent / named, Path(named)):
        if path.is_file():
            return str(path)
    raise InputError(f"{key}: {named!r}: no such config file")


def base_paths(cfg: CfgNode, search_config: str) -> dict[Budget, str]:
    """The path of the base config of each budget's found network; by default the search's own.

    Raises InputError: no budget, two alike, or SEARCH.FOUND_BASE names neither one for all nor one for
        each, or no file.
    """
    budgets = [Budget.parse(budget) for budget in cfg.SEARCH.BUDGETS]
    if not budgets or len({budget.name for budget in budgets}) < len(budgets):
        needed = "different numbers of blocks, or limits of different values, are needed"
        raise InputError(f"SEARCH.BUDGETS: {tuple(cfg.SEARCH.BUDGETS)}: {needed}")
    named = tuple(cfg.SEARCH.FOUND_BASE) or (Path(search_config).name,)
    if len(named) not in (1, len(budgets)):
        needed = f"one config is needed, or one for each of the {len(budgets)} budgets"
        raise InputError(f"SEARCH.FOUND_BASE: {named}: {needed}")
    paths = [config_path(name, search_config, "SEARCH.FOUND_BASE") for name in named]
    return dict(zip(budgets, itertools.cycle(paths)))


def network_config(cfg: CfgNode, path: str, architecture: Architecture | None = None) -> CfgNode:
    """A base config, for the data, published weights, seed and device of the search; not frozen.

    Without SEARCH.FOUND_BASE that is the search's own, with its KEY VALUE pairs. ``architecture``:
    instead of the config's own.
    """
    run = read_config(path) if cfg.SEARCH.FOUND_BASE else cfg.clone()
    run.defrost()
    if architecture:
        run.MODEL.CRNAS.STAGE_CODE = list(architecture.stage_code)
        run.MODEL.CRNAS.DILATION_CODE = list(architecture.dilation_code)
    for key in OWN_DATA:
        run.DATASETS[key] = cfg.DATASETS[key]
    use_own_data(run, train=False, test=False)
    if cfg.DATASETS.TRAIN_JSON:
        for head in HEADS.values():
            run.MODEL[head].NUM_CLASSES = cfg.MODEL[head].NUM_CLASSES
    run.SEED, run.NUM_THREADS, run.MODEL.DEVICE = cfg.SEED, cfg.NUM_THREADS, cfg.MODEL.DEVICE
    for key in ("WEIGHTS", "RECOMPUTE"):
        run.MODEL.CRNAS[key] = cfg.MODEL.CRNAS[key] or run.MODEL.CRNAS[key]
    return run


def differing_keys(cfg: CfgNode, network: CfgNode) -> list[str]:
    """Keys of MODEL and INPUT in which the searched detector differs from the one that is written."""
    ours, theirs = leaves(cfg), leaves(network)
    differing = (key for key in sorted(ours) if ours[key] != theirs.get(key))
    return [key for key in differing if key.startswith(("MODEL", "INPUT")) and key not in OF_THE_SEARCH]


def pretrain_config(cfg: CfgNode, path: str) -> CfgNode:
    """A classification config for the network of the detector's ``cfg``; not frozen.

    Raises InputError: no classification config, one for another input, or weights that it would ignore.
    """
    run = read_config(path)
    kind, where = run.MODEL.META_ARCHITECTURE, f"SEARCH.PRETRAIN: {path}"
    if kind != ImageClassifier.__name__:
        raise InputError(f"{where}: has MODEL.META_ARCHITECTURE {kind!r}; allowed is ImageClassifier")
    for key, weights in (("WEIGHTS", cfg.MODEL.WEIGHTS), ("CRNAS.WEIGHTS", cfg.MODEL.CRNAS.WEIGHTS)):
        if weights:
            raise InputError(f"MODEL.{key}: {weights}: with SEARCH.PRETRAIN allowed is none")
    features = run.MODEL.CRNAS.OUT_FEATURES
    run.MODEL.CRNAS, run.SEARCH = cfg.MODEL.CRNAS.clone(), cfg.SEARCH.clone()
    run.defrost()
    run.MODEL.CRNAS.OUT_FEATURES = features
    run.SEED, run.NUM_THREADS, run.MODEL.DEVICE = cfg.SEED, cfg.NUM_THREADS, cfg.MODEL.DEVICE
    run.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "pretrain")
    ours, theirs = input_convention(cfg), input_convention(run)
    if ours != theirs:
        raise InputError(f"{where}: has the input {theirs}; allowed is the detector's, {ours}")
    return run
