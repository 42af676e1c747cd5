"""Networks trained alone, each once, for whoever asks: finalists, the noise of seeds, retraining.

OUTPUT_DIR/trainings/journal.jsonl       one line for each that has ended: score, metrics, costs
OUTPUT_DIR/trainings/archtrain_0/CODES/  model_final.pth, inference/matches.npz; of seed number 0
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.engine.setup import check_same_run
from crnas_d2.engine.trainer import seed_of
from crnas_d2.evaluation.coco import MATCHES
from crnas_d2.evaluation.matches import Matches, without_groups
from crnas_d2.pipeline.configs import network_config
from crnas_d2.pipeline.plan import TRAININGS, Plan
from crnas_d2.pipeline.search_hook import shared_journal
from crnas_d2.pipeline.training import train
from crnas_d2.search.race import standard_error
from crnas_d2.seeding import derive_seed
from detectron2.config import CfgNode
from detectron2.utils import comm

# What a network is trained on: a finalist on archtrain, to be scored on archval by a shortened schedule
# (SEARCH.FINALISTS.SCHEDULE), "longer" with half as many iterations again; for the table on the whole
# training set, to be tested on the test set.
ARCHTRAIN, LONGER, WHOLE = "archtrain", "longer", "train"


class Trainings:
    """Trains networks alone. All processes call it alike and train one network together.

    A training is known by (architecture, data, number), where number n is the n-th seed; its schedule
    is that of its base config, which a resumed run may not change.
    """

    def __init__(self, plan: Plan, archtrain: str, archval: str) -> None:
        self._plan, self._sets = plan, (archtrain, archval)
        self._folder = Path(plan.cfg.OUTPUT_DIR) / TRAININGS
        self.journal = shared_journal(self._folder / "journal.jsonl")

    def __call__(self, architecture: Architecture, base: str, data: str, number: int) -> float:
        """The network's score on archval or, of WHOLE data, on the test set; trained if it was not.

        ``base``: path of the config whose schedule it has. An interrupted training resumes.
        """
        cfg, start = self._config(architecture, base, data, number), time.perf_counter()
        check_same_run(cfg)
        phase = f"{data} {number}"
        if (known := self.journal.score(phase, architecture)) is not None:
            return known
        trainer = train(cfg, self._plan.pretrain, resume=True)
        options = self._plan.cfg.SEARCH.EVAL
        metrics = measured(comm.all_gather(trainer.last_results)[0], options.TASK, options.METRIC)
        more = {**backbone_costs(cfg)(architecture), "seconds": round(time.perf_counter() - start, 1)}
        score = metrics.get(options.METRIC, 0.0)  # without a detection there is none
        path, error = Path(cfg.OUTPUT_DIR, "inference", MATCHES), math.nan
        if path.is_file():
            matches = Matches.from_bytes(path.read_bytes())
            error = standard_error(matches.scores(without_groups(len(matches.image_ids))).tolist())
            more["error"] = error
        self.journal.add(phase, architecture, score, **more, metrics=metrics)
        if comm.is_main_process():
            for path in Path(cfg.OUTPUT_DIR).glob("model_[0-9]*.pth"):
                path.unlink()  # nothing resumes from them any more
        text = "%s, seed %d, trained on %s: %.2f (standard error over images %.2f)"
        logging.getLogger(__name__).info(text, architecture, number, data, score, error)
        return score

    def of(self, architecture: Architecture, data: str) -> list[dict[str, Any]]:
        """The journal's records of a network's trainings that have ended, in order of their seeds."""
        found = [r for r in self.journal.records if r["architecture"] == str(architecture)]
        return sorted((r for r in found if r["phase"].split()[0] == data), key=_number)

    def spreads(self, data: str) -> list[list[float]]:
        """The scores of every network that was trained on the data, one a seed."""
        scores: dict[str, list[float]] = {}
        for record in self.journal.records:
            if record["phase"].split()[0] == data:
                scores.setdefault(record["architecture"], []).append(record["score"])
        return list(scores.values())

    def matches(self, architecture: Architecture, data: str) -> list[Matches]:
        """Of each record of ``of``; empty where the test set has no COCO JSON."""
        folders = [self.folder(architecture, data, _number(r)) for r in self.of(architecture, data)]
        files = [folder / "inference" / MATCHES for folder in folders]
        return [Matches.from_bytes(file.read_bytes()) for file in files if file.is_file()]

    def best(self, architecture: Architecture, data: str) -> tuple[Path, str]:
        """The weights of the seed with the best score, and their origin in words."""
        best = max(self.of(architecture, data), key=lambda record: record["score"])
        path = self.folder(architecture, data, _number(best)) / "model_final.pth"
        return (
            path,
            f"{architecture} trained alone on {data}, seed {_number(best)}: {best['score']:.2f}",
        )

    def folder(self, architecture: Architecture, data: str, number: int) -> Path:
        return self._folder / f"{data}_{number}" / str(architecture).replace("/", "_")

    def _config(self, architecture: Architecture, base: str, data: str, number: int) -> CfgNode:
        cfg = network_config(self._plan.cfg, base, architecture)
        # Searches of other seeds share no seed with this one, nor do finalists with the table.
        cfg.SEED = derive_seed(seed_of(self._plan.cfg), "training", data, number) % 2**31
        cfg.SEARCH.EVAL = self._plan.cfg.SEARCH.EVAL.clone()  # the evaluator's task and metric
        cfg.OUTPUT_DIR = str(self.folder(architecture, data, number))
        if data != WHOLE:
            cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((name,) for name in self._sets)
            factor = self._plan.cfg.SEARCH.FINALISTS.SCHEDULE
            scale_schedule(cfg.SOLVER, factor * (1.5 if data == LONGER else 1))
        cfg.freeze()
        return cfg


def scale_schedule(solver: CfgNode, factor: float) -> None:
    """Multiply a schedule, in place."""
    solver.MAX_ITER = max(1, round(solver.MAX_ITER * factor))
    solver.STEPS = tuple(max(1, round(step * factor)) for step in solver.STEPS)
    solver.EPOCHS = solver.EPOCHS * factor
    solver.STEP_EPOCHS = tuple(step * factor for step in solver.STEP_EPOCHS)


def _number(record: Mapping[str, Any]) -> int:
    return int(record["phase"].split()[1])


def measured(results: Mapping[str, Mapping[str, float]], task: str, metric: str) -> dict[str, float]:
    """What an evaluator found, the search's metric first, without single classes.

    Metrics of other tasks carry the task's name; Pascal VOC's evaluator has AP, AP50, AP75 of boxes.
    """
    first = task if task in results else next(iter(results))
    found = {metric: results[first].get(metric, math.nan)}
    for name, metrics in sorted(results.items(), key=lambda item: item[0] != first):
        for key, value in metrics.items():
            if "-" not in key:  # "AP-person"
                found.setdefault(key if name == first else f"{name} {key}", value)
    # nan: without a detection, or APs where nothing is small.
    return {name: value for name, value in found.items() if math.isfinite(value)}


def mean_of(records: Sequence[Mapping[str, Any]], name: str) -> float:
    """Of a metric over the records that have it; nan if none has."""
    values = [r["metrics"][name] for r in records if name in r["metrics"]]
    return sum(values) / len(values) if values else float("nan")
