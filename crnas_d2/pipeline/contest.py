"""What a search's first candidates are worth: trained alone beside the baseline, and the verdict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.evaluation.verdict import Difference, Spread, image_noise, smallest_difference
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.configs import network_config
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.trainings import ARCHTRAIN, LONGER, Trainings
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
    _seen: dict[Budget, set[Architecture]] = field(default_factory=dict)

    def noise(self) -> list[Facts]:
        """Train every baseline with all seeds: which differences can be told apart."""
        found, options = [], self.plan.cfg.SEARCH.FINALISTS
        for base in dict.fromkeys(self.plan.bases.values()):
            network = architecture_of(network_config(self.plan.cfg, base))
            scores = [self.trainings(network, base, ARCHTRAIN, n) for n in range(options.SEEDS)]
            facts = self._noise(network, scores)
            if options.TRY_LONGER:
                facts = self._longer(facts, self.trainings(network, base, LONGER, 0))
            found.append({"base": Path(base).name, **facts})
            logging.getLogger(__name__).info("noise of %s: %s", Path(base).name, facts["text"])
        return found

    def _noise(self, network: Architecture, scores: Sequence[float]) -> Facts:
        values = ", ".join(f"{score:.2f}" for score in scores)
        facts: Facts = {"architecture": str(network), "scores": list(scores)}
        if len(scores) < 2:
            text = f"{values} AP on archval; one seed says nothing about noise (SEARCH.FINALISTS.SEEDS)"
            return {**facts, "text": text}
        spread, matches = stdev(scores), self.trainings.matches(network, ARCHTRAIN)
        # Two networks of one seed each; the noise of images is less in means over several seeds.
        images = image_noise(matches[:1], matches[1:2]) / len(scores) ** 0.5
        shown = smallest_difference(spread, len(scores), images)
        seeds = smallest_difference(spread, 2 * len(scores), images / 2**0.5)
        larger = smallest_difference(spread, len(scores), images / 2**0.5)
        text = (
            f"{values} AP on {len(matches[0].image_ids)} images of archval: seeds differ by "
            f"{spread:.2f} (standard deviation), the draw of images by {images.std():.2f}; "
            f"networks that differ by less than {shown:.2f} cannot be told apart (with twice the seeds "
            f"{seeds:.2f}, with twice the images {larger:.2f})"
        )
        known = {"seeds": spread, "images": float(images.std()), "smallest difference": shown}
        return {**facts, **known, "text": text}

    def _longer(self, facts: Facts, score: float) -> Facts:
        """With what half as many iterations again gain; more than seeds differ: a short schedule."""
        gain = score - fmean(facts["scores"])
        text = f"{facts['text']}; half as many iterations again: {gain:+.2f}"
        if gain > facts.get("seeds", 0.0):
            text += ", more than seeds differ: the schedule is short, and may order networks otherwise"
        return {**facts, "longer": score, "text": text}

    def choose(self, budget: Budget, finalists: Sequence[Architecture]) -> tuple[Architecture, Facts]:
        """The best of the finalists and the baseline, and the verdict.

        It allows for the luck of the best among all finalists that the budget has had so far.
        """
        base = self.plan.base_of(budget)
        baseline = architecture_of(network_config(self.plan.cfg, base))
        seen = self._seen.setdefault(budget, set())
        seen |= {*finalists} - {baseline}

        def train(architecture: Architecture, number: int) -> float:
            return self.trainings(architecture, base, ARCHTRAIN, number)

        scores = compete(finalists, baseline, self.plan.cfg.SEARCH.FINALISTS.SEEDS, train)
        best = winner(scores)
        facts: Facts = {"baseline": scores[baseline], "finalists": len(seen)}
        if best == baseline:
            text = f"the baseline stands: none of {len(seen)} finalists has a better mean"
            return best, {"says": STANDS, **facts, "text": text}
        ours, theirs = (self.trainings.matches(a, ARCHTRAIN) for a in (best, baseline))
        spread, images = Spread.of(self.trainings.spreads(ARCHTRAIN)), image_noise(ours, theirs)
        found = Difference(scores[best], scores[baseline], spread, images, among=len(seen))
        of = f"{len(scores[best])} seeds each, {len(ours[0].image_ids)} images of archval"
        text = f"{found}; best of {len(seen)} finalists, {of}"
        if found.says == "better":
            text = f"better than the baseline: {text}; {OPTIMISTIC}"
        else:
            text = f"not told apart from the baseline: {text}; {KEEP}"
        low, high = found.interval
        facts |= {"scores": scores[best], "difference": found.value, "low": low, "high": high}
        return best, {"says": found.says, **facts, "text": text}
