"""The table that ends a run: baseline, stage winner and found network, retrained with several seeds.

OUTPUT_DIR/table.csv      a row for each network and seed, and one for each network's mean
OUTPUT_DIR/results.json   the same, with noise and verdicts
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

from crnas_d2.architecture import Architecture
from crnas_d2.evaluation.verdict import Difference, Spread, image_noise
from crnas_d2.files import write_text
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.trainings import WHOLE, Trainings

Row = dict[str, Any]


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
        mean["to the baseline"] = str(Difference(scores, theirs, spread, images))
    return [*rows, {**mean, **costs}]


def write_table(folder: Path, rows: Sequence[Row], **more: Any) -> None:
    """Print the means, and write table.csv and results.json."""
    means = [{k: v for k, v in row.items() if k != "seed"} for row in rows if row["seed"] == "mean"]
    print(tabulate(means, headers="keys", floatfmt=".2f", tablefmt="github"))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "table.csv", text.getvalue())
    write_text(folder / "results.json", json.dumps({"rows": list(rows), **more}, indent=1))
