"""search_net.py's phases: stage supernet and search, dilation supernet and search, found.yaml, and
retraining if asked. Each resumes where it was interrupted.

    OUTPUT_DIR/splits/archtrain.json archval.json
    OUTPUT_DIR/stage/pretrain/           checkpoints of the classifier, with SEARCH.PRETRAIN
    OUTPUT_DIR/stage/                    checkpoints, journal.jsonl; of a race also race.jsonl, matches/
    OUTPUT_DIR/latency.jsonl             what was measured for budgets of latency
    OUTPUT_DIR/dilation/                 as stage/; dilation_N16/ where there are several budgets
    OUTPUT_DIR/found.yaml                found_N16.yaml where there are several budgets
    OUTPUT_DIR/retrain/                  see retraining.py
    OUTPUT_DIR/report.html               all of this to look at
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.analysis.latency import LatencyCosts, Stopwatch
from crnas_d2.analysis.report import write_report
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.data.coco_json import load_json
from crnas_d2.data.datasets import register_coco
from crnas_d2.data.splits import write_splits
from crnas_d2.engine.setup import write_config
from crnas_d2.engine.trainer import SupernetTrainer, seed_of
from crnas_d2.modeling.build import architecture_of, stage_space_of
from crnas_d2.pipeline.configs import supernet_config, write_found
from crnas_d2.pipeline.plan import LATENCIES, Plan, check_budgets
from crnas_d2.pipeline.pretraining import pretrained
from crnas_d2.pipeline.retraining import retrain
from crnas_d2.pipeline.scorer import Split, build_scorer
from crnas_d2.pipeline.search_hook import Search, SearchHook, run_searches
from crnas_d2.search.alternatives import evolution, random_search
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Candidate, Journal
from crnas_d2.search.race import Compare
from crnas_d2.search.stage import stage_search
from crnas_d2.space import DilationSpace, Space, block_costs
from detectron2.config import CfgNode
from detectron2.utils import comm

# By SEARCH.STAGE.METHOD and SEARCH.DILATION.METHOD, in place of the paper's.
ALTERNATIVES: dict[str, Callable[..., list[Candidate]]] = {
    "evolution": evolution,
    "random": random_search,
}


def run_search(plan: Plan, resume: bool) -> list[str]:
    """Run the phases of SEARCH.PHASES.

    Returns:
        paths of what was written, for the last line.
    """
    cfg, folder = plan.cfg, plan.folder
    phases = Phases(plan, *_write_splits(plan), _costs(plan), resume)
    bases = dict(zip(plan.budgets, plan.bases))
    if "stage" in cfg.SEARCH.PHASES:
        winners = phases.stage()
    else:
        named = architecture_of(cfg)
        met = [budget for budget in plan.budgets if budget.meets(phases.costs(named))]
        winners = {met[0] if met else Budget.parse(block_costs(named)): named}
    written = []
    for budget, architecture in winners.items():
        suffix = f"_{budget.name}" if len(winners) > 1 else ""
        if "dilation" in cfg.SEARCH.PHASES:
            architecture = phases.dilation(budget, architecture, f"dilation{suffix}")
        path = folder / f"found{suffix}.yaml"
        if comm.is_main_process():
            comment = f"{architecture}, found by search_net.py for a budget of {budget}"
            write_found(path, cfg, bases.get(budget, plan.bases[0]), architecture, comment)
        comm.synchronize()
        written.append(str(path))
    if "retrain" in cfg.SEARCH.PHASES:
        written += retrain(cfg, plan.bases, written, folder / "retrain", plan.pretrain)
    if comm.is_main_process():
        written.append(str(write_report(folder)))
    return written


def _write_splits(plan: Plan) -> tuple[str, Split]:
    """Register archtrain, whose name it returns, archval and the recalibration images."""
    folder = (plan.folder / "splits").resolve()
    if comm.is_main_process():
        assert plan.parts is not None
        write_splits(plan.parts, folder)
        plan.parts = None  # the training set, as objects, leaves its memory
    comm.synchronize()
    names = {part: f"{part} in {folder}" for part in ("archtrain", "archval", "recalibration")}
    for part, name in names.items():
        register_coco(name, str(folder / f"{part}.json"), plan.images)
    archval = load_json(str(folder / "archval.json"), "--resume")
    return names["archtrain"], Split(names["recalibration"], names["archval"], archval)


def _costs(plan: Plan) -> Costs:
    """Of the networks that will be trained, with latency where a budget limits it."""
    costs = backbone_costs(plan.networks[0])
    limits = [limit for budget in plan.budgets for limit in budget.limits if limit.cost == "latency"]
    if not limits:
        return costs
    stopwatch = Stopwatch(plan.networks[0])
    journal = Journal(plan.folder / LATENCIES, writes=comm.is_main_process())
    comm.synchronize()  # every rank has read it before rank 0 writes to it
    return LatencyCosts(
        costs,
        space=stage_space_of(plan.cfg),
        limits=limits,
        measure=stopwatch,
        device=stopwatch.device,
        journal=journal,
    )


@dataclass(frozen=True)
class Phases:
    """The two phases that search.

    Attributes:
        archtrain: name of the registered data set.
        split: what is scored on.
        costs: of the networks that will be trained.
        resume: whether earlier checkpoints are resumed from.
    """

    plan: Plan
    archtrain: str
    split: Split
    costs: Costs
    resume: bool

    def stage(self) -> dict[Budget, Architecture]:
        """The best stage code for each budget."""
        cfg, budgets = supernet_config(self.plan.cfg, "stage"), self.plan.budgets
        # Once more with latencies measured, before weeks of training.
        check_budgets(cfg, budgets, self.plan.networks, self.costs)
        method = _alternative(cfg, cfg.SEARCH.STAGE.METHOD) or stage_search
        results = self._train_and_search(cfg, stage_space_of(cfg), budgets, method)
        return {budget: candidates[0].architecture for budget, candidates in results.items()}

    def dilation(self, budget: Budget, architecture: Architecture, folder: str) -> Architecture:
        """The best dilation code of a stage code that still meets the budget; or rate 1 everywhere.

        Only latency depends on rates, and it is measured on the network as it would be found.
        """
        cfg = supernet_config(self.plan.cfg, "dilation", architecture, folder)

        space = DilationSpace(architecture.family, architecture.stage_code)

        def greedy(_: Space, __: Budget, compare: Compare, ___: Costs) -> list[Candidate]:
            return greedy_search(space, compare, cfg.SEARCH.DILATION.TOP_K)

        method = _alternative(cfg, cfg.SEARCH.DILATION.METHOD) or greedy
        results = self._train_and_search(cfg, space, [budget], method)
        return best_within(budget, results[budget], self.costs, otherwise=architecture)

    def _train_and_search(
        self, cfg: CfgNode, space: Space, budgets: Sequence[Budget], method: Search
    ) -> dict[Budget, list[Candidate]]:
        """Train a supernet on archtrain and search it: candidates by budget, best first."""
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (self.archtrain,), ()
        cfg.freeze()
        write_config(cfg)
        cfg = pretrained(cfg, self.plan.pretrain, self.resume)
        trainer = SupernetTrainer(cfg)
        search = SearchHook(
            functools.partial(
                run_searches,
                build_scorer=functools.partial(build_scorer, cfg, self.split),
                space=space,
                budgets=budgets,
                search=method,
                costs=self.costs,
                folder=Path(cfg.OUTPUT_DIR),
                confidence=cfg.SEARCH.RACE.CONFIDENCE,
            )
        )
        trainer.register_hooks([search])
        trainer.resume_or_load(resume=self.resume)
        trainer.train()
        return search.results


def best_within(
    budget: Budget, candidates: Sequence[Candidate], costs: Costs, otherwise: Architecture
) -> Architecture:
    """The first of the candidates that meets the budget; if none does, ``otherwise``, and a warning."""
    for candidate in candidates:
        if budget.meets(costs(candidate.architecture)):
            return candidate.architecture
    logging.getLogger(__name__).warning(
        "none of the %d best dilation codes meets the budget of %s: the found network is %s",
        len(candidates),
        budget,
        otherwise,
    )
    return otherwise


def _alternative(cfg: CfgNode, name: str) -> Search | None:
    """The search of that name, if it is none of the paper's."""
    if name not in ALTERNATIVES:
        return None
    return functools.partial(ALTERNATIVES[name], evaluations=cfg.SEARCH.EVALUATIONS, seed=seed_of(cfg))
