#!/usr/bin/env python
"""How far a search's ranking can be trusted: its stage codes trained alone, on the test set.

    python tools/ranking_study.py --config-file configs/Shapes/search.yaml --csv FILE OUTPUT_DIR FOLDER
    python tools/ranking_study.py --summary docs/results

The first trains, resumable, in the folder of a finished stage search: --codes codes of the first budget
spread over the supernet's order, and the baseline, each with --seeds. A row of the CSV is one training,
with its AP on bootstraps of the test images; --also NAME=FOLDER, repeated, adds the scores of
other searches. The second computes everything from the rows of ranking_*.csv, and draws plots beside
them.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from crnas_d2.analysis.ranking import (
    Trained,
    best_of,
    ceiling,
    first_of,
    interval,
    kendall,
    lead,
    regret,
    spearman,
)
from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.engine.setup import start_run
from crnas_d2.errors import InputError
from crnas_d2.evaluation.matches import Matches
from crnas_d2.files import write_csv
from crnas_d2.launch import run
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.configs import network_config
from crnas_d2.pipeline.plan import Plan, plan_search
from crnas_d2.pipeline.run import register_splits
from crnas_d2.pipeline.trainings import WHOLE, Network, Trainings
from crnas_d2.search.journal import Journal
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

BOOTSTRAPS = 50
FINALISTS = 4  # the supernet's first of the codes studied, compared with as many drawn at random
KNOWN = ("architecture", "seed", "AP")  # columns; others: scores of supernets, and bootstraps


def prepare(args: argparse.Namespace) -> Plan:
    args.resume = True  # and as a search that retrains is checked
    phases = read_config(args.config_file, args.opts).SEARCH.PHASES
    args.opts = [*args.opts, "SEARCH.PHASES", "('stage', 'dilation', 'retrain')"]
    plan = plan_search(args)
    base = network_config(plan.cfg, next(iter(plan.bases.values())))
    names = base.DATASETS.TEST if "retrain" in plan.cfg.SEARCH.PHASES else ()
    if not any("json_file" in MetadataCatalog.get(name).as_dict() for name in names):
        raise InputError(f"DATASETS.TEST: {tuple(names)}: a test set with a COCO JSON is needed")
    plan.cfg.defrost()
    plan.cfg.SEARCH.PHASES = phases  # as OUTPUT_DIR/config.yaml has them
    plan.cfg.freeze()
    for folder in supernets_of(plan, args).values():
        if not Path(folder, "stage", "journal.jsonl").is_file():
            raise InputError(f"OUTPUT_DIR, --also: {folder!r}: a finished stage search is needed")
    if not (args.csv and Path(args.csv).absolute().parent.is_dir()):
        raise InputError(f"--csv: {args.csv!r}: a file to write, in a folder that is there, is needed")
    return plan


def supernets_of(plan: Plan, args: argparse.Namespace) -> dict[str, str]:
    """Folders of stage searches by the names of their columns."""
    others = dict(pair.partition("=")[::2] for pair in args.also)
    return {"supernet": plan.cfg.OUTPUT_DIR, **others}


def scores_of(folder: str) -> dict[str, float]:
    journal = Journal(Path(folder, "stage", "journal.jsonl"), writes=False)
    return {record["architecture"]: record["score"] for record in journal.records}


def chosen(plan: Plan, count: int) -> list[str]:
    """Codes evenly spread over the order of the search, best first, and the baseline."""
    budget, base = next(iter(plan.bases.items()))
    records = Journal(Path(plan.cfg.OUTPUT_DIR, "stage", "journal.jsonl"), writes=False).records
    ranked = sorted((r for r in records if budget.meets(r)), key=lambda r: -r["score"])
    names = [record["architecture"] for record in ranked]
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    baseline = str(architecture_of(network_config(plan.cfg, base)))
    return list(dict.fromkeys([*(names[place] for place in places), baseline]))


def work(plan: Plan, args: argparse.Namespace) -> None:
    """Train what is missing, seed after seed, and write the rows that there are after each."""
    start_run(plan.cfg, args, quiet=True)
    archtrain, split = register_splits(plan)
    trainings, base = Trainings(plan, archtrain, split.archval), next(iter(plan.bases.values()))
    networks = [Network(Architecture.parse(code), base) for code in chosen(plan, args.codes)]
    supernets = {name: scores_of(folder) for name, folder in supernets_of(plan, args).items()}
    rows: dict[tuple[Network, int], dict[str, Any]] = {}
    for number in range(args.seeds):
        for network in networks:
            score, code = trainings(network, WHOLE, number), str(network.architecture)
            row: dict[str, Any] = dict(zip(KNOWN, (code, number, round(score, 3))))
            for supernet, scores in supernets.items():
                row[supernet] = round(scores[code], 4) if code in scores else ""
            of = trainings.matches(network, WHOLE, number + 1)  # of those that have not diverged
            has_diverged = "failed" in trainings.of(network, WHOLE)[number]
            aps = [0.0] * BOOTSTRAPS if has_diverged else bootstraps(of[-1])
            rows[network, number] = row | {f"b{i}": round(ap, 3) for i, ap in enumerate(aps)}
            if comm.is_main_process():
                order = sorted(rows, key=lambda key: (networks.index(key[0]), key[1]))
                write_csv(Path(args.csv), [rows[key] for key in order])


def bootstraps(of: Matches) -> list[float]:
    """APs of a training, given its matches, on draws of images that are the same for all trainings."""
    images = len(of.image_ids)
    draws = np.random.default_rng(0).multinomial(images, [1 / images] * images, BOOTSTRAPS)
    return of.scores(draws).tolist()


def summary(path: Path) -> Iterator[dict[str, Any]]:
    """All numbers of a study from its rows, for each supernet; a plot beside the file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    bootstraps = [name for name in rows[0] if name.startswith("b") and name[1:].isdigit()]
    for supernet in (name for name in rows[0] if name not in (*KNOWN, *bootstraps)):
        codes: dict[str, Trained] = {}
        for code in dict.fromkeys(row["architecture"] for row in rows):
            of = [row for row in rows if row["architecture"] == code]
            if not of[0][supernet]:
                continue  # it has no score there
            drawn = np.array([[float(row[name]) for name in bootstraps] for row in of])
            codes[code] = Trained(float(of[0][supernet]), [float(row["AP"]) for row in of], drawn)
        yield {"study": path.stem.partition("_")[2], "supernet": supernet, **numbers(codes)}
        plot(path.with_name(f"{path.stem}_{supernet}"), codes, supernet)


def numbers(codes: dict[str, Trained]) -> dict[str, Any]:
    every = list(codes.values())
    seeds = min(len(code.aps) for code in every)
    found: dict[str, Any] = {"codes": len(every), "seeds": seeds}
    for name, correlation in (("tau", kendall), ("rho", spearman)):
        value, low, high = interval(every, correlation)
        found[name] = f"{value:.2f} ({low:.2f} .. {high:.2f})"
        found[f"ceiling of {name}"] = round(ceiling(every, correlation), 2) if seeds > 1 else None
    found["regret"] = round(regret(codes), 2)
    if seeds > 1:  # one chooses, the others judge
        first = first_of(every, FINALISTS)
        found[f"best of its first {FINALISTS} of these"] = round(best_of(first, FINALISTS), 2)
        value, low, high = lead(every, FINALISTS)
        found[f"more than of {FINALISTS} at random"] = f"{value:.2f} ({low:.2f} .. {high:.2f})"
    return found


def plot(path: Path, codes: dict[str, Trained], supernet: str) -> None:
    """Write PATH.png and PATH.svg: score in the supernet against AP alone, a point a training."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, code in codes.items():
        axes.plot([code.score] * len(code.aps), code.aps, "o", color="C0", alpha=0.6)
        at = code.score, float(np.mean(code.aps))
        axes.annotate(name.split("/")[1], at, textcoords="offset points", xytext=(5, 0), fontsize=7)
    axes.set_xlabel(f"{supernet}: AP of the path on archval")
    axes.set_ylabel("trained alone: AP on the test set")
    figure.savefig(path.with_suffix(".png"), dpi=110)
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):  # the same file each time
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--codes", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--csv", default="")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--summary", metavar="FOLDER", help="of ranking_*.csv; nothing is trained")
    folder = parser.parse_args().summary
    if folder:
        studies = [row for path in sorted(Path(folder).glob("ranking_*.csv")) for row in summary(path)]
        print(tabulate(studies, headers="keys", tablefmt="github") or f"{folder}: no ranking_*.csv")
    else:
        run(prepare, work, parser)
