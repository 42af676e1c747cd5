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

from crnas_d2.config import leaves, read_config
from crnas_d2.data.datasets import (
    HEADS,
    check_dataset,
    check_same_classes,
    register_own_data,
    use_own_data,
)
from crnas_d2.data.imagenet import check_imagenet, is_image_folder
from crnas_d2.data.loader import check_loading
from crnas_d2.engine.checkpoint import last_whole
from crnas_d2.engine.schedule import check_schedule
from crnas_d2.errors import InputError
from crnas_d2.files import EARLY, hold, write_text, write_to_log
from crnas_d2.keys import RESUME_ALWAYS, RESUME_UNTIL_SCORED
from crnas_d2.modeling.build import family_of, input_convention, stage_space_of
from crnas_d2.modeling.checkpoint.convert import convert
from crnas_d2.modeling.checkpoint.published import Weights, read_source
from crnas_d2.modeling.checkpoint.weights import check_backbone_weights, read_checkpoint
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

PUBLISHED = "MODEL.CRNAS.WEIGHTS"


def check_network(cfg: CfgNode) -> nn.Module | None:
    """The network with shapes and no values, quick to build; None over a backbone of detectron2's.

    Raises InputError: no such backbone, or codes, a space or other keys that it cannot be built with.
    """
    name, freeze = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT
    if name not in BACKBONE_REGISTRY or (cfg.MODEL.CRNAS.SUPERNET and "crnas" not in name):
        ours = ", ".join(sorted(known for known, _ in BACKBONE_REGISTRY if "crnas" in known))
        why = f"unknown, or not for a supernet; ours are {ours}"
        raise InputError(f"MODEL.BACKBONE.NAME: {name!r}: {why}")
    if "crnas" not in name:
        return None
    if freeze and not (cfg.MODEL.WEIGHTS or cfg.MODEL.CRNAS.WEIGHTS):
        raise InputError(f"MODEL.BACKBONE.FREEZE_AT: {freeze}: without weights allowed is 0")
    stage_space_of(cfg)
    try:
        with torch.device("meta"):
            return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    except InputError:
        raise
    except Exception as error:  # builders may raise any
        text = f"{type(error).__name__} {' '.join(str(error).split())}"
        what = f"{cfg.MODEL.META_ARCHITECTURE!r}: cannot be built over {name!r} with these keys"
        raise InputError(f"MODEL.META_ARCHITECTURE: {what}: {text}") from error


def check_weights(cfg: CfgNode, resume: bool) -> tuple[str, bool]:
    """The file that a run starts from, MODEL.WEIGHTS or, if it resumes, OUTPUT_DIR's last checkpoint.

    Returns its path, and whether the run resumes: ``resume``, and there is a checkpoint. Without a
    path, MODEL.CRNAS.WEIGHTS is checked.

    Raises InputError: no such file, none undamaged, or a backbone of another network, space or input.
    """
    path, key = cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS"
    resumes = resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file()
    if resumes:
        path, key = last_whole(cfg.OUTPUT_DIR), "--resume"
    published = "" if path else cfg.MODEL.CRNAS.WEIGHTS
    for named, file in ((key, path), (PUBLISHED, published)):
        if file and "://" not in file and not os.path.isfile(file):
            raise InputError(f"{named}: {file}: no such file")
    network = check_network(cfg) if path or published else None
    if published:
        if network is None:
            name = cfg.MODEL.BACKBONE.NAME
            raise InputError(f"{PUBLISHED}: {published}: is for our backbones only, not for {name!r}")
        published_weights(cfg, network.backbone)
    elif network is not None:
        check_backbone_weights(network.backbone, path, key, input_convention(cfg))
    elif path.endswith(".pth") and "://" not in path:
        read_checkpoint(path, key)
    return path, resumes


def published_weights(cfg: CfgNode, backbone: nn.Module) -> tuple[Weights, dict[str, str]]:
    """``convert`` of MODEL.CRNAS.WEIGHTS; an InputError if they do not fit."""
    source = read_source(cfg.MODEL.CRNAS.WEIGHTS, PUBLISHED)
    return convert(source, backbone, family_of(cfg), input_convention(cfg))


def check_output(folder: str, resume: bool, traces: Iterable[str]) -> None:
    """Raise InputError if OUTPUT_DIR is a file or, without ``resume``, holds an earlier run's files.

    ``traces``: patterns of such files.
    """
    path = Path(folder)
    if not folder or (path.exists() and not path.is_dir()):
        raise InputError(f"OUTPUT_DIR: {folder!r}: is not a folder")
    found = [file for trace in traces for file in path.glob(trace)]
    if found and not resume:
        what = f"holds {found[0].relative_to(path)} of an earlier run"
        raise InputError(f"OUTPUT_DIR: {folder}: {what}; --resume continues it, or name another folder")


# Keys whose values a resumed training takes from the checkpoint's optimizer.
OPTIMIZER = (
    *("SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.WEIGHT_DECAY"),
    *("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.BIAS_LR_FACTOR"),
)


def check_same_run(cfg: CfgNode, keys: Collection[str] = (), free: Collection[str] = ()) -> None:
    """Raise InputError if the run in OUTPUT_DIR has another value of a key.

    ``keys``: to compare; by default those that --resume of a search may not change, without those that
    are ``free``. A config.yaml that a kill has torn counts as far as it can be read.
    """
    path, now = Path(cfg.OUTPUT_DIR) / "config.yaml", leaves(yaml.safe_load(cfg.dump()))
    before = dict(now)
    with suppress(FileNotFoundError, yaml.YAMLError):
        written = leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
        before.update({key: value for key, value in written.items() if value is not None})
    if not keys:
        scored = any(path.parent.glob("[sd]*/journal.jsonl")) or any(path.parent.glob("[sd]*/matches"))
        may_change = {*free, *RESUME_ALWAYS, *(() if scored else RESUME_UNTIL_SCORED)}
        keys = [key for key in now if key not in may_change]
    for settings in (before, now):
        by_image = settings["SOLVER.LR_PER_IMAGE"] * settings["SOLVER.IMS_PER_BATCH"]
        settings["SOLVER.BASE_LR"] = by_image or settings["SOLVER.BASE_LR"]
    for key in keys:
        if before[key] != now[key]:
            raise InputError(
                f"{key}: {now[key]!r}: the run in {cfg.OUTPUT_DIR} has {before[key]!r}, which --resume "
                "keeps; set it back, or start in another OUTPUT_DIR"
            )


def write_config(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/config.yaml on rank 0; the other ranks wait for it."""
    comm.synchronize()  # every rank has looked before the first one writes
    if comm.is_main_process():
        write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    comm.synchronize()


def check_data(cfg: CfgNode, side: str, annotated: bool = True, trains: bool = True) -> None:
    """Raise InputError unless the sets of DATASETS.TRAIN or TEST are sound and suit the network.

    ``trains``: on DATASETS.TRAIN, whose classes those of a test set have to be.
    """
    key, network = f"DATASETS.{side}", cfg.MODEL.META_ARCHITECTURE
    classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    crop, resize = cfg.INPUT.CLASSIFIER_CROP, cfg.INPUT.CLASSIFIER_TEST_RESIZE
    for name in cfg.DATASETS[side]:
        labelled = is_image_folder(name)
        if not labelled and not cfg.DATASETS[f"{side}_JSON"]:  # which use_own_data has checked
            check_dataset(cfg, side, name, annotated)
        if labelled != (network == "ImageClassifier"):
            what = f"{network!r}: does not take {key} {name!r}"
            why = "labelled images are for ImageClassifier, boxes for a detector"
            raise InputError(f"MODEL.META_ARCHITECTURE: {what}; {why}")
        if labelled and (found := len(check_imagenet(name, key))) != classes:
            raise InputError(f"MODEL.CLASSIFIER.NUM_CLASSES: {classes}: {key} {name!r} has {found}")
        if labelled and crop > resize:
            raise InputError(f"INPUT.CLASSIFIER_CROP: {crop}: allowed are 1 to {resize} (TEST_RESIZE)")
    if side == "TEST" and trains and network in HEADS:
        check_same_classes(cfg)


def train_config(args: argparse.Namespace) -> CfgNode:
    """The checked, frozen config of train_net.py. Raises InputError: anything that cannot be used."""
    cfg = read_config(args.config_file, args.opts)
    supernet = bool(cfg.MODEL.CRNAS.SUPERNET)
    if supernet and args.eval_only:
        raise InputError("--eval-only: not with MODEL.CRNAS.SUPERNET; search_net.py scores its paths")
    use_own_data(cfg, train=not args.eval_only, test=not supernet, annotated=False)
    check_output(cfg.OUTPUT_DIR, args.resume or args.eval_only, ["last_checkpoint"])
    if Path(cfg.OUTPUT_DIR, "splits").is_dir():  # a run's config.yaml would replace the search's
        raise InputError(f"OUTPUT_DIR: {cfg.OUTPUT_DIR}: holds a search; name another folder")
    if not args.eval_only:
        check_loading(cfg)
        check_schedule(cfg)
        check_data(cfg, "TRAIN")
        if (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
            check_same_run(cfg, OPTIMIZER)
    check_network(cfg)
    weights, _ = check_weights(cfg, args.resume)
    if args.eval_only and not weights:
        raise InputError("MODEL.WEIGHTS: '': with --eval-only weights are needed, or --resume")
    if not supernet:
        check_data(cfg, "TEST", annotated=False, trains=not args.eval_only)
    cfg.freeze()
    return cfg


def start_run(cfg: CfgNode, args: argparse.Namespace, quiet: bool = False) -> None:
    """Set threads, seeds and loggers, and write OUTPUT_DIR/config.yaml, by detectron2's default_setup.

    Raises InputError: another run writes in OUTPUT_DIR.

    ``quiet``: detectron2's own lines go to OUTPUT_DIR/log.txt alone.
    """
    if cfg.NUM_THREADS > 0:
        torch.set_num_threads(cfg.NUM_THREADS)
    rank = comm.get_rank()
    if rank == 0:
        hold(cfg.OUTPUT_DIR)
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
