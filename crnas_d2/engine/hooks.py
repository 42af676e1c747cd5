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
from crnas_d2.budget import Budget, Costs, Entry
from crnas_d2.engine.gradients import broadcast_model
from crnas_d2.evaluation.archval import ArchvalScorer
from crnas_d2.modeling.supernet import Supernet
from crnas_d2.search.candidates import Candidate, Score
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Journal
from crnas_d2.space import DilationSpace, Space, StageSpace
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
        budgets: if any, stage paths are drawn from the codes that meet one of them; of blocks alone.
    """

    def __init__(self, supernet: Supernet, seed: int, budgets: Sequence[Entry] = ()) -> None:
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


# A search as stage_search: of (space, budget, score, costs, journal, progress, group_size).
Search = Callable[..., list[Candidate]]


def greedy(
    space: DilationSpace,
    budget: Budget,
    score: Score,
    costs: Costs,
    journal: Journal,
    *,
    top_k: int,
    progress: Callable[..., Any],
    group_size: int,
) -> list[Candidate]:
    """greedy_search (paper, Algorithm 1) as such a search: every dilation code meets the budget.

    Args:
        progress: as progress_bar.
    """

    def of_block(extended: Sequence[Architecture]) -> Iterable[Architecture]:
        block = f"block {len(extended[0].dilation_code)} of {extended[0].blocks}"
        return progress(extended, desc=f"{space.step} search {budget}, {block}")

    return greedy_search(space, score, costs, journal, top_k, of_block, group_size)


class SearchHook(HookBase):
    """Runs a search for each budget when the training of the supernet has come to its end.

    Args:
        build_scorer: called with the trained detector.
        space: the supernet's; one supernet and one journal serve all budgets.
        budgets: at least one.
        search: what is called.
        costs: of an architecture.
        journal: the file that remembers scored candidates.
        group_size: candidates scored together.

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
        journal: Path,
        group_size: int,
    ) -> None:
        self._build_scorer = build_scorer
        self._space = space
        self._budgets = budgets
        self._search = search
        self._costs = costs
        self._path = journal
        self._group_size = group_size
        self.results: dict[Budget, list[Candidate]] = {}

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            return  # training was cut short
        broadcast_model(self.trainer.model)
        journal = Journal(self._path, writes=comm.is_main_process())
        comm.synchronize()  # everybody has read the journal before rank 0 writes to it
        scorer = self._build_scorer(self.trainer.model)
        for budget in self._budgets:
            bar = functools.partial(
                progress_bar, desc=f"{self._space.step} search {budget}", unit="code"
            )
            self.results[budget] = self._search(
                self._space,
                budget,
                scorer,
                self._costs,
                journal,
                progress=bar,
                group_size=self._group_size,
            )
        if scorer.macs.alone:
            logging.getLogger(__name__).info(
                "backbone of this process: %.3g multiply-accumulates, %.3f of those one by one",
                scorer.macs.shared,
                scorer.macs.shared / scorer.macs.alone,
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
