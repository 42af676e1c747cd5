#!/usr/bin/env python
"""How far a search's ranking can be trusted: its stage codes trained alone, on the test set.

    python tools/ranking_study.py --config-file configs/Shapes/search.yaml --csv FILE OUTPUT_DIR FOLDER
    python tools/ranking_study.py --summary docs/results/ranking_*.csv

Trains on the folder of a finished stage search, resumable: --codes of the first budget spread over the
supernet's order, its first and the baseline among them, and --random ones drawn uniformly, each with
--seeds. A row of the CSV is one training, with its AP on bootstraps of the test images.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from crnas_d2.analysis.ranking import Trained, best_of, ceiling, interval, kendall, regret, spearman
from crnas_d2.architecture import Architecture
from crnas_d2.engine.setup import start_run
from crnas_d2.engine.trainer import seed_of
from crnas_d2.errors import InputError
from crnas_d2.launch import run
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.configs import network_config
from crnas_d2.pipeline.plan import Plan, plan_search
from crnas_d2.pipeline.run import register_splits
from crnas_d2.pipeline.trainings import WHOLE, Trainings
from crnas_d2.search.journal import Journal
from crnas_d2.seeding import derive_seed
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

BOOTSTRAPS = 50
FINALISTS = 4  # the supernet's first ones that are compared with as many random codes


def prepare(args: argparse.Namespace) -> Plan:
    args.resume = True
    plan = plan_search(args)
    journal = Path(plan.cfg.OUTPUT_DIR, "stage", "journal.jsonl")
    if not journal.is_file() or not args.csv:
        raise InputError(
            f"OUTPUT_DIR, --csv: {journal}, {args.csv}: a finished search and a file to write"
        )
    return plan


def chosen(plan: Plan, codes: int, at_random: int) -> dict[str, list[dict[str, Any]]]:
    """Records of the stage journal: those spread over its order, and those drawn."""
    budget, base = next(iter(plan.bases.items()))
    records = Journal(Path(plan.cfg.OUTPUT_DIR, "stage", "journal.jsonl"), writes=False).records
    ranked = sorted((r for r in records if budget.meets(r)), key=lambda r: -r["score"])
    places = np.linspace(0, len(ranked) - 1, min(codes, len(ranked))).round().astype(int)
    spread = [ranked[place] for place in sorted(set(places.tolist()))]
    baseline = str(architecture_of(network_config(plan.cfg, base)))
    spread += [r for r in ranked if r["architecture"] == baseline and r not in spread]
    draws = random.Random(derive_seed(seed_of(plan.cfg), "ranking study"))
    return {"spread": spread, "random": draws.sample(ranked, min(at_random, len(ranked)))}


def work(plan: Plan, args: argparse.Namespace) -> None:
    """Train what is missing, seed after seed, and write the rows that there are after each."""
    start_run(plan.cfg, args, quiet=True)
    archtrain, split = register_splits(plan)
    trainings, base = Trainings(plan, archtrain, split.archval), next(iter(plan.bases.values()))
    sets = chosen(plan, args.codes, args.random)
    for number in range(args.seeds):
        for record in [*sets["spread"], *sets["random"]]:
            trainings(Architecture.parse(record["architecture"]), base, WHOLE, number)
            if comm.is_main_process():
                write_rows(Path(args.csv), trainings, sets)


def write_rows(path: Path, trainings: Trainings, sets: dict[str, list[dict[str, Any]]]) -> None:
    """One row for each set and training; bootstraps are the same for all rows."""
    rows = []
    for name, records in sets.items():
        for record in records:
            architecture = Architecture.parse(record["architecture"])
            matches = trainings.matches(architecture, WHOLE)
            for number, (trained, of) in enumerate(zip(trainings.of(architecture, WHOLE), matches)):
                images = len(of.image_ids)
                draws = np.random.default_rng(0).multinomial(images, [1 / images] * images, BOOTSTRAPS)
                known = {"set": name, "architecture": str(architecture), "supernet": record["score"]}
                drawn = {f"b{i}": round(ap, 3) for i, ap in enumerate(of.scores(draws).tolist())}
                rows.append({**known, "seed": number, "AP": round(trained["score"], 3), **drawn})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def summary(path: Path) -> dict[str, Any]:
    """All numbers of a study, from its rows."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sets: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        sets[row["set"]][row["architecture"]].append(row)
    trained = {
        name: {
            code: Trained(
                float(of[0]["supernet"]),
                [float(r["AP"]) for r in of],
                np.array([[float(r[f"b{i}"]) for i in range(BOOTSTRAPS)] for r in of]),
            )
            for code, of in codes.items()
        }
        for name, codes in sets.items()
    }
    spread = list(trained["spread"].values())
    found: dict[str, Any] = {"study": path.stem, "codes": len(spread), "seeds": len(spread[0].aps)}
    for name, correlation in (("tau", kendall), ("rho", spearman)):
        value, low, high = interval(spread, correlation)
        found[name] = f"{value:.2f} ({low:.2f} .. {high:.2f})"
        found[f"{name}, ceiling"] = round(ceiling(spread, correlation), 2)
    found["regret"] = round(regret(trained["spread"]), 2)
    first = sorted(spread, key=lambda c: -c.score)[:FINALISTS]
    found["best of the first"] = round(best_of(first, FINALISTS), 2)
    found["best of random ones"] = round(best_of(list(trained["random"].values()), FINALISTS), 2)
    return found


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--codes", type=int, default=10)
    parser.add_argument("--random", type=int, default=FINALISTS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--csv", default="")
    if "--summary" in sys.argv:
        found = [summary(Path(name)) for name in sys.argv[sys.argv.index("--summary") + 1 :]]
        print(tabulate(found, headers="keys", tablefmt="github"), json.dumps(found), sep="\n")
    else:
        run(prepare, work, parser)
