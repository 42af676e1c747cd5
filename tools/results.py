#!/usr/bin/env python
"""Collect finished trainings into a CSV, one row each, and print mean and spread over the seeds.

    python tools/results.py --csv docs/results/bccd.csv [baseline=output/bccd/baseline-0 ...]

NAME=FOLDER adds the row of a run of train_net.py: its OUTPUT_DIR. A row that is there already (same
name and seed) is replaced. Without runs the CSV is only read.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tabulate import tabulate

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.config import read_config
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_csv
from crnas_d2.modeling.build import architecture_of
from detectron2.config import CfgNode

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # Pascal VOC has the first three
KEY = ("network", "seed")


def finished(folder: Path, wanted: Collection[str]) -> tuple[CfgNode, dict[str, Any]]:
    """The config of a run of train_net.py, and the last line with a metric that is ``wanted``.

    Raises InputError: the folder holds no finished one, or one of a backbone that is not ours.
    """
    cfg = read_config(str(folder / "config.yaml"), [])
    if "crnas" not in (name := cfg.MODEL.BACKBONE.NAME):
        raise InputError(f"{folder}: MODEL.BACKBONE.NAME: {name!r}: a backbone of ours is needed")
    metrics, final = folder / "metrics.json", folder / "model_final.pth"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    whole = (json.loads(line) for line in lines if line.endswith("}"))  # not cut off by a kill
    results = [line for line in whole if not line.keys().isdisjoint(wanted)]
    if not results or not final.is_file():
        named = " or ".join(wanted)
        raise InputError(f"{final}, {named} in {metrics}: not there; a finished run is needed")
    return cfg, results[-1]


def row_of(name: str, folder: Path) -> dict[str, Any]:
    """Of a finished run of a detector."""
    cfg, result = finished(folder, ["bbox/AP"])
    architecture = architecture_of(cfg)
    costs = backbone_costs(cfg)(architecture)
    row = {
        "network": name,
        "seed": cfg.SEED,
        "architecture": str(architecture),
        "backbone_gmacs": round(costs["macs"] / 1e9, 4),
        "backbone_mparams": round(costs["params"] / 1e6, 4),
        "iterations": result["iteration"],  # MAX_ITER says nothing where EPOCHS is set
    }
    found = {m: result[f"bbox/{m}"] for m in METRICS if f"bbox/{m}" in result}
    return {**row, **{m: round(value, 3) for m, value in found.items()}}


def read_rows(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The CSV's rows by network and seed; none where there is no file."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {tuple(row[key] for key in KEY): row for row in csv.DictReader(file)}


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean and sample standard deviation over the seeds, a line a network, as Markdown."""
    networks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        networks.setdefault(row["network"], []).append(row)
    table = []
    for name, runs in networks.items():
        line = {k: runs[0][k] for k in ("architecture", "backbone_gmacs", "backbone_mparams")}
        for metric in METRICS:
            values = [float(run[metric]) for run in runs if run.get(metric)]
            if not values:
                continue
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            line[metric] = f"{statistics.mean(values):.2f}{spread}"
        table.append({"network": name, "seeds": len(runs), **line})
    return tabulate(table, headers="keys", tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("runs", nargs="*", metavar="NAME=FOLDER")
    args = parser.parse_args()
    rows = read_rows(args.csv)
    for run in args.runs:
        name, is_pair, folder = run.partition("=")
        if not is_pair:
            raise InputError(f"{run}: NAME=FOLDER is needed")
        row = {key: str(value) for key, value in row_of(name, Path(folder)).items()}
        rows[tuple(row[key] for key in KEY)] = row
    ordered = [rows[key] for key in sorted(rows)]
    if args.runs:
        write_csv(args.csv, ordered)
    print(summary(ordered))


if __name__ == "__main__":
    run_tool(main)
