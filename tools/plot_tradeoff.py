#!/usr/bin/env python
"""Draw what networks cost against their AP (paper, Figure 5), or their accuracy against it (Figure 6).

    python tools/plot_tradeoff.py --output tradeoff.png output/search-r18 output/search-r50
    python tools/plot_tradeoff.py --output accuracy.png --accuracy output/classifier-* output/detector-*

The first takes folders of searches that have ended (search_net.py with the phase retrain): their
baselines, stage winners and found networks, a point a seed, beside a panel of the paper's numbers. The
two panels have axes of their own: other data, other schedules. The second takes folders of
train_net.py, of classifiers and of detectors, and joins those with the same architecture; the paper
prints no numbers for its dots. The points are written as a CSV beside the picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from flops import report
from matplotlib.figure import Figure
from model_zoo import PAPER, ROOT

from crnas_d2.config import read_config
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_atomically, write_csv
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.table import NETWORKS

Row = dict[str, Any]
SUFFIXES = (".png", ".svg", ".pdf")
COSTS = "backbone GMACs"
# The lines of Figure 5, cheapest first, as configs/COCO-Detection names the networks.
SERIES = (("MNV2", "R_18", "R_50", "R_101"), ("X_50_32x4d", "X_101_32x4d"))
KINDS = {"": "baseline", "SCR_": "stages searched", "CR_": "stages and rates searched"}
ROLES = dict(zip(("baseline", "stage", "found"), KINDS.values()))  # as results.json names them
STYLES = dict(zip(KINDS.values(), (("o", "-", "C0"), ("s", ":", "C1"), ("^", "--", "C2"))))


def published() -> list[Row]:
    """What the paper prints for Faster R-CNN at 1x (Tables 1 and 4); MACs are counted here."""
    rows = []
    for series in SERIES:
        for name in series:
            for kind, network in KINDS.items():
                config = f"faster_rcnn_{kind}{name}_FPN_1x"
                if ap := PAPER["COCO-Detection"].get(config):
                    path = str(ROOT / "configs" / "COCO-Detection" / f"{config}.yaml")
                    codes = str(architecture_of(read_config(path)))
                    known = {"from": "paper", "series": series[0], "name": name.replace("_", "-")}
                    known |= {"network": network, "codes": codes, "budget": name}
                    rows.append({**known, "GMACs": report(path)["macs_g"], "AP": float(ap)})
    for row in rows:
        row["budget"] = next(r["GMACs"] for r in rows if r["name"] == row["name"])  # its baseline's
    return rows


def tested(folder: Path) -> list[Row]:
    """A search's networks, a row a seed. Raises InputError: it has no such table."""
    path = folder / "results.json"
    results = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if NETWORKS not in results:
        raise InputError(f"{path}: has no table; a finished search with the phase retrain is needed")
    rows = []
    for row in results[NETWORKS]:
        role = next(role for role in ROLES if row["network"].startswith(role))
        known = {"from": folder.resolve().name, "series": "", "network": ROLES[role]}
        known |= {"codes": row["architecture"], "GMACs": row[COSTS], "AP": row["AP"]}
        if row["seed"] != "mean":
            rows.append(known)
    # A search of several budgets has a baseline for each: the nearest one in cost.
    budgets = {row["GMACs"] for row in rows if row["network"] == ROLES["baseline"]}
    for row in rows:
        row["budget"] = min(budgets, key=lambda cost, of=row["GMACs"]: abs(cost - of))
    return rows


def last_metrics(folder: Path) -> dict[str, float]:
    """Each metric's last value. Raises InputError: the folder is none of train_net.py."""
    found: dict[str, float] = {}
    path = folder / "metrics.json"
    if not (path.is_file() and (folder / "config.yaml").is_file()):
        raise InputError(f"{folder}: a folder of train_net.py, with metrics.json, is needed")
    for line in path.read_text("utf-8", errors="replace").splitlines():
        if line.endswith("}"):  # not cut off by a kill
            found |= json.loads(line)
    return found


def joined(folders: Iterable[Path]) -> list[Row]:
    """A row for each architecture that was trained as a classifier and as a detector.

    Of several trainings of one, such as seeds, the mean counts. Raises InputError: there is no pair.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        metrics = last_metrics(folder)
        names = {"top1": "classification/top1", "AP": "bbox/AP"}
        known = {name: metrics[key] for name, key in names.items() if key in metrics}
        if not known:
            raise InputError(f"{folder / 'metrics.json'}: has neither {' nor '.join(names.values())}")
        codes = str(architecture_of(read_config(str(folder / "config.yaml"))))
        for name, value in known.items():
            found.setdefault(codes, {}).setdefault(name, []).append(value)
    pairs = {codes: of for codes, of in found.items() if len(of) == 2}
    if not pairs:
        raise InputError(f"--accuracy: no architecture has both top1 and AP, of {', '.join(found)}")
    return [{"codes": c, **{name: fmean(v) for name, v in of.items()}} for c, of in pairs.items()]


def draw_tradeoff(rows: Sequence[Row]) -> Figure:
    """A panel of the paper's networks and, where there are any, one of those of the searches."""
    panels = {
        title: (xlabel, ylabel, of_panel)
        for title, xlabel, ylabel, of_panel in (
            (
                "paper, Faster R-CNN 1x",
                "GMACs of the detector at 800 x 1088",
                "AP on COCO minival, as printed",
                [row for row in rows if row["from"] == "paper"],
            ),
            (
                "searches here: means, a dot a seed",
                "GMACs of the backbone",
                "AP on the test set",
                [row for row in rows if row["from"] != "paper"],
            ),
        )
        if of_panel
    }
    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    for axes, title in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        xlabel, ylabel, of_panel = panels[title]
        for network, (marker, line, colour) in STYLES.items():
            style, label = {"ls": line, "marker": marker, "color": colour}, network
            for series in dict.fromkeys(row["series"] for row in of_panel):
                points = [r for r in of_panel if (r["network"], r["series"]) == (network, series)]
                if points:
                    axes.plot(*zip(*means_of(points)), **style, label=label)
                    axes.plot(*zip(*(_at(row) for row in points)), ".", color=colour, alpha=0.4)
                    label = "_"  # one entry of the legend
        for row in of_panel:
            if "name" in row and row["network"] == "baseline":
                axes.annotate(row["name"], _at(row), (4, -11), textcoords="offset points", fontsize=8)
        axes.margins(x=0.2, y=0.12)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.legend(fontsize=8)
    return figure


def means_of(rows: Iterable[Row]) -> list[tuple[float, float]]:
    """(GMACs, AP) for each budget, cheapest first: over seeds and, of several searches, over them."""
    budgets: dict[float, list[Row]] = {}
    for row in rows:
        budgets.setdefault(row["budget"], []).append(row)
    return [tuple(map(fmean, zip(*map(_at, of)))) for _, of in sorted(budgets.items())]


def _at(row: Row) -> tuple[float, float]:
    return row["GMACs"], row["AP"]


def draw_accuracy(rows: Sequence[Row]) -> Figure:
    """A dot an architecture."""
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row["top1"] for row in rows], [row["AP"] for row in rows], "o")
    for row in rows:
        at, name = (row["top1"], row["AP"]), row["codes"].partition("/")[2]
        axes.annotate(name, at, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel="top-1 accuracy as a classifier (%)", ylabel="AP as a detector's backbone")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accuracy", action="store_true", help="Figure 6, of folders of train_net.py")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.output.suffix not in SUFFIXES:
        allowed = ", ".join(SUFFIXES)
        raise InputError(f"--output: {args.output}: a name that ends in {allowed} is needed")
    if args.accuracy:
        rows = joined(args.folders)
        figure = draw_accuracy(rows)
    else:
        own = [row for folder in args.folders for row in tested(folder)]
        rows = [*published(), *own]
        figure = draw_tradeoff(rows)
    kind = args.output.suffix[1:]
    write_atomically(args.output, lambda file: figure.savefig(file, format=kind, dpi=150))
    write_csv(args.output.with_suffix(".csv"), rows)
    print(f"{args.output}: {len(rows)} points, and as {args.output.with_suffix('.csv').name}")


if __name__ == "__main__":
    run_tool(main)
