"""search_net.py with several budgets, and with the alternative searches: what it scores and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectors import TINY, run_script, tiny_shapes
from fake_scorer import timeless

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.config import read_config
from crnas_d2.modeling.build import stage_space_of
from detectron2.config import CfgNode

BASE = [*TINY, "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0]
FOUND_BASE = ("base.yaml",)
HALF = ["MODEL.CRNAS.WIDTH_MULTIPLIER", 0.5]  # as the paper's supernets have


def base() -> CfgNode:
    return read_config("", BASE)


def near(name: str, code: tuple[int, ...], tolerance: float) -> dict[str, list[float]]:
    """A budget of what a stage code costs in the base."""
    costs = backbone_costs(base())(Architecture.undilated("resnet", code))
    return {name: [float(f"{costs[name] * 1.001:.4g}"), tolerance]}


def start(folder: Path, *options: Any) -> str:
    """Run search_net.py; its output."""
    flags = [option for option in options if str(option).startswith("--")]
    own = [*HALF, "OUTPUT_DIR", str(folder / "out"), *tiny_shapes(folder / "data")]
    own += ["SEARCH.FOUND_BASE", FOUND_BASE, *options[len(flags) :]]
    return run_script("search_net.py", *flags, "--config-file", str(folder / "search.yaml"), *own)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base.yaml", "search.yaml"):
        (tmp_path / name).write_text(base().dump())
    six = "_BASE_: base.yaml\nMODEL: {CRNAS: {STAGE_CODE: [1, 2, 1, 2]}}\n"
    (tmp_path / "six.yaml").write_text(six)
    return tmp_path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def found_code(path: Path) -> tuple[int, ...]:
    return tuple(yaml.safe_load(path.read_text())["MODEL"]["CRNAS"]["STAGE_CODE"])


def test_two_budgets_from_one_supernet(folder: Path) -> None:
    """Blocks, and macs of the network that will be trained, which has twice the supernet's width."""
    macs = near("macs", (1, 2, 1, 2), 0.1)
    shown = start(folder, "SEARCH.BUDGETS", (5, macs))
    out = folder / "out"
    name = Budget.parse(macs).name
    assert {path.name for path in out.iterdir()} >= {
        *("stage", "dilation_N5", f"dilation_{name}", "found_N5.yaml", f"found_{name}.yaml")
    }
    files = f"{out}/found_N5.yaml, {out}/found_{name}.yaml, {out}/results.json, {out}/report.html"
    assert shown.splitlines()[-1] == f"written: {files}"

    costs, space = backbone_costs(base()), stage_space_of(base())
    journal = records(out / "stage" / "journal.jsonl")
    scored = {record["architecture"]: record for record in journal}
    assert len(scored) == len(journal)  # codes that meet both budgets, too, are scored once
    budgets = [Budget.parse(5), Budget.parse(macs)]
    eligible = {budget: space.eligible(budget, costs) for budget in budgets}
    assert set(scored) == {str(code) for codes in eligible.values() for code in codes}
    assert len(scored) < sum(map(len, eligible.values()))
    for text, record in scored.items():
        of_base = costs(Architecture.parse(text))
        assert {key: record[key] for key in of_base} == of_base
    for budget, codes in eligible.items():
        best = max(codes, key=lambda code: (scored[str(code)]["score"], -costs(code)["macs"]))
        code = found_code(out / f"found_{budget.name}.yaml")
        found = Architecture.undilated("resnet", code)
        assert scored[str(found)]["score"] == scored[str(best)]["score"]
        dilations = records(out / f"dilation_{budget.name}" / "journal.jsonl")
        assert len(dilations) == 3 + 9 * (sum(code) - 1)


@pytest.mark.slow
def test_evolution_and_random_search_under_a_budget_of_latency(folder: Path) -> None:
    """Started, and once more resumed: nothing is measured or scored a second time."""
    budget = {"latency": [0.05, 0.99], "blocks": [6, 0.3]}
    options = ["SEARCH.BUDGETS", (budget,), "SEARCH.EVALUATIONS", 6]
    options += ["SEARCH.STAGE.METHOD", "evolution", "SEARCH.DILATION.METHOD", "random"]
    shown = start(folder, *options)
    out = folder / "out"
    assert shown.splitlines()[-1] == f"written: {out}/found.yaml, {out}/results.json, {out}/report.html"
    measured = {record["architecture"]: record for record in records(out / "latency.jsonl")}
    stages = records(out / "stage" / "journal.jsonl")
    assert len(stages) == len({record["architecture"] for record in stages}) == 6
    for record in stages:
        assert record["latency"] == measured[record["architecture"]]["score"]
        assert 0 < record["latency"] <= 0.1 and 4.2 <= record["blocks"] <= 7.8
    dilations = records(out / "dilation" / "journal.jsonl")
    code = found_code(out / "found.yaml")
    assert len({record["architecture"] for record in dilations}) == 6
    for record in dilations:
        architecture = Architecture.parse(record["architecture"])
        assert architecture.is_complete and architecture.stage_code == code

    files = ["latency.jsonl", "found.yaml", "stage/journal.jsonl", "dilation/journal.jsonl"]
    before = [(out / file).read_bytes() for file in files]
    start(folder, "--resume", *options)
    assert [(out / file).read_bytes() for file in files] == before


@pytest.mark.slow
def test_a_race_in_one_process_and_in_two(folder: Path) -> None:
    """From one checkpoint, bit-exact but for the seconds; resumed once more, nothing is written."""
    options = ["SEARCH.RACE.CONFIDENCE", 0.6, "SEARCH.EVAL.BATCH_SIZE", 1, "SEARCH.PHASES", ("stage",)]
    options += ["SEARCH.BUDGETS", (5, 6), "SOLVER.MAX_ITER", 60, "SOLVER.BASE_LR", 0.02]
    options += ["SEARCH.FOUND_BASE", ("base.yaml", "six.yaml")]
    out = folder / "out"
    shown = start(folder, *options)
    assert "race: dropped " in shown and "race: dropped none" not in shown
    names = ["found_N5.yaml", "found_N6.yaml", "stage/journal.jsonl", "stage/race.jsonl"]
    names += [str(path.relative_to(out)) for path in sorted((out / "stage" / "matches").rglob("*.npz"))]

    def contents() -> dict[str, Any]:
        files = {name: (out / name).read_bytes() for name in names if name != "stage/journal.jsonl"}
        return {**files, "journal": timeless(out / "stage" / "journal.jsonl")}

    before = contents()
    dropped, finished = records(out / "stage/race.jsonl"), records(out / "stage/journal.jsonl")
    assert {record["phase"] for record in dropped} <= {"stage race N5", "stage race N6"}
    assert len(dropped) + len(finished) == 4 + 6 and len(finished) < 10
    report = (out / "report.html").read_text()
    assert all(record["architecture"] in report for record in [*dropped, *finished])
    for name in names:
        (out / name).unlink()
    start(folder, "--resume", "--num-gpus=2", *options)
    assert contents() == before
    written = {name: (out / name).stat().st_mtime_ns for name in names[2:]}
    start(folder, "--resume", *options)
    assert {name: (out / name).stat().st_mtime_ns for name in names[2:]} == written
