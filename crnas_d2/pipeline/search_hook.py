"""When the training of a supernet has ended, its search runs for each budget."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from torch import nn
from tqdm import tqdm

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.engine.gradients import broadcast_model
from crnas_d2.engine.hooks import progress_bar
from crnas_d2.search.journal import Candidate, Journal
from crnas_d2.search.race import Compare, Race, Scorer
from crnas_d2.space import Space
from detectron2.engine import HookBase
from detectron2.utils import comm

# A search as stage_search: of (space, budget, compare, costs).
Search = Callable[[Any, Budget, Compare, Costs], list[Candidate]]


class SearchHook(HookBase):
    """Calls a function with the trained detector when training has come to its end.

    Args:
        search: as run_searches with all but the detector.

    Attributes:
        results: what it returns; empty until then.
    """

    def __init__(self, search: Callable[[nn.Module], dict[Budget, list[Candidate]]]) -> None:
        self._search = search
        self.results: dict[Budget, list[Candidate]] = {}

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            return  # training was cut short
        broadcast_model(self.trainer.model)
        # The last checkpoint is written; what training alone needs leaves its memory to scoring.
        self.trainer.optimizer.zero_grad(set_to_none=True)
        self.trainer.optimizer.state.clear()
        self.results = self._search(self.trainer.model)


def run_searches(
    detector: nn.Module,
    *,
    build_scorer: Callable[[nn.Module], Scorer],
    space: Space,
    budgets: Sequence[Budget],
    search: Search,
    costs: Costs,
    folder: Path,
    confidence: float,
) -> dict[Budget, list[Candidate]]:
    """A search for each budget; its candidates, best first. Raises as check_told_apart.

    Args:
        space: the supernet's; one supernet and one journal serve all budgets.
        folder: of journal.jsonl, which remembers scored candidates, and of a race's race.jsonl.
        confidence: as Race's.
    """
    scorer, logger = build_scorer(detector), logging.getLogger(__name__)
    writes = comm.is_main_process()
    journal, verdicts = (Journal(folder / f"{name}.jsonl", writes) for name in ("journal", "race"))
    comm.synchronize()  # every rank has read the journals before rank 0 writes to them
    results = {}
    for budget in budgets:
        bar = functools.partial(search_bar, f"{space.phase} search {budget}")
        compare = Race(space.phase, budget.name, scorer, costs, journal, verdicts, confidence, bar)
        candidates = results[budget] = search(space, budget, compare, costs)
        check_told_apart([*journal.records, *verdicts.records], space.phase)
        best = candidates[0]
        logger.info(
            "budget %s: best of %d: %s with %.2f",
            *(budget, len(candidates), best.architecture, best.score),
        )
    if len(scorer.images) > 1:
        dropped = Counter(record["images"] for record in verdicts.records)
        parts = [f"{count} after {images} images" for images, count in sorted(dropped.items())]
        logger.info(
            "race: dropped %s; %d saw all of archval (%s)",
            *(", ".join(parts) or "none", len(journal.records), folder / "race.jsonl"),
        )
    return results


def check_told_apart(records: Sequence[dict[str, Any]], phase: str) -> None:
    """Raise FloatingPointError if all candidates of a phase scored 0, or several all the same.

    ``records`` are those of the journal, and of candidates that a race has dropped.
    """
    scores = [record["score"] for record in records if record["phase"].split()[0] == phase]
    if scores and not any(scores):
        raise FloatingPointError(
            f"{phase} search: every candidate scored 0 ({len(scores)} of them): the supernet detects "
            "nothing; train it longer"
        )
    if len(scores) > 1 and len(set(scores)) == 1:
        raise FloatingPointError(
            f"{phase} search: all {len(scores)} candidates scored {scores[0]:g}: archval does not tell "
            "the supernet's paths apart; train it longer, or hold out more images (SEARCH.ARCHVAL.SIZE)"
        )


def search_bar(desc: str, candidates: Sequence[Architecture]) -> tqdm:
    """The bar of candidates that are compared; of dilation codes, with how far they have grown."""
    if candidates and "dilation" in desc:
        desc += f", {len(candidates[0].dilation_code)} of {candidates[0].blocks} digits"
    return progress_bar(candidates, desc=desc, unit="code")
