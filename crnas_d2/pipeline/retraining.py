"""The phase "retrain": baselines and found networks trained alike, tested, and put into a table.

OUTPUT_DIR/retrain/found_CODES/    checkpoints, results.json; also of each baseline
OUTPUT_DIR/retrain/table.csv
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.engine.setup import check_same_run
from crnas_d2.files import write_text
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.configs import network_config
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.training import train
from detectron2.config import CfgNode
from detectron2.utils import comm


def retrain(plan: Plan, found: Sequence[str]) -> str:
    """Train base configs and found.yamls on archtrain and archval together; the table's path.

    A network whose results.json is there is not trained again; an interrupted training resumes.
    """
    rows, folder, bases = [], Path(plan.cfg.OUTPUT_DIR) / "retrain", list(plan.bases.values())
    for path in dict.fromkeys([*bases, *found]):
        name = "baseline" if path in bases else Path(path).stem
        cfg = network_config(plan.cfg, path)
        # The codes are part of the folder's name: no network takes the results of another one.
        codes = str(architecture_of(cfg)).split("/", 1)[1].replace("/", "_")
        cfg.OUTPUT_DIR = str(folder / f"{name}_{codes}")
        cfg.freeze()
        rows.append({"network": name, **train_and_test(plan, cfg)})
    if comm.is_main_process():
        write_table(rows, folder / "table.csv")
    return str(folder / "table.csv")


def train_and_test(plan: Plan, cfg: CfgNode) -> dict[str, Any]:
    """Train and test a network, or read its results.json: a row of the table, complete on rank 0."""
    path = Path(cfg.OUTPUT_DIR) / "results.json"
    check_same_run(cfg)
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    trainer = train(cfg, plan.pretrain, resume=True)
    architecture, wanted = architecture_of(cfg), plan.cfg.SEARCH.EVAL
    costs = backbone_costs(cfg)(architecture)
    row = {
        "architecture": str(architecture),
        "backbone GMACs": round(costs["macs"] / 1e9, 4),
        "backbone params (M)": round(costs["params"] / 1e6, 4),
    }
    if comm.is_main_process():
        row.update(measured(trainer.last_results, wanted.TASK, wanted.METRIC))
        write_text(path, json.dumps(row))
    comm.synchronize()
    return row


def measured(results: Mapping[str, Mapping[str, float]], task: str, metric: str) -> dict[str, float]:
    """What an evaluator found, the search's metric first, without single classes.

    Metrics of other tasks carry the task's name; Pascal VOC's evaluator has AP, AP50, AP75 of boxes.
    """
    first = task if task in results else next(iter(results))
    row = {metric: results[first][metric]} if metric in results[first] else {}
    for name, metrics in sorted(results.items(), key=lambda item: item[0] != first):
        for key, value in metrics.items():
            if "-" not in key:  # "AP-person"
                row.setdefault(key if name == first else f"{name} {key}", value)
    return row


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Print the table, and write it as CSV."""
    print(tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="github"))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
