#!/usr/bin/env python
"""Print docs/MODEL_ZOO.md: every config of a network, what it computes, and the paper's AP for it.

python tools/model_zoo.py > docs/MODEL_ZOO.md
"""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean
from typing import Any

from flops import report
from tabulate import tabulate

from crnas_d2.config import read_config
from crnas_d2.modeling.build import architecture_of

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Model zoo

Every config of a network. Multiply-accumulates and parameters are those of the whole network at
the size of its test images, counted by `tools/flops.py`; classifiers see 224x224. *Paper* is what
the paper prints: box AP on COCO minival (Tables 1, 4, 7, 8, 9), of Mask R-CNN box / mask AP
(Table 3), AP50 on VOC 2007 (Table 2). *Ours* is the mean AP on the test set of our own trainings,
with their number; those of a `_tuned` network started from its path in a supernet of
search_inherit.yaml, which the config alone does not repeat. **No network of ours has been trained
on COCO, VOC or ImageNet**, so there are no weights to download; what was trained on small data is
in [RESULTS.md](RESULTS.md) and [EVIDENCE.md](EVIDENCE.md). How to train those of the paper:
[PAPER.md](PAPER.md).
Made by `python tools/model_zoo.py > docs/MODEL_ZOO.md`."""
TITLES = {
    "COCO-Detection": "COCO, boxes",
    "COCO-InstanceSegmentation": "COCO, boxes and masks",
    "PascalVOC-Detection": "Pascal VOC",
    "ImageNet-Classification": "ImageNet",
    "BCCD": "BCCD, at a quarter of the width",
    "Composites": "Composites, at a quarter of the width",
    "Shapes": "Generated shapes",
}
PAPER = {
    "COCO-Detection": {
        **{"faster_rcnn_MNV2_FPN_1x": "32.2", "faster_rcnn_CR_MNV2_FPN_1x": "33.9"},
        **{"faster_rcnn_R_18_FPN_1x": "32.1", "faster_rcnn_CR_R_18_FPN_1x": "33.8"},
        **{"faster_rcnn_R_50_FPN_1x": "36.4", "faster_rcnn_CR_R_50_FPN_1x": "38.3"},
        **{"faster_rcnn_R_101_FPN_1x": "38.6", "faster_rcnn_CR_R_101_FPN_1x": "40.2"},
        **{"faster_rcnn_X_50_32x4d_FPN_1x": "37.9", "faster_rcnn_X_101_32x4d_FPN_1x": "40.6"},
        **{"faster_rcnn_SCR_MNV2_FPN_1x": "33.5", "faster_rcnn_SCR_R_18_FPN_1x": "33.4"},
        **{"faster_rcnn_SCR_R_50_FPN_1x": "37.4", "faster_rcnn_SCR_R_101_FPN_1x": "39.5"},
        **{"faster_rcnn_SCR_X_50_32x4d_FPN_1x": "38.9", "faster_rcnn_SCR_X_101_32x4d_FPN_1x": "41.5"},
        **{"faster_rcnn_R_50_FPN_2x": "37.6", "faster_rcnn_CR_R_50_FPN_2x": "39.3"},
        **{"faster_rcnn_R_101_FPN_2x": "39.8", "faster_rcnn_CR_R_101_FPN_2x": "41.2"},
        **{"faster_rcnn_R_50_NASFPN_1x": "39.6", "faster_rcnn_CR_R_50_NASFPN_1x": "41.0"},
    },
    "COCO-InstanceSegmentation": {
        **{"mask_rcnn_MNV2_FPN_1x": "33.1 / 30.6", "mask_rcnn_CR_MNV2_FPN_1x": "34.6 / 31.8"},
        **{"mask_rcnn_R_50_FPN_1x": "37.6 / 33.9", "mask_rcnn_CR_R_50_FPN_1x": "39.1 / 35.2"},
        **{"mask_rcnn_R_101_FPN_1x": "39.7 / 35.6", "mask_rcnn_CR_R_101_FPN_1x": "41.5 / 36.7"},
        "cascade_mask_rcnn_R_101_FPN_20ep": "43.3",
        "cascade_mask_rcnn_CR_R_101_FPN_20ep": "44.5",
    },
    "PascalVOC-Detection": {
        **{"faster_rcnn_R_50_FPN_18ep": "84.1", "faster_rcnn_CR_R_50_FPN_18ep": "85.1"},
        **{"faster_rcnn_R_101_FPN_18ep": "85.8", "faster_rcnn_CR_R_101_FPN_18ep": "86.5"},
    },
}

# Rows of docs/results with the config's architecture: what it gave.
OURS = {
    ("Composites", "faster_rcnn_R_18"): "ranking_composites.csv",
    ("Composites", "faster_rcnn_R_18_tuned"): "searches_composites.csv",
    ("Shapes", "faster_rcnn_R_18_tuned"): "searches_shapes.csv",
}


def ours(path: Path) -> str:
    """The mean AP and the number of our trainings."""
    if (name := OURS.get((path.parent.name, path.stem))) is None:
        return ""
    architecture = str(architecture_of(read_config(str(path))))
    with (ROOT / "docs" / "results" / name).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["architecture"] == architecture]
    scores = [float(row["AP"]) for row in rows if row.get("network", "baseline") == "baseline"]
    return f"{fmean(scores):.1f} ({len(scores)})"


def configs(folder: str) -> list[Path]:
    """Those of networks: no base config, and no search."""
    paths = sorted((ROOT / "configs" / folder).glob("*.yaml"))
    return [path for path in paths if not path.name.startswith(("Base", "search"))]


def codes(path: Path) -> str:
    """The stage code and, where any rate is above 1, the dilation code."""
    architecture = architecture_of(read_config(str(path)))
    text = str(architecture).partition("/")[2]
    return text if any(architecture.dilation_code) else text.partition("/")[0]


def row(path: Path) -> dict[str, Any]:
    counted, known = report(str(path)), PAPER.get(path.parent.name, {})
    return {
        "config": f"[{path.stem}](../configs/{path.parent.name}/{path.name})",
        "codes": codes(path),
        "GMACs": f"{counted['macs_g']:.2f}",
        "parameters (M)": f"{counted['params_m']:.2f}",
        "paper": known.get(path.stem, ""),
        "ours": ours(path),
    }


if __name__ == "__main__":
    print(HEAD)
    for folder, title in TITLES.items():
        rows = [row(path) for path in configs(folder)]
        kept = [{k: v for k, v in row.items() if any(r[k] for r in rows)} for row in rows]
        print(f"\n## {title}\n")
        print(tabulate(kept, headers="keys", tablefmt="github", disable_numparse=True))
