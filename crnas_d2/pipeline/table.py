"""What ends a run: noise, verdicts, and tables of baseline, stage winner and found network.

OUTPUT_DIR/results.json   all of it
OUTPUT_DIR/table.csv      of networks trained alone, a row a seed, and one for each network's mean
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError
from crnas_d2.evaluation.verdict import Difference, Spread, image_noise
from crnas_d2.files import write_csv, write_text
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.testing import CAUTION, compared
from crnas_d2.pipeline.trainings import WHOLE, Network, Trainings

Row = dict[str, Any]
PATHS, NETWORKS = "paths on the test set", "networks on the test set"  # in results.json
MEANS = (None, "mean")  # rows that are printed: not those of a seed


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a search that has retrained. Raises InputError: there is no such table."""
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not results.get(NETWORKS):
        raise InputError(f"{path}: has no table; a finished search with the phase retrain is needed")
    return results


def retrain(plan: Plan, trainings: Trainings, networks: Mapping[str, Network]) -> list[Row]:
    """Train networks, by name, on archtrain and archval, and test them.

    The first one of each base config is its baseline. Seeds go round: after an interruption every
    network has about as many. Rows of the table, one a seed and a mean after them.
    """
    seeds = plan.cfg.SEARCH.RETRAIN.SEEDS
    for number in range(seeds):
        for network in networks.values():
            trainings(network, WHOLE, number)
    records = {network: trainings.of(network, WHOLE)[:seeds] for network in networks.values()}
    scores = {network: [record["score"] for record in of] for network, of in records.items()}
    matches = {network: trainings.matches(network, WHOLE, seeds) for network in records}
    whole = [of for n, of in scores.items() if not any("failed" in r for r in records[n])]
    rows, spread = [], Spread.of(whole)
    for name, network in networks.items():
        found = _rows(name, network.architecture, records[network])
        baseline = next(of for of in records if of.base == network.base)
        if network != baseline:
            images = image_noise(matches[network], matches[baseline])
            found[-1] |= compared(Difference(scores[network], scores[baseline], spread, images))
        rows += found
    return rows


def _rows(name: str, architecture: Architecture, records: Sequence[Row]) -> list[Row]:
    """One for each training, and the mean of what all of them have."""
    known = {"network": name, "architecture": str(architecture)}
    costs = {
        "backbone GMACs": round(records[0]["macs"] / 1e9, 4),
        "backbone params (M)": round(records[0]["params"] / 1e6, 4),
    }
    rows = [{**known, "seed": i, **r["metrics"], **costs} for i, r in enumerate(records)]
    shared = [key for key in records[0]["metrics"] if all(key in r["metrics"] for r in records)]
    mean: Row = {key: fmean(r["metrics"][key] for r in records) for key in shared}
    if len(records) > 1:
        mean["spread of seeds"] = stdev(record["score"] for record in records)
    return [*rows, {**known, "seed": "mean", **mean, **costs}]


def write_results(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Print the tables and the verdicts; results.json and, after retraining, table.csv."""
    tables = {name: results[name] for name in (PATHS, NETWORKS) if name in results}
    for name, rows in tables.items():
        means = [{k: v for k, v in r.items() if k != "seed"} for r in rows if r.get("seed") in MEANS]
        print(f"{name}:", tabulate(means, headers="keys", floatfmt=".2f", tablefmt="github"), sep="\n")
    for name, verdict in results["verdicts"].items():
        print(f"{name}: {verdict['found']}: {verdict['text']}")
    if PATHS in tables:
        print(CAUTION)
    files = [folder / "results.json"]
    write_text(files[0], json.dumps(results, indent=1, allow_nan=False))
    if rows := tables.get(NETWORKS):
        files.append(folder / "table.csv")
        write_csv(files[1], rows)
    return files
