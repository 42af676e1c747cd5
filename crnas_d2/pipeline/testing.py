"""The phase "test": paths of the joint supernet on the test set, against the baseline's path.

OUTPUT_DIR/test/matches/   of each path on the test set
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from crnas_d2.data.coco_json import read_coco_json
from crnas_d2.evaluation.verdict import Difference, Spread, image_noise
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.pipeline.trainings import Network
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

CAUTION = (
    "paths of one supernet: the interval knows the draw of images, but neither another supernet nor "
    "networks trained alone (SEARCH.FINALISTS)"
)


def test_paths(
    cfg: CfgNode,
    recalibration: str,
    test_set: str,
    detector: nn.Module,
    networks: Mapping[str, Network],
) -> list[dict[str, Any]]:
    """A row for each network, by name; the first one of each base config is its baseline.

    ``cfg``: of the search, whose OUTPUT_DIR gets the matches. Names of registered data sets.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.SEARCH.RACE.CONFIDENCE = str(Path(cfg.OUTPUT_DIR) / "test"), 0.0
    content = read_coco_json(MetadataCatalog.get(test_set).json_file, "DATASETS.TEST")
    scorer = build_scorer(cfg, Split(recalibration, test_set, content), detector)
    architectures = list(dict.fromkeys(network.architecture for network in networks.values()))
    scorer.ensure(architectures)
    scores = {a: found[0] for a, found in zip(architectures, scorer.scores(architectures, 0))}
    rows: list[dict[str, Any]] = []
    for name, (architecture, base) in networks.items():
        row: dict[str, Any] = {"network": name, "architecture": str(architecture)}
        row[cfg.SEARCH.EVAL.METRIC] = scores[architecture]
        baseline = next(network.architecture for network in networks.values() if network.base == base)
        if architecture != baseline:
            images = image_noise([scorer.matches(architecture)], [scorer.matches(baseline)])
            pair = [scores[architecture]], [scores[baseline]]
            row |= compared(Difference(*pair, Spread(0.0, 1), images))
        rows.append({**row, "images": scorer.images[-1]})
    return rows


def compared(found: Difference) -> dict[str, Any]:
    """Columns of a table: a network's difference to the baseline, its interval, and what it says."""
    low, high = found.known_ends
    known = {"to the baseline": found.value, "95 % low": low, "95 % high": high}
    return {**known, "verdict": found.says}
