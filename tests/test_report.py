"""report.html of a run's folder: what it holds, whole, half done or empty; read by an HTML parser."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectors import ROOT
from report_pages import (
    ALONE,
    DILATION,
    RACE,
    STAGE,
    TITLES,
    Page,
    ended_run,
    page_of,
    rows_on_the_test_set,
    scored,
    with_config,
    write_lines,
)

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.report.charts import beam
from crnas_d2.report.folder import RunFolder, Search
from crnas_d2.report.page import write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return ended_run(tmp_path / "run")


def test_every_candidate_best_first_and_whole_codes_first(run: Path) -> None:
    """Ties as in a search: fewer multiply-accumulates first."""
    page = page_of(run)
    stage = page.tables["stage: 4 whole codes, best first"]
    assert [row[:4] for row in stage] == [
        ["architecture", "score", "error", "macs"],
        ["resnet_basic/2-1-1-1/00-0-0-0", "33.00", "0.5", "9"],
        ["resnet_basic/1-1-2-1/0-0-00-0", "33.00", "0.5", "10"],
        ["resnet_basic/2-1-3-1/00-0-000-0", "32.00", "0.5", "11"],
        ["resnet_basic/1-1-1-2/0-0-0-00", "31.26", "0.5", "9"],
    ]
    (dropped,) = (rows for caption, rows in page.tables.items() if caption.startswith("stage race N5"))
    assert dict(zip(*dropped))["behind"] == "0.975"
    partial = page.tables["dilation: 2 codes with 4 digits left open, best first"]
    assert [row[1] for row in partial[1:]] == ["40.00", "30.00"]
    first = page.sections[TITLES[0]]
    assert "the baseline < it" in first and "Noise of r.yaml: seeds differ." in first


@pytest.mark.parametrize(
    ("low", "high", "value", "answer"),
    [
        (
            0.1,
            0.9,
            0.5,
            "Yes, on the test images: the found network, resnet_basic/2-1-1-1/00-0-0-1, has 0.50 AP",
        ),
        (
            -0.9,
            -0.1,
            -0.5,
            "No: on the test images the found network, resnet_basic/2-1-1-1/00-0-0-1, has 0.50 AP less",
        ),
        (-0.1, 0.9, 0.4, "Not shown: on the test images the found network,"),
        (None, None, 0.4, "Not shown: the found network,"),
    ],
)
def test_the_answer_comes_first(run: Path, low: Any, high: Any, value: float, answer: str) -> None:
    results = json.loads((run / "results.json").read_text())
    results["networks on the test set"] = rows_on_the_test_set(low, high, value)
    (run / "results.json").write_text(json.dumps(results))
    assert page_of(run).sections[TITLES[0]].strip().startswith(answer)


def test_the_baseline_stands(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    rows = [{**row, "network": "found"} for row in rows_on_the_test_set(0, 0)[:2]]
    results["networks on the test set"] = [*rows_on_the_test_set(0, 0)[:2], *rows]
    (run / "results.json").write_text(json.dumps(results))
    assert page_of(run).sections[TITLES[0]].strip().startswith("The baseline stands")


def test_figures_have_their_data_beside_them(run: Path, tmp_path: Path) -> None:
    page = page_of(with_config(run, tmp_path))
    files = {path.stem: path for path in (run / "report").glob("*.csv")}
    names = (
        "test_set",
        "computation",
        "finalists",
        "losses",
        "joint_paths_blocks",
        "joint_paths_digit",
    )
    of_searches = ("stage_candidates", "stage_race", "dilation_candidates", "dilation_beam")
    assert set(files) == {*names, *of_searches} and page.figures == len(files)
    rows = list(csv.DictReader(files["stage_candidates"].open()))
    kinds = {row["architecture"].partition("/")[2]: row["kind"] for row in rows}
    assert kinds == {
        "1-1-1-2/0-0-0-00": "baseline",
        "2-1-1-1/00-0-0-0": "finalist",
        **{"1-1-2-1/0-0-00-0": "", "2-1-3-1/00-0-000-0": ""},
    }
    roles = {row["network"]: row["role"] for row in csv.DictReader(files["finalists"].open())}
    assert set(roles.values()) == {
        "baseline",
        "",
    }  # what was found has rates, and was not trained alone
    kept = [row["kept"] for row in csv.DictReader(files["dilation_beam"].open())]
    assert kept == ["True", "True", "True"]
    # 60 iterations: each stage has drawn 60 depths.
    drawn = list(csv.DictReader(files["joint_paths_blocks"].open()))
    for stage in "1234":
        assert sum(int(row["times"]) for row in drawn if row["stage"] == stage) == 60
    assert {row["alternative"] for row in drawn if row["stage"] == "3"} == {"1", "3"}
    # And a digit for each block of them.
    digits = list(csv.DictReader(files["joint_paths_digit"].open()))
    for stage in "1234":
        of_stage = [row for row in drawn if row["stage"] == stage]
        blocks = sum(int(row["alternative"]) * int(row["times"]) for row in of_stage)
        assert sum(int(row["times"]) for row in digits if row["stage"] == stage) == blocks


def test_rates_of_two_stage_codes_are_two_searches(run: Path) -> None:
    """More finalists at --resume may find another code, in the same joint supernet."""
    more = [scored("dilation", f"1-1-1-2/{code}", 50.0) for code in ("0_-_-_-__", "00-0-0-00")]
    write_lines(run / "dilation" / "journal.jsonl", [*DILATION, *more])
    behind = {**RACE, "architecture": "resnet_basic/1-1-1-2/1_-_-_-__", "phase": "dilation race N5"}
    write_lines(run / "dilation" / "race.jsonl", [behind])
    (run / "dilation" / "rates.txt").write_text("resnet_basic/1-1-1-2/00-0-0-00 leads; kept")
    first, second = (s for s in RunFolder(run).searches if s.phase == "dilation")
    assert (first.name, first.records, first.rates) == ("dilation_2-1-1-1", DILATION, "")
    assert (second.name, second.records) == ("dilation_1-1-1-2", more)
    assert (first.dropped, second.dropped) == ([], [behind])
    assert "Rates of the dilation_1-1-1-2 search: resnet_basic" in page_of(run).sections[TITLES[2]]


def test_the_beam_is_what_the_search_keeps() -> None:
    """Without a code that grew from nothing, as rate 1 everywhere that EVIDENCE asks for."""
    scores = {"0_-_-_-_": 30.0, "1_-_-_-_": 40.0, "2_-_-_-_": 31.0, "20-0-0-1": 35.0, "10-0-0-1": 34.0}
    records = [scored("dilation", f"2-1-1-1/{code}", score) for code, score in scores.items()]
    undilated = scored("dilation", "2-1-1-1/00-0-0-0", 36.0)
    figure = beam(Search("dilation", [*records, undilated], []), "AP", 2)
    kept = {row["architecture"].rpartition("/")[2]: row["kept"] for row in figure.rows}
    assert kept == {code: code[0] != "0" for code in scores}


def test_what_it_took_and_how_to_do_it_again(run: Path, tmp_path: Path) -> None:
    """Iterations that an interruption took back were spent, too."""
    page = page_of(with_config(run, tmp_path))
    table = [dict(zip(page.tables["by part"][0], row)) for row in page.tables["by part"][1:]]
    (joint,) = (row for row in table if row["part"] == "joint supernet")
    assert (joint["time"], joint["estimated"], joint["ratio"]) == ("50 s", "1 min 40 s", "0.5")
    (stage,) = (row for row in table if row["part"] == "stage search")
    assert (stage["time"], stage["candidates"]) == ("8 s", "5")
    assert "resumed once" in page.sections["What it cost"]
    again = page.sections["How to do it again"]
    assert "2 processes, by torchrun\nDETECTRON2_DATASETS=/data python search_net.py --timed" in again
    assert "python search_net.py --timed" in again and "--resume" in again and "SEED 3" in again


@pytest.mark.parametrize("inherits", [False, True])
def test_networks_that_start_from_their_paths(run: Path, inherits: bool, tmp_path: Path) -> None:
    """By which the found one was chosen: the answer says so."""
    path = with_config(run, tmp_path) / "config.yaml"
    path.write_text(path.read_text().replace("INHERIT: false", f"INHERIT: {inherits}"))
    assert ("start from their paths" in page_of(run).sections[TITLES[0]]) == inherits


def test_an_estimate_of_what_was_left(run: Path, tmp_path: Path) -> None:
    """By --resume --timed: not to be compared with what all starts took."""
    path = with_config(run, tmp_path) / "starts.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    write_lines(path, [first, {**second, "estimate": {"joint supernet": 20.0}}, second])
    page = page_of(run)
    table = [dict(zip(page.tables["by part"][0], row)) for row in page.tables["by part"][1:]]
    (joint,) = (row for row in table if row["part"] == "joint supernet")
    assert joint["estimated"] == "20 s" and not joint.get("ratio")
    assert "estimate is of what was left at start 2" in page.sections["What it cost"]


def table_of(page: Page) -> dict[str, dict[str, str]]:
    """The first table, by network."""
    header, *rows = next(rows for caption, rows in page.tables.items() if "GMACs and" in caption)
    return {row[0]: dict(zip(header, row)) for row in rows}


def test_the_table_of_the_networks(run: Path, tmp_path: Path) -> None:
    table = table_of(page_of(with_config(run, tmp_path), measure=True))
    baseline, found = table["baseline"], table["found"]
    assert (baseline["AP"], found["AP"]) == ("50.00", "50.50") and found["small"] == "12.00"
    assert found["to the baseline (95 %)"] == "+0.50 (+0.10 .. +0.90)"
    known = backbone_costs(read_config(str(tmp_path / "base.yaml")))
    for row in (baseline, found):
        assert float(row["parameters (M)"]) > 0 and float(row["ms an image"]) > 0
        expected = known(Architecture.parse(f"resnet_basic/{row['codes']}"))["macs"] / 1e9
        assert row["GMACs"] == f"{expected:.3g}"
    before = (run / "report" / "latency.jsonl").read_bytes()
    page_of(run)
    assert (run / "report" / "latency.jsonl").read_bytes() == before
    page_of(run, measure=True)
    assert (run / "report" / "latency.jsonl").read_bytes() != before  # all of one hour


def test_without_a_test_set_archval_stands_in_the_table(run: Path, tmp_path: Path) -> None:
    with_config(run, tmp_path)
    results = json.loads((run / "results.json").read_text())
    del results["networks on the test set"]
    (run / "results.json").write_text(json.dumps(results))
    page = page_of(run)
    table = table_of(page)
    assert table["baseline"]["AP on archval"] == "50.50 \u00b1 0.71 (2 seeds)"
    assert set(table) == {"baseline", "found"} and float(table["found"]["GMACs"]) > 0
    assert "No test set was used" in page.sections[TITLES[0]]


def test_another_metric_is_named(run: Path, tmp_path: Path) -> None:
    with_config(run, tmp_path)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("METRIC: AP", "METRIC: AP50"))
    results = json.loads((run / "results.json").read_text())
    for row in results["networks on the test set"]:
        row["AP50"] = row["AP"] + 30
    (run / "results.json").write_text(json.dumps(results))
    page = page_of(run)
    assert table_of(page)["found"]["AP50"] == "80.50"
    assert "has 0.50 AP50 more" in page.sections[TITLES[0]]
    rows = list(csv.DictReader((run / "report" / "test_set.csv").open()))
    assert [float(row["score"]) for row in rows] == [80.0, 80.5]
    assert [row["role"] for row in rows] == ["baseline", "found"]
    page = (run / "report.html").read_text()
    assert page.count(">AP50 on archval<") >= 2 and ">AP on archval<" not in page


def test_a_network_that_diverged_is_in_no_mean(run: Path, tmp_path: Path) -> None:
    with_config(run, tmp_path)
    failed = scored("archtrain 1", "2-1-1-1/00-0-0-0", 0.0, failed="loss is nan")
    write_lines(run / "trainings" / "journal.jsonl", [*ALONE, failed])
    page = page_of(run)
    assert "2-1-1-1/00-0-0-0, archtrain 1: it diverged (loss is nan)." in page.sections[TITLES[2]]
    rows = list(csv.DictReader((run / "report" / "finalists.csv").open()))
    assert [float(row["score"]) for row in rows] == [50.0, 51.0, 52.0]


def test_why_rates_were_not_kept(run: Path, tmp_path: Path) -> None:
    with_config(run, tmp_path)
    assert "Rates of the" not in page_of(run).sections[TITLES[2]]
    (run / "dilation" / "rates.txt").write_text("less 1.39 of luck: not kept")
    text = "Rates of the dilation search: less 1.39 of luck: not kept."
    assert text in page_of(run).sections[TITLES[2]]


def test_the_searchs_own_config_is_the_networks(run: Path, tmp_path: Path) -> None:
    """Without SEARCH.FOUND_BASE, with its KEY VALUE pairs; the file it came from is not needed."""
    with_config(run, tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["SEARCH"]["FOUND_BASE"], config["MODEL"]["CRNAS"]["STAGE_CODE"] = [], [2, 1, 1, 1]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "base.yaml").unlink()
    (run / "results.json").unlink()
    table = table_of(page_of(run))
    assert table["baseline"]["codes"] == "2-1-1-1/00-0-0-0" and float(table["baseline"]["GMACs"]) > 0


def test_a_part_that_cannot_be_shown_leaves_the_others(run: Path, tmp_path: Path) -> None:
    with_config(run, tmp_path)
    (run / "trainings" / "archtrain_0" / "notes").mkdir(parents=True)
    write_lines(
        run / "trainings" / "archtrain_0" / "notes" / "metrics.json",
        [{"iteration": 0, "total_loss": 1}],
    )
    page = page_of(run)
    assert "This part cannot be shown: ValueError" in page.sections["What it cost"]
    assert "Yes, on the test images" in page.sections[TITLES[0]]


def test_a_base_config_that_is_gone(run: Path, tmp_path: Path) -> None:
    with_config(run, tmp_path)
    (tmp_path / "base.yaml").unlink()
    page = page_of(run)
    assert "the base config is not there any more" in page.sections["Where the computation went"]


def test_an_interrupted_search(run: Path, tmp_path: Path) -> None:
    """And a line of a log that a kill has cut off."""
    with_config(run, tmp_path)
    (run / "results.json").unlink()
    with (run / "joint" / "metrics.json").open("a") as file:
        file.write('{"iteration": 79, "total_l')
    page = page_of(run)
    assert "This search has not ended" in page.sections[TITLES[0]]
    assert table_of(page)["baseline"]["AP on archval"] == "50.50 \u00b1 0.71 (2 seeds)"
    assert "best of the dilation search so far" in (run / "report.html").read_text()


def test_an_empty_folder_says_why_each_section_is_empty(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert all(text.strip() for text in page.sections.values())
    assert not page.tables and not page.figures


def test_names_are_no_markup(tmp_path: Path) -> None:
    folder = tmp_path / "<b>&"
    write_lines(folder / "stage" / "journal.jsonl", [{**STAGE[0], "<i>": "&amp;"}])
    page = page_of(folder)
    header, row = page.tables["stage: 1 whole codes, best first"]
    assert header[-1] == "<i>" and row[-1] == "&amp;"


def test_a_damaged_journal_leaves_the_report(run: Path) -> None:
    page_of(run)
    before = (run / "report.html").read_bytes()
    write_lines(run / "stage" / "journal.jsonl", [STAGE[0], STAGE[0]])
    with pytest.raises(InputError, match=r"journal\.jsonl:2: .*a second time"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_the_parts_of_trainings(run: Path, tmp_path: Path) -> None:
    with_config(run, tmp_path)
    line = [{"iteration": 0, "time": 1.0, "total_loss": 1.0}]
    for name in (
        "archtrain_0/resnet_basic_1-1-1-2_0-0-0-00",
        "archtrain_0/resnet_basic_2-1-1-1_00-0-0-0",
        "archtrain_1/resnet_basic_2-1-1-1_00-0-0-1",
        "longer_0/resnet_basic_1-1-1-2_0-0-0-00",
        "train_0/resnet_basic_1-1-1-2_0-0-0-00",
    ):
        write_lines(run / "trainings" / name / "metrics.json", line)
    parts = [training.part for training in RunFolder(run).trainings]
    assert parts == [
        *("joint supernet", "noise", "stage finalists", "dilation finalists"),
        *("longer schedule", "retraining"),
    ]


def test_the_tool(run: Path, tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools" / "report.py")]
    refused = subprocess.run([*tool, str(run)], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert re.fullmatch(r"error: .*run: is not the folder of a search: it has no folder splits", line)
    (with_config(run, tmp_path) / "splits").mkdir()
    done = subprocess.run([*tool, str(run)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{run}/report.html\n", done.stderr
