#!/usr/bin/env python
"""Draw what networks cost against their AP (paper, Figure 5), or their accuracy against it (Figure 6).

    python tools/plot_tradeoff.py --output tradeoff.png output/search-r18 output/search-r50
    python tools/plot_tradeoff.py --output accuracy.png --accuracy output/classifier-* output/detector-*

The first takes folders of searches that have ended (search_net.py with the phase retrain): their
baselines, stage winners and found networks, a dot a seed, beside a panel of the paper's numbers. The
two panels have axes of their own: other data, other schedules. The second takes folders of
train_net.py, of classifiers and of detectors, and joins those with the same architecture; the paper
prints no numbers for its dots. The points are written beside the picture, as tradeoff_points.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from flops import report
from matplotlib.figure import Figure
from model_zoo import PAPER, ROOT
from results import finished

from crnas_d2.config import read_config
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_atomically, write_csv
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.table import NETWORKS, read_results

Row = dict[str, Any]
SUFFIXES = (".png", ".svg", ".pdf")
# The lines of Figure 5, cheapest first, as configs/COCO-Detection names the networks.
SERIES = (("MNV2", "R_18", "R_50", "R_101"), ("X_50_32x4d", "X_101_32x4d"))
KINDS = {"": "baseline", "SCR_": "stages searched", "CR_": "stages and rates searched"}
ROLES = dict(zip(("baseline", "stage", "found"), KINDS.values()))  # as results.json names them
STYLES = dict(zip(KINDS.values(), (("o", "-", "C0"), ("s", ":", "C1"), ("^", "--", "C2"))))
METRICS = {"top1": "classification/top1", "AP": "bbox/AP"}


def published() -> list[Row]:
    """What the paper prints for Faster R-CNN at 1x (Tables 1 and 4); MACs are counted here."""
    rows = []
    for series in SERIES:
        for kind, network in KINDS.items():
            for name in series:
                config = f"faster_rcnn_{kind}{name}_FPN_1x"
                if ap := PAPER["COCO-Detection"].get(config):
                    path = str(ROOT / "configs" / "COCO-Detection" / f"{config}.yaml")
                    known = {"name": name.replace("_", "-"), "network": network}
                    known["codes"] = str(architecture_of(read_config(path)))
                    rows.append({**known, "GMACs": report(path)["macs_g"], "AP": float(ap)})
    return rows


def tested(folder: Path) -> list[Row]:
    """A search's networks, a row a seed."""
    rows = []
    for row in read_results(folder)[NETWORKS]:
        role = next(role for role in ROLES if row["network"].startswith(role))
        known = {"name": f"{folder.name}: {row['network']}", "network": ROLES[role]}
        known |= {"codes": row["architecture"], "GMACs": row["backbone GMACs"], "AP": row["AP"]}
        if row["seed"] != "mean":
            rows.append(known)
    return rows


def joined(folders: Iterable[Path]) -> list[Row]:
    """A row for each architecture that was trained as a classifier and as a detector.

    Of several trainings of one, such as seeds, the mean counts. Raises InputError: there is no pair.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        cfg, metrics = finished(folder, METRICS.values())
        of_codes = found.setdefault(str(architecture_of(cfg)), {})
        for name, key in METRICS.items():
            if key in metrics:
                of_codes.setdefault(name, []).append(metrics[key])
    pairs = {codes: of for codes, of in found.items() if len(of) == len(METRICS)}
    if not pairs:
        there = ", ".join(found) or "no folder"
        raise InputError(f"--accuracy: {there}: no architecture has both top1 and AP")
    return [{"codes": c, **{name: fmean(v) for name, v in of.items()}} for c, of in pairs.items()]


def draw_tradeoff(paper: Sequence[Row], own: Sequence[Row]) -> Figure:
    """A panel of the paper's networks and, where there are any, one of those of the searches."""
    panels: list[Callable[[Any], None]] = [lambda axes: _draw_paper(axes, paper)]
    if own:
        panels.append(lambda axes: _draw_own(axes, own))
    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw(axes)
        axes.margins(x=0.2, y=0.12)
        axes.legend(fontsize=8)
    return figure


def _draw_paper(axes: Any, rows: Sequence[Row]) -> None:
    for network, series in groupby(rows, lambda row: row["network"]):
        points = list(series)
        marker, line, colour = STYLES[network]
        label = network if points[0]["name"] == SERIES[0][0] else None  # ResNeXt's have the same
        at = [(row["GMACs"], row["AP"]) for row in points]
        axes.plot(*zip(*at), ls=line, marker=marker, color=colour, label=label)
        for row, place in zip(points, at):
            if network == KINDS[""]:
                text = row["name"].partition("-32x")[0]
                axes.annotate(text, place, (4, -11), textcoords="offset points", fontsize=8)
    axes.set(title="paper, Faster R-CNN 1x", xlabel="GMACs of the detector at 800 x 1088")
    axes.set(ylabel="AP on COCO minival, as printed")


def _draw_own(axes: Any, rows: Sequence[Row]) -> None:
    shown = set()
    for name, seeds in groupby(rows, lambda row: row["name"]):
        points = list(seeds)
        network, x = points[0]["network"], points[0]["GMACs"]
        marker, _, colour = STYLES[network]
        scores = [row["AP"] for row in points]
        label = None if network in shown else network
        axes.plot(x, fmean(scores), marker, color=colour, label=label)
        axes.plot([x] * len(scores), scores, ".", color=colour, alpha=0.4)
        if network == KINDS[""]:
            at = x, fmean(scores)
            axes.annotate(name.partition(":")[0], at, (6, -3), textcoords="offset points", fontsize=8)
        shown.add(network)
    axes.set(title="searches here: means, a dot a seed", xlabel="GMACs of the backbone")
    axes.set(ylabel="AP on the test set")


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
        paper = published()
        figure = draw_tradeoff(paper, own)
        rows = [{"from": "paper", **r} for r in paper] + [{"from": "searches here", **r} for r in own]
    kind, points = args.output.suffix[1:], args.output.with_name(f"{args.output.stem}_points.csv")
    write_atomically(args.output, lambda file: figure.savefig(file, format=kind, dpi=150))
    write_csv(points, rows)
    print(f"{args.output}: {len(rows)} points, which are in {points}")


if __name__ == "__main__":
    run_tool(main)
