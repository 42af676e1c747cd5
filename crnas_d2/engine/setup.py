"""The checked config of a command line, before anything is written, and the start of a run."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from torch import nn

from crnas_d2.config import ALWAYS, RENAMED, UNTIL_SCORED, leaves, read_config
from crnas_d2.data.datasets import check_dataset, register_own_data, use_own_data
from crnas_d2.data.imagenet import check_imagenet, is_image_folder
from crnas_d2.data.loader import check_loading
from crnas_d2.engine.checkpoint import last_whole
from crnas_d2.engine.schedule import check_schedule
from crnas_d2.errors import InputError
from crnas_d2.files import EARLY, write_text, write_to_log
from crnas_d2.modeling.build import architecture_of, input_convention, stage_space_of
from crnas_d2.modeling.checkpoint.weights import check_backbone_weights, read_checkpoint
from crnas_d2.modeling.meta_arch.classifier import ImageClassifier
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def check_network(cfg: CfgNode) -> None:
    """Check that the backbone exists, its codes and space are sound, and the network can be built.

    Raises InputError: the key, its value and what is allowed.
    """
    name, freeze = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT
    supernet = cfg.MODEL.CRNAS.SUPERNET
    if name not in BACKBONE_REGISTRY or (supernet and "crnas" not in name):
        ours = ", ".join(sorted(known for known, _ in BACKBONE_REGISTRY if "crnas" in known))
        raise InputError(
            f"MODEL.BACKBONE.NAME: {name!r}: unknown, or not for a supernet; ours are {ours}"
        )
    if "crnas" not in name:
        return
    if supernet and cfg.TEST.PRECISE_BN.ENABLED:
        raise InputError("TEST.PRECISE_BN.ENABLED: True: allowed is False with a supernet")
    if freeze and not cfg.MODEL.WEIGHTS:
        raise InputError(f"MODEL.BACKBONE.FREEZE_AT: {freeze}: without MODEL.WEIGHTS allowed is 0")
    architecture_of(cfg)
    stage_space_of(cfg)
    _outline(cfg)


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
    """Check the file that a run starts from: OUTPUT_DIR's last checkpoint, or MODEL.WEIGHTS.

    Raises InputError: no such file, none undamaged, or a backbone of another network, space or input.
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


def check_output(folder: str, resume: bool, traces: Iterable[str]) -> None:
    """Raise InputError if OUTPUT_DIR is a file or, without ``resume``, holds an earlier run's files.

    ``traces``: patterns of such files.
    """
    path = Path(folder)
    if not folder or (path.exists() and not path.is_dir()):
        raise InputError(f"OUTPUT_DIR: {folder!r}: is not a folder")
    found = [file for trace in traces for file in path.glob(trace)]
    if found and not resume:
        raise InputError(
            f"OUTPUT_DIR: {folder}: holds {found[0].relative_to(path)} of an earlier run; "
            "--resume continues it, or name another folder"
        )


# Keys whose values a resumed training takes from the checkpoint's optimizer.
OPTIMIZER = (
    *("SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.WEIGHT_DECAY"),
    *("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.BIAS_LR_FACTOR"),
)


def check_same_run(cfg: CfgNode, keys: Collection[str] = ()) -> None:
    """Raise InputError if the run in OUTPUT_DIR has another value of a key.

    ``keys``: that count; by default those that --resume of a search may not change. A config.yaml that
    a kill has torn counts as far as it can be read.
    """
    path, now = Path(cfg.OUTPUT_DIR) / "config.yaml", leaves(yaml.safe_load(cfg.dump()))
    before = dict(now)
    with suppress(FileNotFoundError, yaml.YAMLError):
        written = leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
        before.update({key: value for key, value in written.items() if value is not None})
    if not keys:
        for key in sorted(RENAMED.keys() & before.keys()):
            raise InputError(f"{path}: Key {key} was renamed to {RENAMED[key]}")
        scored = any(path.parent.glob("*/journal.jsonl")) or any(path.parent.glob("*/matches"))
        may_change = ALWAYS if scored else ALWAYS + UNTIL_SCORED
        keys = [key for key in now if key not in may_change]
    for settings in (before, now):
        by_image = settings["SOLVER.LR_PER_IMAGE"] * settings["SOLVER.IMS_PER_BATCH"]
        settings["SOLVER.BASE_LR"] = by_image or settings["SOLVER.BASE_LR"]
    for key in keys:
        if before[key] != now[key]:
            raise InputError(
                f"{key}: {now[key]!r}: the run in {cfg.OUTPUT_DIR} has {before[key]!r}, which --resume "
                "keeps; to change it, start in another OUTPUT_DIR"
            )


def write_config(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/config.yaml on rank 0; the other ranks wait for it."""
    comm.synchronize()  # every rank has looked before the first one writes
    if comm.is_main_process():
        write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    comm.synchronize()


def check_data(cfg: CfgNode, side: str, annotated: bool = True) -> None:
    """Check that the data sets of DATASETS.TRAIN or TEST are there and suit the network.

    Raises InputError: as check_dataset and check_imagenet, a set for another kind of network or with
        another number of classes, or a crop larger than the image.
    """
    key, network = f"DATASETS.{side}", cfg.MODEL.META_ARCHITECTURE
    classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    crop, resize = cfg.INPUT.CLASSIFIER_CROP, cfg.INPUT.CLASSIFIER_TEST_RESIZE
    for name in cfg.DATASETS[side]:
        labelled = is_image_folder(name)
        if not labelled and not cfg.DATASETS[f"{side}_JSON"]:  # which use_own_data has checked
            check_dataset(cfg, side, name, annotated)
        if labelled != (network == ImageClassifier.__name__):
            raise InputError(
                f"MODEL.META_ARCHITECTURE: {network!r}: does not take {key} {name!r}; "
                "labelled images are for ImageClassifier, boxes for a detector"
            )
        if not labelled:
            continue
        found = len(check_imagenet(name, key))
        if found != classes:
            raise InputError(f"MODEL.CLASSIFIER.NUM_CLASSES: {classes}: {key} {name!r} has {found}")
        if crop > resize:
            raise InputError(f"INPUT.CLASSIFIER_CROP: {crop}: allowed are 1 to {resize} (TEST_RESIZE)")


def processes(args: argparse.Namespace) -> int:
    """How many there are, or will be once --num-gpus has started them."""
    return max(comm.get_world_size(), (args.num_gpus or 1) * args.num_machines)


def train_config(args: argparse.Namespace) -> CfgNode:
    """The checked, frozen config of train_net.py. Raises InputError: anything that cannot be used."""
    cfg = read_config(args.config_file, args.opts)
    supernet = bool(cfg.MODEL.CRNAS.SUPERNET)
    if supernet and args.eval_only:
        raise InputError("--eval-only: not with MODEL.CRNAS.SUPERNET; search_net.py scores its paths")
    use_own_data(cfg, train=not args.eval_only, test=not supernet, annotated=False)
    check_output(cfg.OUTPUT_DIR, args.resume or args.eval_only, ["last_checkpoint"])
    if not args.eval_only:
        check_loading(cfg, processes(args))
        check_schedule(cfg)
        check_data(cfg, "TRAIN")
        if (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
            check_same_run(cfg, OPTIMIZER)
    check_network(cfg)
    check_weights(cfg, args.resume)
    if not supernet:
        check_data(cfg, "TEST", annotated=False)
    cfg.freeze()
    return cfg


def start_run(cfg: CfgNode, args: argparse.Namespace, quiet: bool = False) -> None:
    """Set threads, seeds and loggers, and write OUTPUT_DIR/config.yaml, by detectron2's default_setup.

    ``quiet``: detectron2's own lines go to OUTPUT_DIR/log.txt alone.
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
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="crnas_d2")
    logging.getLogger().removeHandler(EARLY)
    while EARLY.buffer:  # what the checks have logged
        logger.handle(EARLY.buffer.pop(0))
    default_setup(cfg, args)
    register_own_data(cfg)  # rank 0 has read and checked it
    asked = read_config(args.config_file, args.opts, as_asked=True).MODEL.DEVICE
    if asked != cfg.MODEL.DEVICE and rank == 0:
        line = f"MODEL.DEVICE: {asked!r}: torch sees no CUDA GPU; running on the CPU"
        print(f"warning: {line}", file=sys.stderr, flush=True)
        write_to_log(logging.WARNING, line)
    logging.getLogger(__name__).info("%d processes on %s", comm.get_world_size(), cfg.MODEL.DEVICE)
