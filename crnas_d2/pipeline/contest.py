"""What a search's first candidates are worth: trained alone beside the baseline, and the verdict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.evaluation.verdict import Difference, Spread, image_noise, smallest_difference
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline.configs import network_config
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.trainings import ARCHTRAIN, Trainings
from crnas_d2.search.finalists import compete, winner


@dataclass(eq=False)
class Contest:
    """Finalists of a run's budgets; the baselines' trainings come first and are shared."""

    plan: Plan
    trainings: Trainings
    _seen: dict[Budget, set[Architecture]] = field(default_factory=dict)

    def noise(self) -> list[str]:
        """Train every baseline with all seeds; in words, which differences can be told apart."""
        lines, seeds = [], self.plan.cfg.SEARCH.FINALISTS.SEEDS
        for base in dict.fromkeys(self.plan.bases.values()):
            network = architecture_of(network_config(self.plan.cfg, base))
            scores = [self.trainings(network, base, ARCHTRAIN, number) for number in range(seeds)]
            lines.append(f"{Path(base).name}: {self._noise(network, scores)}")
            logging.getLogger(__name__).info(lines[-1])
        return lines

    def _noise(self, network: Architecture, scores: Sequence[float]) -> str:
        values = ", ".join(f"{score:.2f}" for score in scores)
        if len(scores) < 2:
            return f"{values} AP on archval; one seed says nothing about noise (SEARCH.FINALISTS.SEEDS)"
        spread, matches = stdev(scores), self.trainings.matches(network, ARCHTRAIN)
        # Two networks of one seed each; the noise of images is less in means over several seeds.
        images = image_noise(matches[:1], matches[1:2]) / len(scores) ** 0.5
        shown = smallest_difference(spread, len(scores), images)
        twice = smallest_difference(spread, 2 * len(scores), images / 2**0.5)
        larger = smallest_difference(spread, len(scores), images / 2**0.5)
        return (
            f"{values} AP on {len(matches[0].image_ids)} images of archval: seeds differ by "
            f"{spread:.2f} (standard deviation), the draw of images by {images.std():.2f}; "
            f"networks that differ by less than {shown:.2f} cannot be told apart (with twice the seeds "
            f"{twice:.2f}, with twice the images {larger:.2f})"
        )

    def choose(self, budget: Budget, finalists: Sequence[Architecture]) -> tuple[Architecture, str]:
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
        if best == baseline:
            return best, f"the baseline stands: none of {len(scores) - 1} finalists has a better mean"
        ours, theirs = (self.trainings.matches(a, ARCHTRAIN) for a in (best, baseline))
        found = Difference(
            scores[best],
            scores[baseline],
            Spread.of(self.trainings.spreads(ARCHTRAIN)),
            image_noise(ours, theirs),
            among=len(seen),
        )
        of = f"{len(scores[best])} seeds each, {len(ours[0].image_ids)} images of archval"
        text = f"{found}; best of {found.among} finalists, {of}"
        if found.says == "better":
            return best, f"better than the baseline: {text}"
        why = "keep the baseline if you have weights for it"
        return best, f"not told apart from the baseline: {text}; {why}"
