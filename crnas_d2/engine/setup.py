"""The checked config of a command line, before anything is written, and the start of a run."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from crnas_d2.config import (
    ALWAYS,
    NEVER,
    RESUME,
    UNTIL_SCORED,
    leaves,
    merge_config,
    read_config,
    refuse_renamed,
)
from crnas_d2.data.datasets import check_dataset, register_own_data, use_own_data
from crnas_d2.data.imagenet import check_imagenet, is_image_folder
from crnas_d2.data.loader import check_loading
from crnas_d2.engine.checkpoint import last_whole
from crnas_d2.engine.schedule import check_schedule, learning_rate
from crnas_d2.errors import InputError
from crnas_d2.files import write_text, write_to_log
from crnas_d2.modeling.build import SUPERNETS, architecture_of, input_convention, stage_space_of
from crnas_d2.modeling.checkpoint.weights import check_backbone_weights, read_checkpoint
from crnas_d2.modeling.meta_arch.classifier import ImageClassifier
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def check_network(cfg: CfgNode) -> None:
    """The backbone exists, its codes and space are sound, and the network can be built.

    Raises:
        InputError: the key, its value and what is allowed.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY:
        raise InputError(
            f"MODEL.BACKBONE.NAME: {name!r}: not in BACKBONE_REGISTRY; ours are {_our_backbones()}"
        )
    supernet = cfg.MODEL.CRNAS.SUPERNET
    if supernet not in SUPERNETS:
        raise InputError(f"MODEL.CRNAS.SUPERNET: {supernet!r}: allowed are {SUPERNETS}")
    if "crnas" not in name:
        if supernet:
            raise InputError(
                f"MODEL.BACKBONE.NAME: {name!r}: has no {supernet} supernet; {_our_backbones()} have"
            )
        return
    if supernet and cfg.TEST.PRECISE_BN.ENABLED:
        raise InputError("TEST.PRECISE_BN.ENABLED: True: allowed is False with a supernet")
    if cfg.MODEL.BACKBONE.FREEZE_AT and not cfg.MODEL.WEIGHTS:
        raise InputError(
            f"MODEL.BACKBONE.FREEZE_AT: {cfg.MODEL.BACKBONE.FREEZE_AT}: without MODEL.WEIGHTS the "
            "frozen layers would stay random; allowed is 0"
        )
    architecture_of(cfg)
    stage_space_of(cfg)
    _outline(cfg)


def _our_backbones() -> str:
    return ", ".join(sorted(name for name, _ in BACKBONE_REGISTRY if "crnas" in name))


def _classifies(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == ImageClassifier.__name__


def _outline(cfg: CfgNode) -> nn.Module:
    """The network with shapes and no values: as quick to build as it is small."""
    name = cfg.MODEL.META_ARCHITECTURE
    try:
        with torch.device("meta"):
            return META_ARCH_REGISTRY.get(name)(cfg)
    except InputError:
        raise
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"MODEL.META_ARCHITECTURE: {name!r}: cannot be built over {cfg.MODEL.BACKBONE.NAME!r} with "
            f"these keys of MODEL: {type(error).__name__} {' '.join(str(error).split())}"
        ) from error


def check_weights(cfg: CfgNode, resume: bool) -> None:
    """The checkpoint that a run starts from is there and holds the whole of our backbone.

    Args:
        resume: whether OUTPUT_DIR's last checkpoint comes before MODEL.WEIGHTS.

    Raises:
        InputError: no such file, a damaged one with none before it, or a checkpoint of another network,
            space or input.
    """
    path, key = cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS"
    if resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
        (path, _), key = last_whole(cfg.OUTPUT_DIR), "--resume"
    if path and "://" not in path and not os.path.isfile(path):
        raise InputError(f"{key}: {path}: no such file")
    if path and "crnas" in cfg.MODEL.BACKBONE.NAME:
        check_backbone_weights(_outline(cfg).backbone, path, key, input_convention(cfg))
    elif path.endswith(".pth") and "://" not in path:
        read_checkpoint(path, key)


TRAINING = ("last_checkpoint",)  # what train_net.py leaves in its OUTPUT_DIR


def check_output(folder: str, resume: bool, traces: Sequence[str]) -> None:
    """Without --resume, a folder that holds a run is not written over.

    Args:
        traces: patterns of files that an earlier run leaves.

    Raises:
        InputError: the folder is a file, or holds such a file.
    """
    path = Path(folder)
    if not folder:
        raise InputError("OUTPUT_DIR: '': a folder is needed")
    if path.exists() and not path.is_dir():
        raise InputError(f"OUTPUT_DIR: {folder}: is not a folder")
    kept = [file for trace in traces for file in path.glob(trace)]
    if kept and not resume:
        raise InputError(
            f"OUTPUT_DIR: {folder}: holds {kept[0].relative_to(path)} of an earlier run; "
            "--resume continues it, or name another folder"
        )


def _leaves_of(path: Path) -> dict[str, Any]:
    """The leaves of a run's config.yaml, as far as it can be read."""
    try:
        return leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, yaml.YAMLError):
        return {}


# Keys of SOLVER, besides the learning rate, whose values --resume takes from the checkpoint.
OPTIMIZER = (
    *("MOMENTUM", "NESTEROV", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"),
    "BIAS_LR_FACTOR",
)


def check_same_optimizer(cfg: CfgNode) -> None:
    """The run in OUTPUT_DIR has the same optimizer, since a resumed one keeps its settings.

    Raises:
        InputError: the first key that differs.
    """
    now = leaves(cfg.SOLVER)
    run = {**leaves(cfg), **_leaves_of(Path(cfg.OUTPUT_DIR) / "config.yaml")}
    before = {key: run[f"SOLVER.{key}"] for key in now}
    settings = [{"BASE_LR": learning_rate(s), **{k: s[k] for k in OPTIMIZER}} for s in (before, now)]
    for key, kept in settings[0].items():
        if settings[1][key] != kept:
            raise InputError(
                f"SOLVER.{key}: {settings[1][key]!r}: the run in {cfg.OUTPUT_DIR} has {kept!r}, which "
                "--resume keeps; to change it, start from MODEL.WEIGHTS in another OUTPUT_DIR"
            )


def check_same_run(cfg: CfgNode) -> None:
    """The run in OUTPUT_DIR has the same config, but for keys that --resume may change (config.RESUME).

    A config.yaml that a kill has torn counts as far as it can be read.

    Raises:
        InputError: the first key that differs, or one of an earlier version.
    """
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    before = _leaves_of(path)
    refuse_renamed(before, str(path))
    scored = any(path.parent.glob("*/journal.jsonl")) or any(path.parent.glob("*/matches"))
    now = leaves(yaml.safe_load(cfg.dump()))
    for key in sorted(before.keys() & now.keys()):
        may_change = RESUME.get(key, NEVER)
        if before[key] == now[key] or may_change == ALWAYS:
            continue
        if may_change == NEVER or scored:
            raise InputError(
                f"{key}: {now[key]!r}: the run in {cfg.OUTPUT_DIR} has {before[key]!r}; "
                "--resume continues with the same config only"
                + (", once a candidate is scored" if may_change == UNTIL_SCORED else "")
            )


def write_config(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/config.yaml on rank 0; the other ranks wait for it."""
    comm.synchronize()  # every rank has looked before the first one writes
    if comm.is_main_process():
        write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    comm.synchronize()


def check_data(cfg: CfgNode, side: str, annotated: bool = True) -> None:
    """The data sets of DATASETS.TRAIN or TEST are there, and of the kind that the network takes.

    Args:
        annotated: whether they need annotations.

    Raises:
        InputError: as check_dataset and check_imagenet, a classifier without labelled images or a
            detector over them, another number of classes, or a crop larger than the image.
    """
    key, node = f"DATASETS.{side}", cfg.MODEL.CLASSIFIER
    for name in cfg.DATASETS[side]:
        labelled = is_image_folder(name)
        if not labelled and not cfg.DATASETS[f"{side}_JSON"]:  # which use_own_data has checked
            check_dataset(cfg, side, name, annotated)
        if labelled != _classifies(cfg):
            kind, allowed = (
                ("labelled images", ImageClassifier.__name__) if labelled else ("boxes", "a detector")
            )
            raise InputError(
                f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE!r}: {key} {name!r} is a set of "
                f"{kind}; allowed is {allowed}"
            )
        if not labelled:
            continue
        classes = check_imagenet(name, key)
        if len(classes) != node.NUM_CLASSES:
            raise InputError(
                f"MODEL.CLASSIFIER.NUM_CLASSES: {node.NUM_CLASSES}: {key} {name!r} has {len(classes)}"
            )
        crop, resize = cfg.INPUT.CLASSIFIER_CROP, cfg.INPUT.CLASSIFIER_TEST_RESIZE
        if not 1 <= crop <= resize:
            raise InputError(
                f"INPUT.CLASSIFIER_CROP: {crop}: allowed are 1 to {resize}, which is "
                "INPUT.CLASSIFIER_TEST_RESIZE"
            )


def processes(args: argparse.Namespace) -> int:
    """How many there are, or will be once --num-gpus has started them."""
    return max(comm.get_world_size(), (args.num_gpus or 1) * args.num_machines)


def train_config(args: argparse.Namespace) -> CfgNode:
    """The checked, frozen config of train_net.py.

    Raises:
        InputError: anything that cannot be used.
    """
    cfg = read_config(args.config_file, args.opts)
    supernet = bool(cfg.MODEL.CRNAS.SUPERNET)
    if supernet and args.eval_only:
        raise InputError(
            f"--eval-only: with MODEL.CRNAS.SUPERNET {cfg.MODEL.CRNAS.SUPERNET!r}: allowed is a "
            "fixed network; search_net.py scores the paths of a supernet"
        )
    use_own_data(cfg, train=not args.eval_only, test=not supernet, annotated=False)
    check_output(cfg.OUTPUT_DIR, args.resume or args.eval_only, TRAINING)
    if not args.eval_only:
        check_loading(cfg, processes(args))
        check_schedule(cfg)
        check_data(cfg, "TRAIN")
        if (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
            check_same_optimizer(cfg)
    check_network(cfg)
    check_weights(cfg, args.resume)
    if not supernet:
        check_data(cfg, "TEST", annotated=False)
    cfg.freeze()
    return cfg


def start_run(cfg: CfgNode, args: argparse.Namespace, quiet: bool = False) -> None:
    """Set threads, seeds and loggers, and write OUTPUT_DIR/config.yaml, by detectron2's default_setup.

    Args:
        quiet: detectron2's own lines go to OUTPUT_DIR/log.txt alone.
    """
    if cfg.NUM_THREADS > 0:
        torch.set_num_threads(cfg.NUM_THREADS)
    rank = comm.get_rank()
    if quiet:
        # detectron2 caches these calls by their arguments, so they are those of default_setup.
        for logger in (
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore"),
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank),
        ):
            for handler in logger.handlers:
                if handler.stream is sys.stdout:
                    handler.setLevel(logging.WARNING)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="crnas_d2")
    default_setup(cfg, args)
    register_own_data(cfg)  # rank 0 has read and checked it
    asked = merge_config(args.config_file, args.opts).MODEL.DEVICE
    if asked != cfg.MODEL.DEVICE and rank == 0:
        line = f"MODEL.DEVICE: {asked!r}: torch sees no CUDA GPU; running on the CPU"
        print(f"warning: {line}", file=sys.stderr, flush=True)
        write_to_log(logging.WARNING, line)
    logging.getLogger(__name__).info("%d processes on %s", comm.get_world_size(), cfg.MODEL.DEVICE)
