"""search_net.py's phases: stage supernet and search, dilation supernet and search, found.yaml, and
retraining if asked. Each resumes where it was interrupted.

    OUTPUT_DIR/splits/                   archtrain.json, archval.json, recalibration.json
    OUTPUT_DIR/stage/pretrain/           checkpoints of the classifier, with SEARCH.PRETRAIN
    OUTPUT_DIR/stage/                    checkpoints, journal.jsonl, matches/; of a race also race.jsonl
    OUTPUT_DIR/joint/                    checkpoints of the one supernet, with SEARCH.JOINT
    OUTPUT_DIR/latency.jsonl             what was measured for budgets of latency
    OUTPUT_DIR/dilation/                 as stage/; dilation_N16/ where there are several budgets
    OUTPUT_DIR/found.yaml                found_N16.yaml where there are several budgets
    OUTPUT_DIR/trainings/                networks trained alone, see trainings.py
    OUTPUT_DIR/table.csv, results.json   see table.py
    OUTPUT_DIR/report.html               all of this to look at
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch import nn

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.analysis.latency import LatencyCosts, Stopwatch
from crnas_d2.analysis.report import write_report
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.data.coco_json import load_json
from crnas_d2.data.datasets import register_coco
from crnas_d2.data.splits import write_splits
from crnas_d2.engine.setup import check_network
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.files import write_text
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.modeling.checkpoint.weights import difference, read_checkpoint
from crnas_d2.pipeline.configs import (
    network_config,
    supernet_config,
    write_found,
    write_weights,
)
from crnas_d2.pipeline.contest import Contest
from crnas_d2.pipeline.plan import LATENCIES, Plan, check_budgets
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.pipeline.search_hook import SearchHook, run_searches, shared_journal
from crnas_d2.pipeline.table import retrain, write_table
from crnas_d2.pipeline.testing import CAUTION, test_paths
from crnas_d2.pipeline.training import train
from crnas_d2.pipeline.trainings import ARCHTRAIN, Trainings
from crnas_d2.search.journal import Candidate
from crnas_d2.space import DilationSpace, Space, block_costs
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm


def run_search(plan: Plan, resume: bool) -> list[str]:
    """Run the phases of SEARCH.PHASES; the paths of what was written, on rank 0."""
    cfg, folder = plan.cfg, Path(plan.cfg.OUTPUT_DIR)
    archtrain, split = _write_splits(plan)
    trainings = Trainings(plan, archtrain, split.archval)
    contest = Contest(plan, trainings) if cfg.SEARCH.FINALISTS.NUM else None
    noise = contest.noise() if contest else []  # before any supernet is trained
    phases = Phases(plan, archtrain, split, _costs(plan), resume, contest)
    winners = phases.stage() if "stage" in cfg.SEARCH.PHASES else phases.named()
    networks: dict[str, tuple[Architecture, str]] = {}  # with their base configs
    written, verdicts = [], {}
    for base in dict.fromkeys(plan.bases.values()):
        networks[f"baseline{len(networks) or ''}"] = architecture_of(network_config(cfg, base)), base
    for budget, (architecture, verdict) in winners.items():
        suffix = phases.suffix(budget)
        base = plan.base_of(budget)
        if "dilation" in cfg.SEARCH.PHASES:
            networks[f"stage{suffix}"] = architecture, base
            architecture, verdict = phases.dilation(budget, architecture, f"dilation{suffix}")
        networks[f"found{suffix}"] = architecture, base
        path = folder / f"found{suffix}.yaml"
        if comm.is_main_process():
            comment = f"{architecture}, found by search_net.py for a budget of {budget}"
            write_found(
                path, cfg, base, architecture, f"{comment}\n# {verdict}" if verdict else comment
            )
        if verdict:
            verdicts[budget.name] = verdict
            logging.getLogger(__name__).info("%s: %s", path, verdict)
        if contest and comm.is_main_process():
            weights, origin = trainings.best_weights(architecture, ARCHTRAIN)
            state = read_checkpoint(str(weights), "--resume")["model"]
            write_weights(path.with_suffix(".pth"), network_config(cfg, base), state, origin)
        comm.synchronize()
        written += [str(each) for each in (path, path.with_suffix(".pth")) if each.is_file()]
    if "test" in cfg.SEARCH.PHASES:
        rows = phases.test({name: architecture for name, (architecture, _) in networks.items()})
        if comm.is_main_process():
            print(tabulate(rows, headers="keys", floatfmt=".2f", tablefmt="github"), f"\n{CAUTION}")
            write_text(folder / "test.json", json.dumps(rows, indent=1))
        written.append(str(folder / "test.json"))
    if "retrain" in cfg.SEARCH.PHASES:
        rows = retrain(plan, trainings, networks)
        if comm.is_main_process():
            write_table(folder, rows, noise=noise, verdicts=verdicts)
        written.append(str(folder / "table.csv"))
    if comm.is_main_process():
        written.append(str(write_report(folder)))
    return written


def _write_splits(plan: Plan) -> tuple[str, Split]:
    """Register archtrain, whose name it returns, archval and the recalibration images."""
    folder = Path(plan.cfg.OUTPUT_DIR, "splits").resolve()
    if comm.is_main_process():
        assert plan.parts is not None
        write_splits(plan.parts, folder)
        plan.parts = None  # the training set, as objects, leaves its memory
    comm.synchronize()
    images = MetadataCatalog.get(plan.cfg.DATASETS.TRAIN[0]).image_root
    names = {part: f"{part} in {folder}" for part in ("archtrain", "archval", "recalibration")}
    for part, name in names.items():
        register_coco(name, str(folder / f"{part}.json"), images)
    archval = load_json(str(folder / "archval.json"), "--resume")
    return names["archtrain"], Split(names["recalibration"], names["archval"], archval)


def _costs(plan: Plan) -> Costs:
    """Of the networks that will be trained, with latency where a budget limits it."""
    network = network_config(plan.cfg, next(iter(plan.bases.values())))
    costs, space = backbone_costs(network), stage_space_of(plan.cfg)
    limits = [limit for budget in plan.bases for limit in budget.limits if limit.cost == "latency"]
    if not limits:
        return costs
    journal, stopwatch = shared_journal(Path(plan.cfg.OUTPUT_DIR, LATENCIES)), Stopwatch(network)
    return LatencyCosts(costs, space, limits, stopwatch, journal)


Found = tuple[Architecture, str]  # and the verdict; empty: there were no finalists


@dataclass(frozen=True)
class Phases:
    """The two phases that search."""

    plan: Plan
    archtrain: str  # name of the registered data set
    split: Split
    costs: Costs  # of the networks that will be trained
    resume: bool  # from earlier checkpoints
    contest: Contest | None  # None: the search's first wins

    def stage(self) -> dict[Budget, Found]:
        """The best stage code for each budget."""
        bases, cfg = self.plan.bases, self._supernet_config("stage")
        # Once more with latencies measured, before weeks of training.
        check_budgets(cfg, bases.items(), self.costs)
        results = self._train_and_search(cfg, stage_space_of(cfg), list(bases), "stage")
        firsts = {budget: self._firsts(budget, candidates) for budget, candidates in results.items()}
        return {budget: self._best(budget, first) for budget, first in firsts.items()}

    def _firsts(self, budget: Budget, candidates: Sequence[Candidate]) -> list[Architecture]:
        number = max(1, self.plan.cfg.SEARCH.FINALISTS.NUM)
        return within(budget, candidates, self.costs, number)

    def _best(self, budget: Budget, firsts: Sequence[Architecture]) -> Found:
        """The first or, with finalists, the best of them and the baseline."""
        if self.contest is None:
            return firsts[0], ""
        return self.contest.choose(budget, self.plan.base_of(budget), firsts)

    def named(self) -> dict[Budget, Found]:
        """In place of a stage search: MODEL.CRNAS's codes, for the first budget that they meet."""
        named = architecture_of(self.plan.cfg)
        met = [budget for budget in self.plan.bases if budget.meets(self.costs(named))]
        own = Budget.parse(block_costs(named))
        if not met:
            text = "MODEL.CRNAS: %s meets none of SEARCH.BUDGETS; searched at its own %s blocks"
            logging.getLogger(__name__).warning(text, named, own)
        return {met[0] if met else own: (named, "")}

    def dilation(self, budget: Budget, architecture: Architecture, folder: str) -> Found:
        """The best dilation code of a stage code that still meets the budget; or rate 1 everywhere.

        Only latency depends on rates, and it is measured on the network as it would be found.
        """
        cfg = self._supernet_config("dilation", architecture, folder)
        space = DilationSpace(architecture.family, architecture.stage_code)
        results = self._train_and_search(cfg, space, [budget], folder)
        firsts = self._firsts(budget, results[budget])
        return self._best(budget, [architecture, *firsts] if self.contest or not firsts else firsts)

    def test(self, networks: dict[str, Architecture]) -> list[dict[str, Any]]:
        """Paths of the joint supernet on the test set, the baseline's first."""
        cfg, plan = self._supernet_config("stage"), self.plan
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (self.archtrain,), ()
        cfg.freeze()
        sets = self.split.recalibration, plan.cfg.DATASETS.TEST[0]
        hook = SearchHook(lambda detector: test_paths(plan.cfg, *sets, detector, networks))
        train(cfg, plan.pretrain, True, hook)
        return hook.results

    def suffix(self, budget: Budget) -> str:
        """Of the files of a budget."""
        return f"_{budget.name}" if len(self.plan.bases) > 1 else ""

    def _write_weights(
        self, budget: Budget, scorer: ArchvalScorer, candidates: Sequence[Candidate]
    ) -> None:
        """found.pth, of the first candidate that meets the budget: its path out of the supernet."""
        firsts = self._firsts(budget, candidates)
        if not firsts:
            return
        cfg, architecture = network_config(self.plan.cfg, self.plan.base_of(budget)), firsts[0]
        (score,) = (c.score for c in candidates if c.architecture == architecture)
        crnas = cfg.MODEL.CRNAS
        crnas.STAGE_CODE = list(architecture.stage_code)
        crnas.DILATION_CODE = list(architecture.dilation_code)
        state, network = scorer.subnet_state(architecture), check_network(cfg)
        assert network is not None
        if differs := difference(network.state_dict(), state):
            text = "found.pth: none: the supernet's weights are not those of FOUND_BASE's network: %s"
            logging.getLogger(__name__).info(text, differs)
        elif comm.is_main_process():
            origin = f"{architecture}, a path out of the supernet: {score:.2f} on archval"
            path = Path(self.plan.cfg.OUTPUT_DIR, f"found{self.suffix(budget)}.pth")
            write_weights(path, cfg, state, origin)

    def _supernet_config(self, phase: str, *of_dilation: Any) -> CfgNode:
        """Of the phase's own supernet, or of the joint one."""
        if self.plan.cfg.SEARCH.JOINT:
            return supernet_config(self.plan.cfg, "joint")
        return supernet_config(self.plan.cfg, phase, *of_dilation)

    def _train_and_search(
        self, cfg: CfgNode, space: Space, budgets: Sequence[Budget], folder: str
    ) -> dict[Budget, list[Candidate]]:
        """Train a supernet on archtrain, unless it is, and search it: candidates by budget, best first.

        ``folder``, below OUTPUT_DIR: of the search's journal and matches.
        """
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (self.archtrain,), ()
        searched = cfg.clone()
        searched.OUTPUT_DIR = str(Path(self.plan.cfg.OUTPUT_DIR) / folder)
        for each in (cfg, searched):
            each.freeze()

        def search(detector: nn.Module) -> dict[Budget, list[Candidate]]:
            scorer = build_scorer(searched, self.split, detector)
            found = run_searches(searched, scorer, space, budgets, self.costs)
            for budget in budgets if self.contest is None else ():
                self._write_weights(budget, scorer, found[budget])
            return found

        hook, phases = SearchHook(search), self.plan.cfg.SEARCH.PHASES
        is_trained = cfg.SEARCH.JOINT and space.phase == "dilation" and "stage" in phases
        train(cfg, self.plan.pretrain, self.resume or is_trained, hook)
        return hook.results


def within(
    budget: Budget, candidates: Sequence[Candidate], costs: Costs, number: int = 1
) -> list[Architecture]:
    """The first of the candidates that meet the budget, at most ``number``; a warning if none does."""
    meeting = (c.architecture for c in candidates if budget.meets(costs(c.architecture)))
    found = list(islice(meeting, number))
    if not found:
        text = "none of the %d best codes meets the budget of %s: rate 1 everywhere is found"
        logging.getLogger(__name__).warning(text, len(candidates), budget)
    return found
