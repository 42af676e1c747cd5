"""What a search's first candidates are worth: trained alone beside the baseline, and the verdict."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.engine import progress
from crnas_d2.evaluation.verdict import Difference, Spread, image_noise, smallest_difference
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.trainings import ARCHTRAIN, LONGER, Network, Trainings, baseline_of
from crnas_d2.search.finalists import compete, winner

STANDS = "the baseline stands"
KEEP = "keep the baseline if you have weights for it"
OPTIMISTIC = "it was chosen by these scores, and only fresh seeds make a claim (phase retrain)"
Facts = dict[str, Any]  # as results.json has them; "text" says them in words


@dataclass(eq=False)
class Contest:
    """Finalists of a run's budgets; the baselines' trainings come first and are shared."""

    plan: Plan
    trainings: Trainings
    _scores: dict[Budget, dict[Architecture, list[float]]] = field(default_factory=dict)
    _known: list[Facts] = field(default_factory=list)  # noise

    def noise(self) -> list[Facts]:
        """Train every baseline with all seeds, once: which differences can be told apart."""
        found, options = self._known, self.plan.cfg.SEARCH.FINALISTS
        if found:
            return found
        for base in dict.fromkeys(self.plan.bases.values()):
            network = baseline_of(self.plan, base)
            with progress.at("noise"):
                scores = [self.trainings(network, ARCHTRAIN, n) for n in range(options.SEEDS)]
            facts = self._noise(network, scores)
            if options.TRY_LONGER:
                with progress.at("longer schedule"):
                    facts = _longer(facts, self.trainings(network, LONGER, 0))
            found.append({"base": Path(base).name, **facts})
            logging.getLogger(__name__).info("noise of %s: %s", Path(base).name, facts["text"])
        return found

    def _noise(self, network: Network, scores: Sequence[float]) -> Facts:
        values = ", ".join(f"{score:.2f}" for score in scores)
        facts: Facts = {"architecture": str(network.architecture), "scores": list(scores)}
        seeds, among = len(scores), self.plan.cfg.SEARCH.FINALISTS.NUM
        if seeds < 2:
            text = f"{values} AP on archval; one seed says nothing about noise (SEARCH.FINALISTS.SEEDS)"
            return {**facts, "text": text}
        spread, matches = stdev(scores), self.trainings.matches(network, ARCHTRAIN, seeds)
        # Two networks of one seed each; the noise of images is less in means over several seeds.
        images = image_noise(matches[:1], matches[1:2]) / seeds**0.5
        shown, twice, larger = (
            smallest_difference(spread, seeds * times, images / root, among)
            for times, root in ((1, 1), (2, 2**0.5), (1, 2**0.5))
        )
        text = (
            f"{values} AP on {len(matches[0].image_ids)} images of archval: seeds have a standard "
            f"deviation of {spread:.2f}; the difference of two means over {seeds} seeds has one of "
            f"{spread * (2 / seeds) ** 0.5:.2f} by seeds and {images.std():.2f} by the draw of images; "
            f"the best of {among} finalists is told apart from the baseline if it is {shown:.2f} "
            f"better (with twice the seeds {twice:.2f}, with twice the images {larger:.2f})"
        )
        known = {"seeds": spread, "images": float(images.std()), "smallest difference": shown}
        return {**facts, **known, "text": text}

    def choose(
        self, budget: Budget, finalists: Sequence[Architecture], *kept: Architecture
    ) -> tuple[Architecture, Facts]:
        """The best of the finalists, those that were ``kept`` before, and the baseline; the verdict.

        It allows for the luck of the best among all finalists that the budget has had so far.
        """
        if self.plan.cfg.SEARCH.INHERIT:
            self.noise()  # else it was known before any supernet was trained
        base, seeds = self.plan.base_of(budget), self.plan.cfg.SEARCH.FINALISTS.SEEDS
        baseline = baseline_of(self.plan, base).architecture

        def train(architecture: Architecture, number: int) -> float:
            return self.trainings(Network(architecture, base), ARCHTRAIN, number)

        scores = compete(finalists, list(dict.fromkeys([baseline, *kept])), seeds, train)
        every = self._scores.setdefault(budget, {})
        every |= scores
        best, among = winner(scores), len({*every} - {baseline})
        facts: Facts = {"baseline": scores[baseline], "finalists": among}
        if best == baseline:
            why = f"none of {among} finalists came to the last round with a better mean"
            text = f"{STANDS}: {why if among else 'it was the only finalist'}"
            return best, {"says": STANDS, **facts, "text": text}
        networks = Network(best, base), Network(baseline, base)
        ours, theirs = (self.trainings.matches(of, ARCHTRAIN, seeds) for of in networks)
        whole = [of for a, of in every.items() if not self._has_diverged(Network(a, base))]
        images, spread = image_noise(ours, theirs), Spread.of(whole)
        found = Difference(scores[best], scores[baseline], spread, images, among)
        text = f"{found}; best of {among} finalists, {seeds} seeds"
        if ours:
            text += f", {len(ours[0].image_ids)} images"
        if self.plan.cfg.SEARCH.INHERIT:
            text += ", all trained from their paths in this supernet"
        if found.says == "better":
            text = f"better than the baseline: {text}; {OPTIMISTIC}"
        else:
            text = f"not told apart from the baseline: {text}; {KEEP}"
        low, high = found.known_ends
        facts |= {"scores": scores[best], "difference": found.value, "low": low, "high": high}
        return best, {"says": found.says, **facts, "text": text}

    def _has_diverged(self, network: Network) -> bool:
        return any("failed" in record for record in self.trainings.of(network, ARCHTRAIN))


def _longer(facts: Facts, score: float) -> Facts:
    """With what half as many iterations again gain; more than seeds differ: a short schedule."""
    gain = score - fmean(facts["scores"])
    text = f"{facts['text']}; half as many iterations again: {gain:+.2f}"
    if gain > facts.get("seeds", math.inf):
        text += ", more than seeds differ: the schedule is short, and may order networks otherwise"
    return {**facts, "longer": score, "text": text}
