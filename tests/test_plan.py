"""What search_net.py is asked to do: base configs, baselines and budgets, derived configs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from detectors import TINY, command_line, tiny_shapes

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.pipeline.configs import supernet_config
from crnas_d2.pipeline.phases import Phases, within
from crnas_d2.pipeline.plan import Plan, plan_search
from crnas_d2.pipeline.trainings import scale_schedule
from crnas_d2.search.journal import Candidate
from detectron2.engine import default_argument_parser

N5 = ["MODEL.CRNAS.STAGE_CODE", [1, 2, 1, 1]]
N6 = ["MODEL.CRNAS.STAGE_CODE", [1, 2, 1, 2]]


def planned(folder: Path, bases: dict[str, list[Any]], *options: Any) -> Plan:
    """The plan of a tiny search with these base configs."""
    for name, keys in {"search": [], **bases}.items():
        (folder / f"{name}.yaml").write_text(read_config("", [*TINY, *keys]).dump())
    own = [*tiny_shapes(folder / "data"), "OUTPUT_DIR", str(folder / "out")]
    own += ["SEARCH.FOUND_BASE", tuple(f"{name}.yaml" for name in bases), *options]
    line = ["--config-file", str(folder / "search.yaml"), *command_line(own)]
    return plan_search(default_argument_parser().parse_args(line))


def test_a_base_for_each_budget(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"six": N6, "five": N5}, "SEARCH.BUDGETS", (6, 5))
    found = {budget.name: Path(base).name for budget, base in plan.bases.items()}
    assert found == {"N6": "six.yaml", "N5": "five.yaml"}


@pytest.mark.parametrize(("base", "budget", "warned"), [(N5, "N5", False), (N6, "N6", True)])
def test_a_named_code_outside_the_budgets_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, base: list[Any], budget: str, warned: bool
) -> None:
    """Without a stage search the code is taken as it is; found.yaml then names its own cost."""
    options = ["SEARCH.PHASES", ("dilation",), *base, "SEARCH.BUDGETS", (5,)]
    plan = planned(tmp_path, {"a": base}, *options)
    found = Phases(plan, "", None, resume=False, contest=None).named()
    ((named, (architecture, _)),) = found.items()
    assert (named.name, list(architecture.stage_code)) == (budget, base[1])
    assert ("meets none of SEARCH.BUDGETS" in caplog.text) == warned


@pytest.mark.parametrize("alone", [["SEARCH.FINALISTS.NUM", 2], []], ids=["finalists", "a table"])
def test_a_named_code_is_compared_at_its_own_cost(tmp_path: Path, alone: list[Any]) -> None:
    """Of several budgets only the one that it meets counts, with that one's baseline."""
    phases = ("dilation",) if alone else ("dilation", "retrain")
    options = ["SEARCH.PHASES", phases, *N6, *alone]
    plan = planned(tmp_path, {"five": N5, "six": N6}, *options, "SEARCH.BUDGETS", (5, 6))
    assert [Path(base).name for base in plan.bases.values()] == ["six.yaml"]
    for bases, budgets in (({"five": N5}, (6,)), ({"five": N5}, (5,))):
        with pytest.raises(InputError) as caught:
            planned(tmp_path, bases, *options, "SEARCH.BUDGETS", budgets)
        shown = "MODEL.CRNAS.STAGE_CODE: (1, 2, 1, 2): it is compared with resnet/1-2-1-1/0-00-0-0 of "
        assert str(caught.value).startswith(shown)


def test_a_dilation_supernet_is_not_trained_on_for_another_stage_code(tmp_path: Path) -> None:
    """As where a resumed search has more finalists, of which another one is the best."""
    plan = planned(tmp_path, {"five": N5}, "SEARCH.PHASES", ("dilation",), "SEARCH.BUDGETS", (5,))
    earlier = read_config("", [*TINY, "MODEL.CRNAS.STAGE_CODE", [2, 1, 1, 1]])
    written = tmp_path / "out" / "dilation" / "config.yaml"
    written.parent.mkdir(parents=True)
    written.write_text(earlier.dump())
    with pytest.raises(InputError, match=r"MODEL\.CRNAS\.STAGE_CODE: \[1, 2, 1, 1\]: the run in "):
        phases = Phases(plan, "", None, resume=True, contest=None)
        phases.dilation(Budget.parse(5), Architecture.undilated("resnet", (1, 2, 1, 1)))
    assert written.read_text() == earlier.dump()


PARAMS_OF_N6 = {"params": [12796, 0.02]}


@pytest.mark.parametrize(
    ("bases", "options", "message"),
    [
        ({"a": N5, "b": N5}, [], "SEARCH.FOUND_BASE: ('a.yaml', 'b.yaml'): one config is needed"),
        (
            {"a": N5, "b": [*N6, "MODEL.CRNAS.WIDTH_MULTIPLIER", 2.0]},
            ["SEARCH.BUDGETS", (5, 6)],
            "b.yaml: its blocks cost other than those of ",
        ),
        ({"a": [*N5, "MODEL.CRNAS.SUPERNET", "stage"]}, [], "a fixed network of 'resnet' is needed"),
        ({"a": N5}, ["SEARCH.BUDGETS", (5, 6)], "a.yaml, has blocks 5; "),
        ({"a": N5}, ["SEARCH.BUDGETS", (PARAMS_OF_N6,)], "a.yaml, has params 8700; "),
    ],
    ids=["two for one budget", "another width", "a supernet", "one budget only", "other parameters"],
)
def test_bases_that_are_refused(
    tmp_path: Path, bases: dict[str, list[Any]], options: list[Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        planned(tmp_path, bases, *options)
    assert message in str(caught.value) and "SEARCH.FOUND_BASE" in str(caught.value)


JOINT = ["SEARCH.JOINT", True, "MODEL.CRNAS.SHARED", True]
ONE_DEPTH = ["MODEL.CRNAS.STAGE_SPACE", [[1], [1], [1], [2]]]


@pytest.mark.parametrize(
    ("phases", "key"),
    [
        (("dilation",), "MODEL.CRNAS: STAGE_CODE (1, 2, 1, 1)"),
        (("stage", "test"), "five.yaml: STAGE_CODE (1, 2, 1, 1)"),
    ],
)
def test_a_code_outside_the_joint_supernet(tmp_path: Path, phases: tuple[str], key: str) -> None:
    options = [*JOINT, *ONE_DEPTH, "SEARCH.PHASES", phases]
    with pytest.raises(InputError) as caught:
        planned(tmp_path, {"five": N5}, *options)
    assert f"{key}: not in the joint supernet, whose depths are ((1,), " in str(caught.value)


def test_networks_alone_have_masks_where_masks_are_scored(tmp_path: Path) -> None:
    options = ["MODEL.MASK_ON", True, "SEARCH.EVAL.TASK", "segm", "SEARCH.FINALISTS.NUM", 2]
    with pytest.raises(InputError, match=r"five\.yaml: has MODEL\.MASK_ON False"):
        planned(tmp_path, {"five": N5}, *options)


def test_a_shortened_schedule_warms_up_for_less_time() -> None:
    keys = ["SOLVER.MAX_ITER", 90, "SOLVER.STEPS", (60, 80), "SOLVER.WARMUP_ITERS", 10]
    keys += ["SOLVER.EPOCHS", 12, "SOLVER.STEP_EPOCHS", (8, 11)]
    solver = read_config("", [*TINY, *keys]).SOLVER
    scale_schedule(solver, 0.5)
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (45, (30, 40), 5)
    assert (solver.EPOCHS, solver.STEP_EPOCHS) == (6, (4, 5.5))


def test_a_search_that_judges_another_detector_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ["MODEL.FPN.OUT_CHANNELS", 24, "INPUT.MIN_SIZE_TEST", 64]
    with caplog.at_level(logging.WARNING):
        planned(tmp_path, {"five": [*N5, *keys]})
    (warning,) = (r.getMessage() for r in caplog.records if "another detector" in r.getMessage())
    assert "five.yaml" in warning
    assert warning.endswith("; keys that differ: INPUT.MIN_SIZE_TEST, MODEL.FPN.OUT_CHANNELS")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        planned(tmp_path, {"five": N5}, "MODEL.CRNAS.WIDTH_MULTIPLIER", 0.5)
    assert not [r for r in caplog.records if "another detector" in r.getMessage()]


def test_only_eligible_prunes_the_space_of_the_stage_supernet() -> None:
    cfg = read_config("", [*TINY, "SEARCH.BUDGETS", (4,), "SEARCH.STAGE.ONLY_ELIGIBLE", True])
    assert supernet_config(cfg, "stage").MODEL.CRNAS.STAGE_SPACE == [[1], [1], [1], [1]]
    cfg.SEARCH.STAGE.ONLY_ELIGIBLE = False
    space = supernet_config(cfg, "stage").MODEL.CRNAS.STAGE_SPACE
    assert space == cfg.MODEL.CRNAS.STAGE_SPACE and [1, 2] in [list(depths) for depths in space]


def test_a_dilated_network_is_judged_by_its_own_latency(caplog: pytest.LogCaptureFixture) -> None:
    """Rate 3 is slow here: the best candidate exceeds the budget, the second one does not."""

    def costs(architecture: Architecture) -> dict[str, float]:
        return {"latency": 1 + 0.1 * sum(digit == 2 for digit in architecture.dilation_code)}

    plain = Architecture.undilated("resnet", [1, 1, 1, 1])
    candidates = [
        Candidate(Architecture("resnet", plain.stage_code, code), score, {})
        for code, score in (((0, 0, 2, 2), 9.0), ((0, 0, 1, 1), 8.0), ((2, 0, 0, 0), 7.0))
    ]
    budget = Budget.parse({"latency": [1, 0.05]})
    assert [a.dilation_code for a in within(budget, candidates, costs)] == [(0, 0, 1, 1)]
    assert not caplog.records
    assert within(budget, candidates[::2], costs) == []
    assert "none of the 2 best codes meets the budget" in caplog.text
