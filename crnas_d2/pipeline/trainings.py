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
from typing import Any, NamedTuple

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.engine.setup import check_same_run
from crnas_d2.engine.trainer import seed_of
from crnas_d2.errors import Diverged
from crnas_d2.evaluation.coco import MATCHES
from crnas_d2.evaluation.matches import Matches, without_groups
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.configs import network_config, supernet_config
from crnas_d2.pipeline.plan import TRAININGS, Plan
from crnas_d2.pipeline.search_hook import shared_journal
from crnas_d2.pipeline.training import train
from crnas_d2.pipeline.weights import write_inherited
from crnas_d2.search.race import standard_error
from crnas_d2.seeding import derive_seed
from detectron2.config import CfgNode
from detectron2.utils import comm

# What a network is trained on: a finalist on archtrain, to be scored on archval by a shortened schedule
# (SEARCH.FINALISTS.SCHEDULE), "longer" with half as many iterations again; for the table on the whole
# training set, to be tested on the test set.
ARCHTRAIN, LONGER, WHOLE = "archtrain", "longer", "train"


class Network(NamedTuple):
    """A network to be trained alone: with the schedule of its base config, a path."""

    architecture: Architecture
    base: str


def baseline_of(plan: Plan, base: str) -> Network:
    """The network of a base config, a path."""
    return Network(architecture_of(network_config(plan.cfg, base)), base)


class Trainings:
    """Trains networks alone. All processes call every method alike, and train one network together.

    A training is known by (network, data, number), where number n is the n-th seed; its schedule is
    that of its base config, which a resumed run may not change.
    """

    def __init__(self, plan: Plan, archtrain: str, archval: str) -> None:
        self._plan, self._sets = plan, (archtrain, archval)
        self._folder = Path(plan.cfg.OUTPUT_DIR) / TRAININGS
        self._journal = shared_journal(self._folder / "journal.jsonl")

    def __call__(self, network: Network, data: str, number: int) -> float:
        """The network's score on archval or, of WHOLE data, on the test set; trained if it was not.

        An interrupted training resumes. One that diverges has a score of 0, and is not tried again.

        Raises FloatingPointError: the baseline's diverged, or one process alone has seen it.
        """
        cfg, began = self._config(network, data, number), time.perf_counter()
        # Set here alone, and to paths below OUTPUT_DIR, which may move.
        names = () if data == WHOLE else ("DATASETS.TRAIN", "DATASETS.TEST")
        check_same_run(cfg, free=("MODEL.WEIGHTS", *names))
        phase, options = self._phase(network, data, number), self._plan.cfg.SEARCH.EVAL
        if (known := self._journal.score(phase, network.architecture)) is not None:
            return known
        inherited = Path(cfg.MODEL.WEIGHTS)  # of SEARCH.INHERIT; else there is none
        if cfg.MODEL.WEIGHTS:
            if comm.is_main_process() and not (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
                supernet = supernet_config(self._plan.cfg, "joint")
                write_inherited(inherited, supernet, cfg, network.architecture)
            comm.synchronize()
        more: dict[str, Any] = {**backbone_costs(cfg)(network.architecture)}
        try:
            trainer = train(cfg, "" if cfg.MODEL.WEIGHTS else self._plan.pretrain, resume=True)
        except FloatingPointError as error:
            # A process that is not alone must not go on where the others may not have seen it.
            is_shared = isinstance(error, Diverged) or comm.get_world_size() == 1
            if not is_shared or network == baseline_of(self._plan, network.base):
                raise
            more |= {"failed": str(error), "metrics": {options.METRIC: 0.0}}
            self._journal.add(phase, network.architecture, 0.0, **more)
            text = "%s, seed %d: %s"
            logging.getLogger(__name__).warning(text, network.architecture, number, error)
            return 0.0
        metrics = measured(comm.all_gather(trainer.last_results)[0], options.TASK, options.METRIC)
        score = metrics.get(options.METRIC, 0.0)  # without a detection there is none
        for matches in self._read([Path(cfg.OUTPUT_DIR)]):
            without = matches.scores(without_groups(len(matches.image_ids)))
            more["error"] = standard_error(without.tolist())
        more |= {"seconds": round(time.perf_counter() - began, 1), "processes": comm.get_world_size()}
        metrics = {options.METRIC: score, **metrics}
        self._journal.add(phase, network.architecture, score, **more, metrics=metrics)
        if comm.is_main_process():
            for path in Path(cfg.OUTPUT_DIR).glob("model_[0-9]*.pth"):
                path.unlink()  # nothing resumes from them any more
            if cfg.MODEL.WEIGHTS:
                inherited.unlink(missing_ok=True)
        text = "%s, seed %d, trained on %s: %.2f (standard error over images %.2f)"
        values = network.architecture, number, data, score, more.get("error", math.nan)
        logging.getLogger(__name__).info(text, *values)
        return score

    def of(self, network: Network, data: str) -> list[dict[str, Any]]:
        """The journal's records of a network's trainings that have ended, in order of their seeds."""
        mine = (r for r in self._journal.records if r["architecture"] == str(network.architecture))
        found = (r for r in mine if r["phase"] == self._phase(network, data, _number(r)))
        return sorted(found, key=_number)

    def matches(self, network: Network, data: str, seeds: int) -> list[Matches]:
        """Of the first seeds; empty where the test set has no COCO JSON."""
        return self._read([self.folder(network, data, number) for number in range(seeds)])

    def best(self, network: Network, data: str, seeds: int) -> tuple[Path, str]:
        """The weights of the one of the first seeds with the best score, and their origin in words."""
        best = max(self.of(network, data)[:seeds], key=lambda record: record["score"])
        number, score = _number(best), best["score"]
        start = ", from its path in the supernet" if self._plan.cfg.SEARCH.INHERIT else ""
        origin = f"{network.architecture} trained alone on {data}{start}, seed {number}: {score:.2f}"
        return self.folder(network, data, number) / "model_final.pth", origin

    def folder(self, network: Network, data: str, number: int) -> Path:
        name = self._phase(network, data, number).replace(" ", "_")
        return self._folder / name / str(network.architecture).replace("/", "_")

    def _phase(self, network: Network, data: str, number: int) -> str:
        """In the journal; with the base config's name if there are several."""
        of = f" {Path(network.base).stem}" if len({*self._plan.bases.values()}) > 1 else ""
        return f"{data} {number}{of}"

    def _read(self, folders: Sequence[Path]) -> list[Matches]:
        """Rank 0 reads: a shared disk may show a file to the others later."""
        files = [folder / "inference" / MATCHES for folder in folders if comm.is_main_process()]
        read = [Matches.from_bytes(file.read_bytes()) for file in files if file.is_file()]
        return list(comm.all_gather(read)[0])

    def _config(self, network: Network, data: str, number: int) -> CfgNode:
        cfg = network_config(self._plan.cfg, network.base, network.architecture)
        # Searches of other seeds share no seed with this one, nor do finalists with the table.
        cfg.SEED = derive_seed(seed_of(self._plan.cfg), "training", data, number) % 2**31
        cfg.SEARCH.EVAL = self._plan.cfg.SEARCH.EVAL.clone()  # the evaluator's task and metric
        cfg.OUTPUT_DIR = str(self.folder(network, data, number))
        if self._plan.cfg.SEARCH.INHERIT:
            cfg.MODEL.WEIGHTS = str(self.folder(network, data, number) / "inherited.pth")
        if data != WHOLE:
            cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((name,) for name in self._sets)
            factor = self._plan.cfg.SEARCH.FINALISTS.SCHEDULE
            scale_schedule(cfg.SOLVER, factor * (1.5 if data == LONGER else 1))
        cfg.freeze()
        return cfg


def scale_schedule(solver: CfgNode, factor: float) -> None:
    """Multiply a schedule, in place."""
    solver.MAX_ITER = max(1, round(solver.MAX_ITER * factor))
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS * factor)
    solver.STEPS = tuple(max(1, round(step * factor)) for step in solver.STEPS)
    solver.EPOCHS, solver.MIN_ITER = solver.EPOCHS * factor, round(solver.MIN_ITER * factor)
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
