#!/usr/bin/env python
"""What independent searches gained: the found network against the baseline, over several runs.

    python tools/searches.py --csv docs/results/searches_composites.csv [output/search-0 ...]

adds the trainings of finished runs (search_net.py with the phase retrain; each has a SEED of its own),
a row each, with the search's verdict; a search is known by its folder's last name. A row that is there
already (same search, network and seed) is replaced. Without runs the CSV is only read. The mean gain
and its 95 % interval are over searches (Student's t), each with its mean over seeds: so they hold the
noise of seeds and that of another search, but not that of the test images, which are the same for all.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_csv
from crnas_d2.pipeline.table import NETWORKS, read_results

# "says": the verdict on archval; "low", "high": ends of the gain's 95 % interval in the run's table.
SHOWN = ("AP", "APs", "APm", "APl")
COLUMNS = ("search", "network", "seed", "architecture", *SHOWN, "says", "low", "high")
# Of Student's t by degrees of freedom, the 0.975 quantile; scipy is no requirement.
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A run's trainings of the baseline and the found network. InputError: it has not ended."""
    results = read_results(folder)
    verdict, *others = results["verdicts"].values()
    if others:
        raise InputError(f"{folder}: has {1 + len(others)} budgets; a search of one is needed")
    rows = [r for r in results[NETWORKS] if r["network"] in ("baseline", "found")]
    shared = {"search": folder.resolve().name, "says": verdict["says"]}
    for key, end in (("low", "95 % low"), ("high", "95 % high")):
        shared[key] = next((r[end] for r in rows if r.get(end) is not None), "")
    return [{key: {**r, **shared}.get(key, "") for key in COLUMNS} for r in rows if r["seed"] != "mean"]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the mean, with 95 %; infinite of one value, and as if of eleven where there are more."""
    if len(values) < 2:
        return -math.inf, math.inf
    quantile = QUANTILES[min(len(values) - 1, len(QUANTILES)) - 1]
    half = quantile * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def summary(rows: Iterable[dict[str, Any]]) -> str:
    """A line a search, and the mean gain."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["search"], {}).setdefault(row["network"], []).append(row)
    lines, gains = [], []
    for search, networks in sorted(found.items()):
        scores = {name: [float(r["AP"]) for r in of] for name, of in networks.items()}
        gains.append(fmean(scores["found"]) - fmean(scores["baseline"]))
        line: dict[str, Any] = {"search": search, "network": networks["found"][0]["architecture"]}
        line["verdict on archval"] = networks["found"][0]["says"]
        for name, of in scores.items():
            line[name] = f"{fmean(of):.2f} ({', '.join(f'{value:.2f}' for value in of)})"
        gain, (low, high) = f"{gains[-1]:+.2f}", (networks["found"][0][end] for end in ("low", "high"))
        lines.append(
            {**line, "gain": f"{gain} ({float(low):+.2f} .. {float(high):+.2f})" if low else gain}
        )
    low, high = interval(gains)
    table = tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
    of = f"{len(gains)} search{'es' * (len(gains) > 1)}"
    return f"{table}\n\nmean gain {fmean(gains):+.2f} AP (95 %: {low:+.2f} .. {high:+.2f}; {of})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR")
    args = parser.parse_args()
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    if args.csv.is_file():
        with args.csv.open(newline="", encoding="utf-8") as file:
            rows = {_key(row): row for row in csv.DictReader(file)}
    if len({folder.resolve().name for folder in args.runs}) < len(args.runs):
        raise InputError(f"{', '.join(map(str, args.runs))}: folders of different names are needed")
    for folder in args.runs:
        rows |= {_key(row): row for row in rows_of(folder)}
    if not rows:
        raise InputError(f"{args.csv}: no such file, and no runs are named")
    ordered = [rows[key] for key in sorted(rows)]
    if args.runs:
        write_csv(args.csv, ordered)
    print(summary(ordered))


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("search", "network", "seed"))


if __name__ == "__main__":
    run_tool(main)
