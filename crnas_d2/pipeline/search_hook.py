"""SearchHook: when the training of a supernet has ended, its search runs for each budget."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from tqdm import tqdm

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.engine.gradients import broadcast_model
from crnas_d2.engine.hooks import progress_bar
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.pipeline.looks import ArchvalLooks
from crnas_d2.search.candidates import Candidate, Compare, ScoreAll
from crnas_d2.search.journal import Journal
from crnas_d2.search.race import Race
from crnas_d2.space import Space
from detectron2.engine import HookBase
from detectron2.utils import comm


def search_bar(desc: str, candidates: Sequence[Architecture]) -> tqdm:
    """The bar of candidates that are compared; of dilation codes, with how far they have grown."""
    if candidates and "dilation" in desc:
        desc += f", {len(candidates[0].dilation_code)} of {candidates[0].blocks} digits"
    return progress_bar(candidates, desc=desc, unit="code")


# A search as stage_search: of (space, budget, compare, costs).
Search = Callable[[Any, Budget, Compare, Costs], list[Candidate]]


class SearchHook(HookBase):
    """Runs a search for each budget when the training of the supernet has come to its end.

    Args:
        build_scorer: called with the trained detector.
        space: the supernet's; one supernet and one journal serve all budgets.
        budgets: at least one.
        search: what is called.
        costs: of an architecture.
        folder: of journal.jsonl, which remembers scored candidates, and of what a race writes.
        group_size: candidates scored together.
        race_confidence: as Race's; 0: no race, every candidate is scored on all of archval.
        seed: of a race.

    Attributes:
        results: candidates by budget, best first; empty until the search has run.
    """

    def __init__(
        self,
        build_scorer: Callable[[Any], ArchvalScorer],
        *,
        space: Space,
        budgets: Sequence[Budget],
        search: Search,
        costs: Costs,
        folder: Path,
        group_size: int,
        race_confidence: float,
        seed: int,
    ) -> None:
        self._build_scorer = build_scorer
        self._space = space
        self._budgets = budgets
        self._search = search
        self._costs = costs
        self._folder = folder
        self._group_size = group_size
        self._race_confidence = race_confidence
        self._seed = seed
        self.results: dict[Budget, list[Candidate]] = {}

    def _journal(self, name: str) -> Journal:
        return Journal(self._folder / name, writes=comm.is_main_process())

    def _comparison(
        self, budget: Budget, scorer: ArchvalScorer, journal: Journal, verdicts: Journal
    ) -> Compare:
        phase = self._space.phase
        bar = functools.partial(search_bar, f"{phase} search {budget}")
        if not self._race_confidence:
            return ScoreAll(phase, scorer, self._costs, journal, bar, self._group_size)
        return Race(
            phase,
            budget.name,
            ArchvalLooks(scorer, self._folder / "matches", self._seed),
            self._costs,
            journal,
            verdicts,
            self._race_confidence,
            bar,
            self._group_size,
        )

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            return  # training was cut short
        broadcast_model(self.trainer.model)
        # The last checkpoint is written; what training alone needs leaves its memory to scoring.
        self.trainer.optimizer.zero_grad(set_to_none=True)
        self.trainer.optimizer.state.clear()
        scorer = self._build_scorer(self.trainer.model)
        journal, verdicts = self._journal("journal.jsonl"), self._journal("race.jsonl")
        comm.synchronize()  # everybody has read the journals before rank 0 writes to them
        for budget in self._budgets:
            compare = self._comparison(budget, scorer, journal, verdicts)
            self.results[budget] = self._search(self._space, budget, compare, self._costs)
        if scorer.macs.alone:
            logging.getLogger(__name__).info(
                "backbone of this process: %.3g multiply-accumulates, %.3f of those one by one",
                scorer.macs.shared,
                scorer.macs.shared / scorer.macs.alone,
            )
        if self._race_confidence:
            dropped = Counter(record["images"] for record in verdicts.records)
            parts = [f"{count} after {images} images" for images, count in sorted(dropped.items())]
            logging.getLogger(__name__).info(
                "race: dropped %s; %d saw all of archval (%s)",
                ", ".join(parts) or "nobody",
                len(journal.records),
                self._folder / "race.jsonl",
            )
        for budget, candidates in self.results.items():
            best = candidates[0]
            logging.getLogger(__name__).info(
                "budget %s: best of %d: %s with %.2f",
                budget,
                len(candidates),
                best.architecture,
                best.score,
            )
