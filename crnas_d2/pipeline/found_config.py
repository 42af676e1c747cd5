"""found.yaml: the found network as a small config, based on the config it is to be trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from crnas_d2.architecture import Architecture
from crnas_d2.files import write_text
from detectron2.config import CfgNode

OWN_DATA = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")


def found_config(cfg: CfgNode, base: str, architecture: Architecture) -> dict[str, Any]:
    """The content of found.yaml.

    Args:
        cfg: the search's config; a person's own data set goes with the network.
        base: path of the config that found.yaml is based on.
    """
    content: dict[str, Any] = {
        "_BASE_": str(Path(base).resolve()),
        "MODEL": {
            "CRNAS": {
                "FAMILY": architecture.family,
                "STAGE_CODE": list(architecture.stage_code),
                "DILATION_CODE": list(architecture.dilation_code),
            }
        },
    }
    own = {key: str(Path(cfg.DATASETS[key]).resolve()) for key in OWN_DATA if cfg.DATASETS[key]}
    if own:
        content["DATASETS"] = own if cfg.DATASETS.TEST_JSON else {**own, "TEST": []}
        for head in ("ROI_HEADS", "RETINANET"):
            content["MODEL"][head] = {"NUM_CLASSES": cfg.MODEL[head].NUM_CLASSES}
    return content


def write_found(path: Path, content: dict[str, Any], comment: str) -> None:
    """Write the config, with one line of comment on top."""
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    write_text(path, f"# {comment}\n{text}")
