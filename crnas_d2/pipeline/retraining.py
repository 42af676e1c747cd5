"""The last step of a chain: baseline and found networks trained alike, and the table."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.config import read_config
from crnas_d2.data.datasets import use_own_data
from crnas_d2.engine.setup import check_same_run, write_config
from crnas_d2.engine.trainer import DetectionTrainer
from crnas_d2.files import write_text
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.found_config import OWN_DATA
from crnas_d2.pipeline.pretraining import pretrained
from detectron2.config import CfgNode
from detectron2.utils import comm

METRICS = ("AP", "APs", "APm", "APl")


def retrain(cfg: CfgNode, base: str, found: Sequence[str], folder: Path, pretrain: str) -> list[str]:
    """Train the baseline of ``base`` and each found.yaml, on archtrain and archval together.

    A network whose results.json is there is not trained again; one that was cut short goes on.

    Args:
        cfg: the search's config; seed, threads, device and a person's own data are taken from it.
        pretrain: path of the classification config that each network starts with; empty: none.

    Returns:
        paths of the tables.
    """
    rows = []
    for path in (base, *found):
        name = "baseline" if path == base else Path(path).stem
        run = retrain_config(cfg, path)
        # The codes are part of the folder's name: another network never takes this one's results.
        codes = str(architecture_of(run)).split("/", 1)[1].replace("/", "_")
        run.OUTPUT_DIR = str(folder / f"{name}_{codes}")
        run.freeze()
        rows.append({"network": name, **train_and_test(run, pretrain)})
    return write_tables(rows, folder) if comm.is_main_process() else []


def retrain_config(cfg: CfgNode, path: str) -> CfgNode:
    """A network's config with the search's seed, threads, device and own data; not frozen."""
    run = read_config(path, [])
    for key in OWN_DATA:
        run.DATASETS[key] = cfg.DATASETS[key]
    use_own_data(run)
    run.SEED, run.NUM_THREADS, run.MODEL.DEVICE = cfg.SEED, cfg.NUM_THREADS, cfg.MODEL.DEVICE
    return run


def train_and_test(cfg: CfgNode, pretrain: str) -> dict[str, Any]:
    """One network trained and tested, or its results.json; a row of the table."""
    path = Path(cfg.OUTPUT_DIR) / "results.json"
    check_same_run(cfg)
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    comm.synchronize()  # every process has looked before the first one writes
    write_config(cfg)
    logging.getLogger(__name__).info("training %s", path.parent)
    trainer = DetectionTrainer(pretrained(cfg, pretrain, resume=True))
    trainer.resume_or_load(resume=True)
    trainer.train()
    architecture = architecture_of(cfg)
    costs = backbone_costs(cfg)(architecture)
    row = {
        "architecture": str(architecture),
        "backbone GMACs": round(costs["macs"] / 1e9, 4),
        "backbone params (M)": round(costs["params"] / 1e6, 4),
    }
    if comm.is_main_process():
        row.update({metric: trainer.last_results["bbox"][metric] for metric in METRICS})
        write_text(path, json.dumps(row))
    comm.synchronize()
    return row


def write_tables(rows: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Print the table, and write it as table.csv."""
    print(tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="github"))
    path = folder / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [str(path)]
