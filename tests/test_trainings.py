"""A network trained alone whose training diverges; what else trainings do is in test_contest.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_outline import planned

from crnas_d2.architecture import Architecture
from crnas_d2.errors import Diverged
from crnas_d2.pipeline import trainings
from crnas_d2.pipeline.run import register_splits
from crnas_d2.pipeline.trainings import WHOLE, Network, Trainings, baseline_of
from detectron2.utils import comm

OTHER = Architecture.undilated("resnet", (2, 1, 1, 1))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trainings that raise, and the path of the base config."""

    def make(error: Exception, processes: int = 1) -> tuple[Trainings, Any]:
        def train(*_: Any, **__: Any) -> None:
            raise error

        plan = planned(tmp_path, "SEARCH.PHASES", ("stage", "retrain"))
        archtrain, split = register_splits(plan)
        monkeypatch.setattr(trainings, "train", train)
        found = Trainings(plan, archtrain, split.archval)
        monkeypatch.setattr(comm, "get_world_size", lambda: processes)
        return found, plan

    return make


@pytest.mark.parametrize(
    ("error", "processes"), [(Diverged("inf"), 2), (Diverged("inf"), 1), (FloatingPointError("inf"), 1)]
)
def test_one_that_diverges_has_a_score_of_0(made: Any, error: Exception, processes: int) -> None:
    found, plan = made(error, processes)
    network = Network(OTHER, next(iter(plan.bases.values())))
    for _ in range(2):  # and resumed: it is not tried again
        assert found(network, WHOLE, 0) == 0.0
    (record,) = found.of(network, WHOLE)
    assert record["failed"] == "inf" and record["metrics"] == {"AP": 0.0} and record["macs"] > 0


def test_the_baseline_may_not_diverge(made: Any) -> None:
    found, plan = made(Diverged("inf"))
    with pytest.raises(Diverged):
        found(baseline_of(plan, next(iter(plan.bases.values()))), WHOLE, 0)


def test_what_one_process_alone_has_seen_ends_all(made: Any) -> None:
    """The others may be in the middle of a step."""
    found, plan = made(FloatingPointError("inf"), processes=2)
    with pytest.raises(FloatingPointError):
        found(Network(OTHER, next(iter(plan.bases.values()))), WHOLE, 0)
