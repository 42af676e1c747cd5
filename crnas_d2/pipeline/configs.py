"""The configs that a search derives from its own: supernets, pre-training, networks trained alone; and
found.yaml.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import leaves, read_config
from crnas_d2.data.datasets import register_own_data
from crnas_d2.errors import InputError
from crnas_d2.files import write_text
from crnas_d2.modeling.build import input_convention, stage_space_of
from crnas_d2.modeling.meta_arch.classifier import ImageClassifier
from detectron2.config import CfgNode

OWN_DATA = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
HEADS = ("ROI_HEADS", "RETINANET")  # that have NUM_CLASSES
# Keys of MODEL and INPUT in which a search and the config of its found network may differ.
OF_THE_SEARCH = (
    *("MODEL.CRNAS.STAGE_CODE", "MODEL.CRNAS.DILATION_CODE", "MODEL.CRNAS.SUPERNET"),
    *("MODEL.CRNAS.STAGE_SPACE", "MODEL.CRNAS.NESTED_DEPTHS", "MODEL.CRNAS.WIDTH_MULTIPLIER"),
    *("MODEL.CRNAS.NORM", "MODEL.WEIGHTS", "MODEL.DEVICE"),
    *(f"MODEL.{head}.NUM_CLASSES" for head in HEADS),
)


def supernet_config(
    cfg: CfgNode, phase: str, architecture: Architecture | None = None, folder: str = ""
) -> CfgNode:
    """The config of the phase's supernet, ``stage`` or ``dilation``; not frozen.

    Args:
        cfg: the search's.
        architecture: whose stage code the dilation supernet has; by default MODEL.CRNAS.STAGE_CODE's.
        folder: below OUTPUT_DIR; by default the phase's name.

    Raises InputError: with SEARCH.STAGE.ONLY_ELIGIBLE, a budget that no code meets.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.CRNAS.SUPERNET = phase
    if architecture is not None:
        cfg.MODEL.CRNAS.STAGE_CODE = list(architecture.stage_code)
    if phase == "dilation":
        cfg.MODEL.CRNAS.DILATION_CODE = []
        if cfg.MODEL.WEIGHTS and "stage" in cfg.SEARCH.PHASES:
            logging.getLogger(__name__).warning(
                "MODEL.WEIGHTS %s are for the stage supernet; the dilation supernet starts from random "
                "weights. To give it some, too, search in two runs (docs/PAPER.md)",
                cfg.MODEL.WEIGHTS,
            )
            cfg.MODEL.WEIGHTS = ""
    elif cfg.SEARCH.STAGE.ONLY_ELIGIBLE:
        depths = stage_space_of(cfg).only_eligible(cfg.SEARCH.BUDGETS).depths
        cfg.MODEL.CRNAS.STAGE_SPACE = [list(of_stage) for of_stage in depths]
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / (folder or phase))
    return cfg


def config_path(named: str, search_config: str, key: str) -> str:
    """The path of a config that is named relative to the search's config, or to the current folder."""
    for path in (Path(search_config).parent / named, Path(named)):
        if path.is_file():
            return str(path)
    raise InputError(f"{key}: {named!r}: no such config file")


def base_paths(cfg: CfgNode, search_config: str, budgets: Sequence[Budget]) -> list[str]:
    """For each budget the path of its found network's base config; by default the search's own.

    Raises InputError: SEARCH.FOUND_BASE names neither one for all nor one for each, or no file.
    """
    named = list(cfg.SEARCH.FOUND_BASE) or [Path(search_config).name]
    if len(named) not in (1, len(budgets)):
        raise InputError(
            f"SEARCH.FOUND_BASE: {tuple(named)}: one config is needed, or one for each of the "
            f"{len(budgets)} budgets"
        )
    paths = [config_path(name, search_config, "SEARCH.FOUND_BASE") for name in named]
    return paths if len(paths) == len(budgets) else paths * len(budgets)


def network_config(cfg: CfgNode, path: str) -> CfgNode:
    """A base config or found.yaml, for the search's data, seed and device; not frozen.

    No KEY VALUE pair of the search reaches it.
    """
    run = read_config(path)
    for key in OWN_DATA:
        run.DATASETS[key] = cfg.DATASETS[key]
    if cfg.DATASETS.TRAIN_JSON:
        run.DATASETS.TEST = ()  # what a config names there is of other data
        for head in HEADS:
            run.MODEL[head].NUM_CLASSES = cfg.MODEL[head].NUM_CLASSES
    for side, name in register_own_data(run).items():
        run.DATASETS[side] = (name,)
    run.SEED, run.NUM_THREADS, run.MODEL.DEVICE = cfg.SEED, cfg.NUM_THREADS, cfg.MODEL.DEVICE
    return run


def differing_keys(cfg: CfgNode, network: CfgNode) -> list[str]:
    """Keys of MODEL and INPUT by which the search judges another detector than it writes."""
    ours, theirs = leaves(cfg), leaves(network)
    return [
        key
        for key in sorted(ours)
        if key.startswith(("MODEL.", "INPUT."))
        and key not in OF_THE_SEARCH
        and ours[key] != theirs.get(key)
    ]


def pretrain_config(cfg: CfgNode, path: str) -> CfgNode:
    """A classification config for the network of the detector's ``cfg``; not frozen.

    Raises InputError: no classification config, one for another input, or weights that it would ignore.
    """
    run = read_config(path)
    if run.MODEL.META_ARCHITECTURE != ImageClassifier.__name__:
        raise InputError(
            f"SEARCH.PRETRAIN: {path}: has MODEL.META_ARCHITECTURE {run.MODEL.META_ARCHITECTURE!r}; "
            f"allowed is {ImageClassifier.__name__}"
        )
    if cfg.MODEL.WEIGHTS:
        raise InputError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS}: with SEARCH.PRETRAIN, which makes the weights, "
            "allowed is none"
        )
    features = run.MODEL.CRNAS.OUT_FEATURES
    run.MODEL.CRNAS, run.SEARCH = cfg.MODEL.CRNAS.clone(), cfg.SEARCH.clone()
    run.defrost()
    run.MODEL.CRNAS.OUT_FEATURES = features
    run.SEED, run.NUM_THREADS, run.MODEL.DEVICE = cfg.SEED, cfg.NUM_THREADS, cfg.MODEL.DEVICE
    run.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "pretrain")
    ours, theirs = input_convention(cfg), input_convention(run)
    if ours != theirs:
        raise InputError(
            f"SEARCH.PRETRAIN: {path}: classifies images as {theirs}, the detector sees {ours}; "
            "allowed is the same"
        )
    return run


def write_found(path: Path, cfg: CfgNode, base: str, architecture: Architecture, comment: str) -> None:
    """Write found.yaml: the network's two codes over its base config; your own data go with it.

    Args:
        cfg: the search's.
        base: path of the config that the network is to be trained with.
        comment: one line, at the top.
    """
    crnas = {
        "FAMILY": architecture.family,
        "STAGE_CODE": list(architecture.stage_code),
        "DILATION_CODE": list(architecture.dilation_code),
    }
    content: dict[str, Any] = {"_BASE_": str(Path(base).resolve()), "MODEL": {"CRNAS": crnas}}
    own = {key: str(Path(cfg.DATASETS[key]).resolve()) for key in OWN_DATA if cfg.DATASETS[key]}
    if own:
        content["DATASETS"] = own if cfg.DATASETS.TEST_JSON else {**own, "TEST": []}
        for head in HEADS:
            content["MODEL"][head] = {"NUM_CLASSES": cfg.MODEL[head].NUM_CLASSES}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    write_text(path, f"# {comment}\n{text}")
