"""When the training of a supernet has ended, its search runs for each budget."""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget, Costs
from crnas_d2.engine.gradients import broadcast_model
from crnas_d2.engine.progress import Bar, progress_bar
from crnas_d2.engine.trainer import seed_of
from crnas_d2.errors import MemoryIsFull
from crnas_d2.evaluation.scorer import ArchvalScorer
from crnas_d2.evaluation.verdict import Difference, Spread, image_noise
from crnas_d2.files import write_text
from crnas_d2.search.alternatives import evolution, random_search
from crnas_d2.search.greedy import greedy_search
from crnas_d2.search.journal import Candidate, Journal, open_digits
from crnas_d2.search.race import Compare, Race
from crnas_d2.search.stage import stage_search
from crnas_d2.space import DilationSpace, Space
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

RATES = "rates.txt"
# A search as stage_search: of (space, budget, compare, costs).
Search = Callable[[Any, Budget, Compare, Costs], list[Candidate]]


class SearchHook(HookBase):
    """Calls ``search`` with the detector when training has ended; ``results`` is what it returns."""

    def __init__(self, search: Callable[[nn.Module], Any]) -> None:
        self._search = search
        self.results: Any = None

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            return  # training was cut short
        broadcast_model(self.trainer.model)
        # The last checkpoint is written; what training alone needs leaves its memory to scoring.
        self.trainer.optimizer.zero_grad(set_to_none=True)
        self.trainer.optimizer.state.clear()
        try:
            self.results = self._search(self.trainer.model)
        except torch.cuda.OutOfMemoryError as error:
            key = f"SEARCH.EVAL.BATCH_SIZE {self.trainer.cfg.SEARCH.EVAL.BATCH_SIZE}"
            raise MemoryIsFull(
                f"scoring: the GPU's memory is too small: lower {key}; --resume takes another value as "
                "long as no candidate is scored"
            ) from error


def run_searches(
    cfg: CfgNode, scorer: ArchvalScorer, space: Space, budgets: Sequence[Budget], costs: Costs
) -> dict[Budget, list[Candidate]]:
    """The candidates of a search for each budget, best first. Raises as check_told_apart.

    With SEARCH.DILATION.EVIDENCE the first of a dilation search is undilated unless rates surely help.

    Written in OUTPUT_DIR: the journals that all share, journal.jsonl of scored candidates and a race's
    race.jsonl; and, with SEARCH.DILATION.EVIDENCE, rates.txt, why rates were kept or not.
    """
    logger, results = logging.getLogger(__name__), {}
    search, confidence = search_method(cfg, space.phase), cfg.SEARCH.RACE.CONFIDENCE
    files = [Path(cfg.OUTPUT_DIR, name) for name in ("journal.jsonl", "race.jsonl")]
    journal, dropped = map(shared_journal, files)
    if comm.is_main_process():
        journal.listener = TensorBoard(cfg.OUTPUT_DIR, journal)
    for budget in budgets:
        bar = functools.partial(search_bar, f"{space.phase} search {budget}", journal)
        compare = Race(space.phase, budget.name, scorer, costs, journal, dropped, confidence, bar)
        results[budget] = search(space, budget, compare, costs)
        check_told_apart([*journal.records, *dropped.records], space.phase)
        if isinstance(space, DilationSpace) and cfg.SEARCH.DILATION.EVIDENCE:
            undilated = Architecture.undilated(space.family, space.stage_code)
            (plain,) = compare([undilated], 1)
            results[budget], text = first_with_evidence(scorer, results[budget], plain)
            logger.info("rates: %s", text)
            if comm.is_main_process():
                write_text(Path(cfg.OUTPUT_DIR, RATES), text)
        best, text = results[budget][0], "budget %s: best of %d: %s with %.2f (standard error %.2f)"
        line = next(r for r in journal.records if r["architecture"] == str(best.architecture))
        counted = len(results[budget]), best.architecture, best.score, line.get("error", math.nan)
        logger.info(text, budget, *counted)
    if len(scorer.images) > 1:
        counts = sorted(Counter(record["images"] for record in dropped.records).items())
        parts = ", ".join(f"{count} after {images} images" for images, count in counts)
        text = "race: dropped %s; %d saw all of archval (%s)"
        logger.info(text, parts or "none", len(journal.records), files[1])
    return results


BEST_OF_THREE = 0.846  # expectation of the largest of three draws from N(0, 1)


def first_with_evidence(
    scorer: ArchvalScorer, candidates: list[Candidate], undilated: Candidate
) -> tuple[list[Candidate], str]:
    """The candidates, best first; or the undilated one alone, unless the best surely leads; and why.

    The best code leads by luck even where all rates are equal: in each block it has the best of three
    for these images. That luck, if the effects of blocks add up, is taken off its lead.
    """
    best = candidates[0]
    chosen = sum(digit > 0 for digit in best.architecture.dilation_code)
    if not chosen:
        return candidates, f"{best.architecture}, rate 1 everywhere, is the best"
    scorer.ensure([best.architecture, undilated.architecture])
    ours, theirs = ([scorer.matches(c.architecture)] for c in (best, undilated))
    images = image_noise(ours, theirs)  # of the same weights: no seeds are between them
    # Two codes that differ in m blocks differ by sqrt(2 m) times the noise of one block.
    blocks = sum(map(best.architecture.has_choice, range(best.architecture.blocks)))
    luck = BEST_OF_THREE * blocks * images.std() / math.sqrt(2 * chosen)
    scores = [best.score - luck], [undilated.score]
    found = Difference(*scores, Spread(0.0, 1), images, level=0.9)  # 95 % on the side that counts
    kept = found.says == "better"
    text = (
        f"{best.architecture} is {best.score - undilated.score:+.2f} from rate 1 everywhere on "
        f"{scorer.images[-1]} images, less {luck:.2f} of luck: {found}; {'' if kept else 'not '}kept"
    )
    return (candidates if kept else [undilated]), text


def search_method(cfg: CfgNode, phase: str) -> Search:
    """What SEARCH.STAGE.METHOD or SEARCH.DILATION.METHOD names."""
    keep, top_k = max(1, cfg.SEARCH.FINALISTS.NUM), cfg.SEARCH.DILATION.TOP_K
    options = {"evaluations": cfg.SEARCH.EVALUATIONS, "seed": seed_of(cfg), "keep": keep}
    methods: dict[str, Search] = {
        "exhaustive": functools.partial(stage_search, keep=keep),
        "greedy": lambda space, budget, compare, costs: greedy_search(space, compare, top_k, keep),
        "evolution": functools.partial(evolution, **options),
        "random": functools.partial(random_search, **options),
    }
    return methods[cfg.SEARCH[phase.upper()].METHOD]


class TensorBoard:
    """Shows each new candidate of a journal: its score, and the best so far."""

    def __init__(self, folder: str, journal: Journal) -> None:
        self._folder, self._journal = folder, journal
        self._writer: SummaryWriter | None = None  # no file where nothing is new

    def __call__(self, record: dict[str, Any]) -> None:
        self._writer = self._writer or SummaryWriter(self._folder)
        # Partial codes of different lengths cannot be compared.
        left = open_digits(record)
        name = record["phase"] + (f", {left} digits open" if left else "")
        alike = [other for other in self._journal.records if open_digits(other) == left]
        self._writer.add_scalar(f"{name}/score", record["score"], len(alike))
        self._writer.add_scalar(f"{name}/best so far", max(r["score"] for r in alike), len(alike))
        self._writer.flush()


def shared_journal(path: Path) -> Journal:
    """A journal that every rank has read, and that rank 0 writes to."""
    journal = Journal(path, writes=comm.is_main_process())
    comm.synchronize()  # nothing is written before
    return journal


def check_told_apart(records: Sequence[dict[str, Any]], phase: str) -> None:
    """Raise FloatingPointError if all candidates of a phase scored 0, or several all the same.

    ``records``: of the journal, and of candidates that a race has dropped.
    """
    scores = [record["score"] for record in records if record["phase"].split()[0] == phase]
    count = len(scores)
    if scores and not any(scores):
        found = f"every candidate scored 0 ({count} of them): the supernet detects nothing"
        raise FloatingPointError(f"{phase} search: {found}; train it longer")
    if count > 1 and len(set(scores)) == 1:
        raise FloatingPointError(
            f"{phase} search: all {count} candidates scored {scores[0]:g}: archval does not tell the "
            "supernet's paths apart; train it longer, or hold out more images (SEARCH.ARCHVAL.SIZE)"
        )


def search_bar(desc: str, journal: Journal, candidates: Sequence[Architecture]) -> Bar:
    """The bar of candidates that are compared; of dilation codes, with how far they have grown."""
    if candidates and "dilation" in desc:
        desc += f", {len(candidates[0].dilation_code)} of {candidates[0].blocks} digits"
    bar = progress_bar(candidates, desc=desc, unit="code")

    def best() -> str:
        """Of those that have grown as far as the furthest: others are not compared with them."""
        alike = min(map(open_digits, journal.records), default=0)
        scores = [r["score"] for r in journal.records if open_digits(r) == alike]
        return f"; best {max(scores):.2f}" if scores else ""

    bar.note = best
    return bar
