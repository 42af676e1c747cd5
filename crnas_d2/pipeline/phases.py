"""The phases that search: of each, the supernet's training, the search, and what of it is found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.analysis.latency import LatencyCosts, Stopwatch
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.engine import progress
from crnas_d2.engine.setup import check_same_run
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.pipeline.configs import network_config, supernet_config
from crnas_d2.pipeline.contest import Contest, Facts
from crnas_d2.pipeline.found import BASELINE, write_path_weights
from crnas_d2.pipeline.plan import LATENCIES, Plan, check_budgets
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.pipeline.search_hook import SearchHook, run_searches, shared_journal
from crnas_d2.pipeline.testing import test_paths
from crnas_d2.pipeline.training import train
from crnas_d2.pipeline.trainings import Network
from crnas_d2.search.journal import Candidate
from crnas_d2.space import DilationSpace, Space, block_costs
from detectron2.config import CfgNode

Found = tuple[Architecture, Facts]  # and the verdict
NO_VERDICT: Facts = {
    "says": "not compared",
    "text": "no network was trained alone to compare it with the baseline (SEARCH.FINALISTS)",
}


class Phases:
    """The phases of a plan; latency, where a budget limits it, is measured first.

    Args:
        archtrain: name of the registered data set.
        resume: from earlier checkpoints.
        contest: of finalists; None: the search's first is found.

    Raises InputError: a budget of latency that no code meets, or not the baseline.
    """

    def __init__(
        self, plan: Plan, archtrain: str, split: Split, resume: bool, contest: Contest | None
    ) -> None:
        self._plan, self._archtrain, self._split = plan, archtrain, split
        self._resume, self._contest = resume, contest
        self._costs = costs_of(plan)
        if "stage" in plan.cfg.SEARCH.PHASES:
            check_budgets(plan.cfg, plan.bases.items(), self._costs)

    def stage(self) -> dict[Budget, Found]:
        """The best stage code for each budget."""
        cfg = self._supernet_config("stage")
        firsts = self._search(cfg, stage_space_of(cfg), list(self._plan.bases), "stage")
        return {budget: self._best("stage", budget, first) for budget, first in firsts.items()}

    def named(self) -> dict[Budget, Found]:
        """In place of a stage search: MODEL.CRNAS's codes, for the first budget that they meet."""
        named = architecture_of(self._plan.cfg)
        met = [budget for budget in self._plan.bases if budget.meets(self._costs(named))]
        own = Budget.parse(block_costs(named))
        if not met:
            text = "MODEL.CRNAS: %s meets none of SEARCH.BUDGETS; searched at its own %s blocks"
            logging.getLogger(__name__).warning(text, named, own)
        return {met[0] if met else own: (named, NO_VERDICT)}

    def dilation(self, budget: Budget, architecture: Architecture) -> Found:
        """The best dilation code of a stage code that still meets the budget; or rate 1 everywhere.

        Only latency depends on rates, and it is measured on the network as it would be found.
        """
        folder = f"dilation{self._plan.suffix(budget)}"
        cfg = self._supernet_config("dilation", architecture, folder)
        space = DilationSpace(architecture.family, architecture.stage_code)
        first = self._search(cfg, space, [budget], folder)[budget] or [architecture]
        return self._best("dilation", budget, first, architecture)

    def test(self, networks: dict[str, Network]) -> list[dict[str, Any]]:
        """Paths of the joint supernet on the test set, the baseline's first."""
        cfg, plan = self._supernet_config("stage"), self._plan
        cfg.freeze()
        sets = self._split.recalibration, plan.cfg.DATASETS.TEST[0]
        hook = SearchHook(lambda detector: test_paths(plan.cfg, *sets, detector, networks))
        train(cfg, plan.pretrain, True, hook)
        return hook.results

    def _supernet_config(self, phase: str, *of_dilation: Any) -> CfgNode:
        """Of the phase's own supernet, or of the joint one, on archtrain; not frozen."""
        if self._plan.cfg.SEARCH.JOINT:
            phase, of_dilation = "joint", ()
        cfg = supernet_config(self._plan.cfg, phase, *of_dilation)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (self._archtrain,), ()
        return cfg

    def _search(
        self, cfg: CfgNode, space: Space, budgets: Sequence[Budget], folder: str
    ) -> dict[Budget, list[Architecture]]:
        """Train a supernet, unless it is, and search it: of each budget the first that meet it.

        ``folder``, below OUTPUT_DIR: of the search's journal and matches.
        """
        searched = cfg.clone()
        searched.OUTPUT_DIR = str(Path(self._plan.cfg.OUTPUT_DIR) / folder)
        for each in (cfg, searched):
            each.freeze()
        number, phases = max(1, self._plan.cfg.SEARCH.FINALISTS.NUM), self._plan.cfg.SEARCH.PHASES
        is_last = space.phase == "dilation" or "dilation" not in phases

        def search(detector: nn.Module) -> dict[Budget, list[Architecture]]:
            scorer = build_scorer(searched, self._split, detector)
            with progress.at(f"{space.phase} search"):
                results = run_searches(searched, scorer, space, budgets, self._costs)
            firsts = {}
            for budget, candidates in results.items():
                firsts[budget] = within(budget, candidates, self._costs, number)
                if self._contest is None and is_last:
                    code = candidates[0].architecture
                    undilated = Architecture.undilated(code.family, code.stage_code)
                    found = firsts[budget][0] if firsts[budget] else undilated
                    write_path_weights(self._plan, budget, scorer, found)
                    self._write_baseline(budget, scorer, detector)
            return firsts

        if cfg.MODEL.CRNAS.SUPERNET == "dilation":  # a resumed run may have come to another stage code
            check_same_run(cfg, ["MODEL.CRNAS.STAGE_CODE"])
        hook = SearchHook(search)
        is_trained = cfg.SEARCH.JOINT and space.phase == "dilation" and "stage" in phases
        with progress.at(f"{cfg.MODEL.CRNAS.SUPERNET} supernet"):
            train(cfg, self._plan.pretrain, self._resume or is_trained, hook)
        return hook.results

    def _write_baseline(self, budget: Budget, scorer: ArchvalScorer, detector: nn.Module) -> None:
        """Weights of the baseline's path, for who wants to look at both, where the supernet has it."""
        baseline = architecture_of(network_config(self._plan.cfg, self._plan.base_of(budget)))
        supernet = find_supernet(detector)
        if supernet is not None and baseline in supernet.space:
            write_path_weights(self._plan, budget, scorer, baseline, BASELINE)

    def _best(
        self, phase: str, budget: Budget, firsts: Sequence[Architecture], *kept: Architecture
    ) -> Found:
        """``kept``: finalists that have been trained alone."""
        if self._contest is None:
            return firsts[0], NO_VERDICT
        with progress.at(f"{phase} finalists"):
            return self._contest.choose(budget, firsts, *kept)


def costs_of(plan: Plan) -> Costs:
    """Of the networks that will be trained, with latency where a budget limits it."""
    network = network_config(plan.cfg, next(iter(plan.bases.values())))
    costs, space = backbone_costs(network), stage_space_of(plan.cfg)
    limits = [limit for budget in plan.bases for limit in budget.limits if limit.cost == "latency"]
    if not limits:
        return costs
    journal, stopwatch = shared_journal(Path(plan.cfg.OUTPUT_DIR, LATENCIES)), Stopwatch(network)
    return LatencyCosts(costs, space, limits, stopwatch, journal)


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
