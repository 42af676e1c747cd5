"""Our keys (keys.py) in detectron2's config, and ``read_config``, by which our scripts read one."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import yaml

from crnas_d2.data import datasets, imagenet  # noqa: F401  (register our data sets)
from crnas_d2.errors import InputError
from crnas_d2.keys import KEYS, at_least
from crnas_d2.modeling import build  # noqa: F401  (registers our backbones)
from crnas_d2.modeling.meta_arch import classifier  # noqa: F401  (registers the classifier)
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

# Ours, and what our scripts allow of those keys of detectron2 that would fail in the middle of a run.
CHECKS = {
    **{name: key.check for name, key in KEYS.items() if key.check},
    **dict.fromkeys(("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"), at_least(1)),
    **{"INPUT.MIN_SIZE_TRAIN": at_least(1), "INPUT.MIN_SIZE_TEST": at_least(0)},  # 0: not resized
    **{"MODEL.FPN.OUT_CHANNELS": at_least(1), "MODEL.PIXEL_STD": at_least(1e-6)},
    **{"SOLVER.CHECKPOINT_PERIOD": at_least(1), "SOLVER.MAX_ITER": at_least(1)},
    "DATALOADER.NUM_WORKERS": at_least(0),
}


def add_crnas_config(cfg: CfgNode) -> None:
    """Add our keys to a detectron2 config, in place; none of its own defaults changes."""
    for name, key in KEYS.items():
        *nodes, last = name.split(".")
        node = cfg
        for part in nodes:
            node = node.setdefault(part, CfgNode())
        node[last] = key.default


def read_config(config_file: str, opts: Sequence[str] = (), as_asked: bool = False) -> CfgNode:
    """detectron2's config with our keys, from a file and KEY VALUE pairs, checked; not frozen.

    MODEL.DEVICE is cpu where cuda is asked for and torch sees no GPU, unless ``as_asked``.
    Of a schedule in epochs and detectron2's keys for the same, the one given last counts: those of a
    config come after its ``_BASE_``, and KEY VALUE pairs after the file.

    Raises InputError: no such file, an unknown key, a value of another type or one that is not allowed.
    """
    cfg = get_cfg()
    add_crnas_config(cfg)
    layers = [set(leaves(cfg))]
    source = f"--config-file: {config_file}"
    try:
        if config_file:
            layers += _keys_by_layer(config_file)
            cfg.merge_from_file(config_file)
    except FileNotFoundError as error:
        raise InputError(f"{source}: {error.filename}: no such file") from error
    except Exception as error:  # of several kinds, from yacs, yaml and the file
        raise InputError(f"{source}: {_said(error, cfg)}") from error
    _merge_pairs(cfg, list(opts))
    layers.append(set(opts[::2]))
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise InputError(f"MODEL.DEVICE: {cfg.MODEL.DEVICE}: cpu or cuda is needed") from error
    last = {key: number for number, keys in enumerate(layers) for key in keys}
    if last["SOLVER.MAX_ITER"] > last["SOLVER.EPOCHS"]:
        cfg.SOLVER.EPOCHS, cfg.SOLVER.STEP_EPOCHS = 0, ()
    if cfg.SOLVER.EPOCHS and last["SOLVER.STEPS"] > last["SOLVER.EPOCHS"]:
        why = f"the schedule is {cfg.SOLVER.EPOCHS} epochs; STEP_EPOCHS is needed, or MAX_ITER, too"
        raise InputError(f"SOLVER.STEPS: {tuple(cfg.SOLVER.STEPS)}: {why}")
    if last["SOLVER.BASE_LR"] > last["SOLVER.LR_PER_IMAGE"]:
        cfg.SOLVER.LR_PER_IMAGE = 0.0
    values = leaves(cfg)
    for name, check in CHECKS.items():
        entries = values[name] if isinstance(values[name], list) else [values[name]]
        if not (entries and all(map(check.accepts, entries))):
            raise InputError(f"{name}: {values[name]!r}: {check.allowed} is needed")
    if cfg.MODEL.DEVICE.startswith("cuda") and not (as_asked or torch.cuda.is_available()):
        cfg.MODEL.DEVICE = "cpu"  # start_run warns of it
    return cfg


def _merge_pairs(cfg: CfgNode, opts: list[Any]) -> None:
    """One by one, so that an error names the pair that it is of."""
    for key, *value in (opts[i : i + 2] for i in range(0, len(opts), 2)):
        if not value:
            name, is_pair, given = str(key).partition("=")
            why = f"write {name} {given}" if is_pair else "has no value; KEY VALUE pairs are needed"
            raise InputError(f"{key}: {why}")
        try:
            cfg.merge_from_list([key, *value])
        except Exception as error:  # of several kinds, from yacs and its parser of values
            raise InputError(f"{key}: {value[0]}: {_said(error, cfg, str(key))}") from error


def _said(error: Exception, cfg: CfgNode, pair: str = "") -> str:
    """An error of yacs in one line: what key or type it should be. ``pair``: the key that is known."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    if found := re.search(r"Non-existent(?: config)? key: (\S+)", text):
        alike = difflib.get_close_matches(found[1], leaves(cfg), 1, 0.8)
        what = "no such key" if found[1] == pair else f"no such key: {found[1]}"
        return what + (f"; did you mean {alike[0]}?" if alike else "")
    if found := re.search(r"Type mismatch \(<class '(\w+)'> .*config key: (\S+)", text):
        kinds = {"tuple": 'a list, as "(1, 2)", or "(1,)" of one', "list": 'a list, as "[1, 2]"'}
        needed = kinds.get(found[1], "True or False" if found[1] == "bool" else f"a {found[1]}")
        return f"{needed} is needed" if found[2] == pair else f"{found[2]} takes {needed}"
    return text


def _keys_by_layer(config_file: str) -> Iterator[set[str]]:
    """The keys that each ``_BASE_`` of a config file sets, the deepest first, then its own."""
    with PathManager.open(config_file, "r", encoding="utf-8") as file:
        content = dict(yaml.load(file, Loader=yaml.BaseLoader) or {})  # keys alone: no tag is run
    bases = content.pop("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        is_address = base.startswith(("https://", "http://"))
        folder = "" if is_address else os.path.dirname(config_file)
        yield from _keys_by_layer(os.path.join(folder, os.path.expanduser(base)))
    yield set(leaves(content))


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config's values by their dotted keys; tuples as lists."""
    if not isinstance(node, dict):
        return {prefix: list(node) if isinstance(node, tuple) else node}
    found = {}
    for name, child in node.items():
        found.update(leaves(child, f"{prefix}.{name}" if prefix else str(name)))
    return found
