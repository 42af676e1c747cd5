"""What ends a run: noise, verdicts, and tables of baseline, stage winner and found network.

OUTPUT_DIR/results.json   all of it
OUTPUT_DIR/table.csv      of networks trained alone, a row a seed, and one for each network's mean
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.verdict import Difference, Spread, image_noise
from crnas_d2.files import write_text
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.testing import CAUTION, compared
from crnas_d2.pipeline.trainings import WHOLE, Trainings

Row = dict[str, Any]
PATHS, NETWORKS = "paths on the test set", "networks on the test set"  # in results.json
MEANS = (None, "mean")  # rows that are printed: not those of a seed


def retrain(
    plan: Plan, trainings: Trainings, networks: Mapping[str, tuple[Architecture, str]]
) -> list[Row]:
    """Train networks, by name with their base configs, on archtrain and archval, and test them.

    The first one is the baseline. Seeds go round: after an interruption every network has about as
    many. Rows of the table, one a seed and a mean after them.
    """
    seeds = range(plan.cfg.SEARCH.RETRAIN.SEEDS)
    for number in seeds:
        for architecture, base in networks.values():
            trainings(architecture, base, WHOLE, number)
    spread = Spread.of(trainings.spreads(WHOLE))
    rows = []
    for name, (architecture, base) in networks.items():
        baseline = next((a for a, of in networks.values() if of == base), architecture)
        rows += _rows(trainings, name, architecture, baseline, spread)
    return rows


def _rows(
    trainings: Trainings, name: str, architecture: Architecture, baseline: Architecture, spread: Spread
) -> list[Row]:
    records = trainings.of(architecture, WHOLE)
    costs = {
        "backbone GMACs": round(records[0]["macs"] / 1e9, 4),
        "backbone params (M)": round(records[0]["params"] / 1e6, 4),
    }
    known = {"network": name, "architecture": str(architecture)}
    rows = [{**known, "seed": i, **r["metrics"], **costs} for i, r in enumerate(records)]
    metrics = {key: [r["metrics"].get(key) for r in records] for key in records[0]["metrics"]}
    mean = {
        **known,
        "seed": "mean",
        **{k: fmean(v) for k, v in metrics.items() if None not in v},
    }
    scores = [record["score"] for record in records]
    if len(scores) > 1:
        mean["spread of seeds"] = stdev(scores)
    if architecture != baseline:
        theirs = [record["score"] for record in trainings.of(baseline, WHOLE)]
        ours, its = (trainings.matches(network, WHOLE) for network in (architecture, baseline))
        images = image_noise(ours, its)
        mean |= compared(Difference(scores, theirs, spread, images))
    return [*rows, {**mean, **costs}]


def write_results(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Print the tables and the verdicts; results.json and, after retraining, table.csv."""
    tables = {name: rows for name, rows in results.items() if name.endswith("test set")}
    for name, rows in tables.items():
        means = [{k: v for k, v in r.items() if k != "seed"} for r in rows if r.get("seed") in MEANS]
        print(f"{name}:", tabulate(means, headers="keys", floatfmt=".2f", tablefmt="github"), sep="\n")
    for name, verdict in results["verdicts"].items():
        print(f"{name}: {verdict['found']}: {verdict['text']}")
    if PATHS in tables:
        print(CAUTION)
    files = [folder / "results.json"]
    write_text(files[0], json.dumps(results, indent=1))
    if rows := tables.get(NETWORKS):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        files.append(folder / "table.csv")
        write_text(files[1], text.getvalue())
    return files
