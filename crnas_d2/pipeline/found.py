"""What a search finds: found.yaml, a config for train_net.py, and found.pth, weights for it.

The weights are the best finalist's, trained alone; without finalists those of the path in the supernet,
with its BatchNorm statistics, where the supernet has the widths of FOUND_BASE's network.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import leaves, read_config
from crnas_d2.data.datasets import HEADS
from crnas_d2.engine.setup import check_network
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.files import write_text
from crnas_d2.modeling.checkpoint.weights import difference
from crnas_d2.pipeline.configs import OWN_DATA, network_config
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.weights import write_weights
from detectron2.config import CfgNode
from detectron2.utils import comm

# Keys of MODEL that a search's command line has for itself.
OF_THE_RUN = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.CRNAS.STAGE_SPACE", "MODEL.CRNAS.SHARED")
FOUND, BASELINE = "found", "baseline"  # names of files of weights


def write_found(path: Path, cfg: CfgNode, base: str, architecture: Architecture, comment: str) -> None:
    """Write found.yaml: an architecture over its base config, and your own data; ``comment`` on top.

    Over the search's own config also what its KEY VALUE pairs change in the network and its training.
    With SEARCH.INHERIT training it starts from found.pth.
    """
    crnas: dict[str, Any] = {
        "FAMILY": architecture.family,
        "STAGE_CODE": list(architecture.stage_code),
        "DILATION_CODE": list(architecture.dilation_code),
    }
    if published := cfg.MODEL.CRNAS.WEIGHTS:
        crnas["WEIGHTS"] = published if "://" in published else str(Path(published).resolve())
    content: dict[str, Any] = {"_BASE_": str(Path(base).resolve()), "MODEL": {"CRNAS": crnas}}
    weights = path.with_suffix(".pth")
    if cfg.SEARCH.INHERIT and weights.is_file():  # its schedule is too short for random weights
        content["MODEL"]["WEIGHTS"] = str(weights.resolve())
    own = {key: str(Path(cfg.DATASETS[key]).resolve()) for key in OWN_DATA if cfg.DATASETS[key]}
    if own:
        content["DATASETS"] = own if cfg.DATASETS.TEST_JSON else {**own, "TEST": []}
        for head in HEADS.values():
            content["MODEL"][head] = {"NUM_CLASSES": cfg.MODEL[head].NUM_CLASSES}
    if not cfg.SEARCH.FOUND_BASE:
        theirs = leaves(read_config(base))
        for key, value in leaves(cfg).items():
            *nodes, last = key.split(".")
            is_of_search = key in OF_THE_RUN or nodes[:1] in ([], ["SEARCH"])
            if value != theirs[key] and not is_of_search and not (own and nodes == ["DATASETS"]):
                node = content
                for name in nodes:
                    node = node.setdefault(name, {})
                node.setdefault(last, value)
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    write_text(path, lines + text)


def write_path_weights(
    plan: Plan, budget: Budget, scorer: ArchvalScorer, architecture: Architecture, name: str = FOUND
) -> None:
    """Write found.pth with a candidate's weights, or log why the found network cannot have them.

    ``name``: of another file, such as the baseline's, which it is compared with.
    """
    cfg = network_config(plan.cfg, plan.base_of(budget), architecture)
    path = Path(plan.cfg.OUTPUT_DIR, f"{name}{plan.suffix(budget)}.pth")
    state, network = scorer.subnet_state(architecture), check_network(cfg)
    assert network is not None
    differs = difference(network.state_dict(), state)
    if differs:
        text = "%s: none: the supernet's weights are not those of FOUND_BASE's network: %s"
        logging.getLogger(__name__).info(text, path.name, differs)
    if comm.is_main_process():
        path.unlink(missing_ok=True)  # of an earlier run with other keys
        if not differs:
            write_weights(path, cfg, state, f"{architecture}, a path out of the supernet")
