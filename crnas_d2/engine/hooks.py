"""Hooks of a supernet's training: the path of an iteration, the progress bar, and the searches."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable

from tqdm import tqdm

from crnas_d2.architecture import Architecture
from crnas_d2.engine.gradients import broadcast_model
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.modeling.supernet import Supernet
from crnas_d2.search.candidates import Candidate, Costs
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Journal
from crnas_d2.search.stage import stage_search
from crnas_d2.space import DilationSpace, StageSpace
from detectron2.engine import HookBase
from detectron2.utils import comm


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """A tqdm bar, of rank 0 alone; a line every ten seconds where standard error is a file."""
    return tqdm(
        *args,
        disable=not comm.is_main_process(),
        mininterval=0.2 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
        **kwargs,
    )


class PathSampler(HookBase):
    """Before each step, set the supernet's path: a function of (seed, iteration) alone.

    Args:
        budgets: if any, stage paths are drawn from the codes that meet one of them.
    """

    def __init__(self, supernet: Supernet, seed: int, budgets: Sequence[float] = ()) -> None:
        self._supernet = supernet
        self._seed = seed
        space = supernet.space
        self._codes = (
            [code for budget in budgets for code in space.eligible(budget)]
            if isinstance(space, StageSpace)
            else []
        )

    def before_step(self) -> None:
        self._supernet.set_path(self._supernet.space.sample(self._seed, self.trainer.iter, self._codes))

    def after_train(self) -> None:
        self._supernet.set_path(None)


class ProgressBar(HookBase):
    """Iterations, time left and total loss."""

    def before_train(self) -> None:
        self._bar = progress_bar(
            total=self.trainer.max_iter, initial=self.trainer.start_iter, desc="training", unit="it"
        )

    def after_step(self) -> None:
        if comm.is_main_process():
            loss = self.trainer.storage.history("total_loss").latest()
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()


class SearchHook(HookBase):
    """Runs a search when the training of the supernet has come to its end.

    Args:
        build_scorer: called with the trained detector.
        costs: of an architecture.
        journal: the file that remembers scored candidates.

    Attributes:
        results: candidates by budget, best first; empty until the search has run.
    """

    def __init__(
        self, build_scorer: Callable[[Any], ArchvalScorer], costs: Costs, journal: Path
    ) -> None:
        self._build_scorer = build_scorer
        self._costs = costs
        self._path = journal
        self.results: dict[float, list[Candidate]] = {}

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            return  # training was cut short
        broadcast_model(self.trainer.model)
        journal = Journal(self._path, writes=comm.is_main_process())
        comm.synchronize()  # everybody has read the journal before rank 0 writes to it
        self._search(self._build_scorer(self.trainer.model), journal)
        for budget, candidates in self.results.items():
            best = candidates[0]
            logging.getLogger(__name__).info(
                "budget %g: best of %d: %s with %.2f",
                budget,
                len(candidates),
                best.architecture,
                best.score,
            )

    def _search(self, score: ArchvalScorer, journal: Journal) -> None:
        raise NotImplementedError


class StageSearch(SearchHook):
    """All eligible stage codes of each budget (paper, Sec. 3.3.1); one supernet serves them all."""

    def __init__(self, *args: Any, space: StageSpace, budgets: Sequence[float]) -> None:
        super().__init__(*args)
        self._space = space
        self._budgets = budgets

    def _search(self, score: ArchvalScorer, journal: Journal) -> None:
        for budget in self._budgets:
            self.results[budget] = stage_search(
                self._space,
                budget,
                score,
                self._costs,
                journal,
                functools.partial(progress_bar, desc=f"stage search {budget:g}", unit="code"),
            )


class DilationSearch(SearchHook):
    """Greedy search of the dilation code (paper, Sec. 3.3.2)."""

    def __init__(self, *args: Any, space: DilationSpace, budget: float, top_k: int) -> None:
        super().__init__(*args)
        self._space = space
        self._budget = budget
        self._top_k = top_k

    def _search(self, score: ArchvalScorer, journal: Journal) -> None:
        def progress(extended: Sequence[Architecture]) -> Iterable[Architecture]:
            block = len(extended[0].dilation_code)
            description = f"dilation search, block {block} of {extended[0].blocks}"
            return progress_bar(extended, desc=description, unit="code")

        self.results[self._budget] = greedy_search(
            self._space, score, self._costs, journal, self._top_k, progress
        )
