"""report.html of a run's folder: what it holds, whole, half done or empty; read by an HTML parser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import ROOT, TINY, tiny_shapes
from PIL import Image

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.architecture import Architecture
from crnas_d2.config import read_config
from crnas_d2.errors import InputError
from crnas_d2.report.charts import beam
from crnas_d2.report.folder import RunFolder, Search
from crnas_d2.report.networks import compared
from crnas_d2.report.page import write_report
from detectron2.modeling import build_model

TITLES = [
    "What was found, and is it better?",
    "Where the computation went",
    "How the search went",
    "What it cost",
    "Pictures of archval",
    "How to do it again",
    "All candidates",
]
VOID = {"meta", "link", "img", "path", "use", "rect", "circle", "line", "image"}


class Page(HTMLParser):
    """``sections``: by title, the text below; ``tables``: by caption, rows of cells; ``addresses``."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.figures = 0
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        known = dict(attributes)
        self.addresses += [known[key] for key in ("src", "href", "xlink:href") if key in known]
        self.figures += tag == "svg"
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self.sections[""] = ""
        if tag in ("caption", "summary"):
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag
        if tag == "h2":
            self.sections[self._title] = self.sections.pop("")

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "h2":
            self._title = data
        elif inside in ("caption", "summary"):
            self._caption += data
        elif inside in ("td", "th"):
            self.tables[self._caption][-1][-1] += data
        elif self.sections and "section" in self._open:
            self.sections[list(self.sections)[-1]] += data


def page_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html" and not (folder / "report.html.part").exists()
    page = Page(path)
    assert list(page.sections) == TITLES
    # It asks for nothing: parts of the page itself, and what stands in it.
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "url(http" not in path.read_text() and "@import" not in path.read_text()
    return page


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def scored(step: str, code: str, score: float, macs: int = 9, **more: Any) -> dict[str, Any]:
    known = {"phase": step, "architecture": f"resnet_basic/{code}", "score": score}
    return {**known, "error": 0.5, "macs": macs, "params": 7, "seconds": 2.0, **more}


STAGE = [
    scored("stage", "1-1-1-2/0-0-0-00", 31.256),
    scored("stage", "1-1-2-1/0-0-00-0", 33.0, macs=10),
    scored("stage", "2-1-1-1/00-0-0-0", 33.0),
    scored("stage", "2-1-3-1/00-0-000-0", 32.0, macs=11),  # a budget of macs has codes of any length
]
RACE = {
    **scored("stage race N5", "1-2-1-1/0-00-0-0", 21.5),
    **{"images": 34, "leader": "resnet_basic/2-1-1-1/00-0-0-0", "leader_score": 35.1},
    **{"racing": 4, "behind": 0.975},
}
DILATION = [
    scored("dilation", "2-1-1-1/0_-_-_-_", 30.0),
    scored("dilation", "2-1-1-1/1_-_-_-_", 40.0),
    scored("dilation", "2-1-1-1/00-0-0-1", 35.0),
]
ALONE = [
    scored("archtrain 0", "1-1-1-2/0-0-0-00", 50.0),
    scored("archtrain 1", "1-1-1-2/0-0-0-00", 51.0),
    scored("archtrain 0", "2-1-1-1/00-0-0-0", 52.0),
]


def rows_on_the_test_set(low: float | None, high: float | None, value: float = 0.5) -> list[Any]:
    baseline = {"network": "baseline", "architecture": "resnet_basic/1-1-1-2/0-0-0-00"}
    found = {"network": "found", "architecture": "resnet_basic/2-1-1-1/00-0-0-1"}
    ends = {"to the baseline": value, "95 % low": low, "95 % high": high}
    return [
        {**baseline, "seed": 0, "AP": 50.0},
        {**baseline, "seed": "mean", "AP": 50.0},
        {**found, "seed": 0, "AP": 50.0 + value},
        {**found, "seed": "mean", "AP": 50.0 + value, "APs": 12.0, **ends},
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a search that has ended, but for its checkpoints."""
    folder = tmp_path / "run"
    write_lines(folder / "stage" / "journal.jsonl", STAGE)
    write_lines(folder / "stage" / "race.jsonl", [RACE])
    write_lines(folder / "dilation" / "journal.jsonl", DILATION)
    write_lines(folder / "trainings" / "journal.jsonl", ALONE)
    found = {"found": "resnet_basic/2-1-1-1/00-0-0-1", "text": "the baseline < it", "weights": "a path"}
    results = {"noise": [{"base": "r.yaml", "text": "seeds differ"}], "verdicts": {"N5": found}}
    results["networks on the test set"] = rows_on_the_test_set(0.1, 0.9)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def with_config(run: Path, tmp_path: Path) -> Path:
    """The run as search_net.py leaves it: with its config, its start, and a trained joint supernet."""
    base = tmp_path / "base.yaml"
    codes = [*TINY, "MODEL.CRNAS.FAMILY", "resnet_basic", "MODEL.CRNAS.STAGE_CODE", [1, 1, 1, 2]]
    base.write_text(read_config("", codes).dump())
    own = [*codes, *tiny_shapes(tmp_path / "shapes"), "SEARCH.FOUND_BASE", (str(base),), "SEED", 3]
    own += ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "SEARCH.BUDGETS", (5,), "MODEL.CRNAS.SHARED", True]
    cfg = read_config("", [*own, "MODEL.DEVICE", "cpu"])
    (run / "config.yaml").write_text(cfg.dump())
    supernet = read_config("", [*own, "MODEL.CRNAS.SUPERNET", "joint"])
    supernet.defrost()
    supernet.MODEL.CRNAS.STAGE_SPACE = [[1, 2], [1, 2], [1, 3], [1, 2]]
    (run / "joint").mkdir()
    (run / "joint" / "config.yaml").write_text(supernet.dump())
    losses = [{"iteration": i, "time": 0.5, "total_loss": 1.0, "lr": 1} for i in (19, 39, 19, 39, 59)]
    write_lines(run / "joint" / "metrics.json", losses)
    start = {"time": "2026-01-01", "command": "search_net.py --timed", "folder": "/x", "processes": 2}
    start |= {"device": "cpu", "versions": {"torch": "2"}, "bases": {"N5": str(base)}}
    start["estimate"] = {"joint supernet": 100.0}
    write_lines(run / "starts.jsonl", [start, {**start, "command": "search_net.py --resume"}])
    return run


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
            "Yes, on the test images: found, resnet_basic/2-1-1-1/00-0-0-1, has 0.50 AP more",
        ),
        (
            -0.9,
            -0.1,
            -0.5,
            "No: on the test images found, resnet_basic/2-1-1-1/00-0-0-1, has 0.50 AP less",
        ),
        (-0.1, 0.9, 0.4, "It cannot be told: on the test images found,"),
        (None, None, 0.4, "It cannot be told: found,"),
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
    names = ("test_set", "computation", "finalists", "losses", "joint_supernet_paths")
    of_searches = ("stage_candidates", "stage_race", "dilation_candidates", "dilation_beam")
    assert set(files) == {*names, *of_searches} and page.figures == len(files)
    rows = list(csv.DictReader(files["stage_candidates"].open()))
    kinds = {row["architecture"].partition("/")[2]: row["kind"] for row in rows}
    assert kinds == {
        "1-1-1-2/0-0-0-00": "baseline",
        "2-1-1-1/00-0-0-0": "finalist",
        **{"1-1-2-1/0-0-00-0": "", "2-1-3-1/00-0-000-0": ""},
    }
    kept = [row["kept"] for row in csv.DictReader(files["dilation_beam"].open())]
    assert kept == ["True", "True", "True"]
    # 60 iterations: each stage has drawn 60 depths.
    drawn = list(csv.DictReader(files["joint_supernet_paths"].open()))
    for stage in "1234":
        assert sum(int(row["times"]) for row in drawn if row["stage"] == stage) == 60
    assert {row["alternative"] for row in drawn if row["stage"] == "3"} == {"1", "3"}


def test_the_beam_is_what_the_search_keeps() -> None:
    figure = beam(Search("dilation", [*DILATION, scored("dilation", "2-1-1-1/2_-_-_-_", 31.0)], []), 2)
    kept = {row["architecture"].rpartition("/")[2]: row["kept"] for row in figure.rows}
    assert kept == {"1_-_-_-_": True, "2_-_-_-_": True, "0_-_-_-_": False, "00-0-0-1": True}


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
    assert "python search_net.py --timed" in again and "--resume" in again and "SEED 3" in again


def test_costs_of_the_networks(run: Path, tmp_path: Path) -> None:
    page = page_of(with_config(run, tmp_path))
    ((header, baseline, found),) = (
        rows for caption, rows in page.tables.items() if caption.startswith("on the test set")
    )
    costs = dict(zip(header, zip(baseline, found)))
    assert costs["AP"] == ("50.00", "50.50") and costs["small"] == ("", "12.00")
    assert costs["to the baseline (95 %)"] == ("", "+0.50 (+0.10 .. +0.90)")
    assert all(
        float(value) > 0 for key in ("GMACs", "parameters (M)", "ms an image") for value in costs[key]
    )
    known = backbone_costs(read_config(str(tmp_path / "base.yaml")))
    for place, row in enumerate(rows_on_the_test_set(0, 0)[1::2]):
        expected = known(Architecture.parse(row["architecture"]))["macs"] / 1e9
        assert costs["GMACs"][place] == f"{expected:.3g}"
    before = (run / "report" / "latency.jsonl").read_bytes()
    page_of(run)
    assert (run / "report" / "latency.jsonl").read_bytes() == before  # measured once


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
    captions = page.tables["networks trained alone on archtrain, on archval"]
    assert captions[1][:3] == ["resnet_basic/1-1-1-2/0-0-0-00", "50.50", "2"]
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
    assert re.fullmatch(r"error: .*run: is not the folder of a search: config\.yaml is not there", line)
    with_config(run, tmp_path)
    done = subprocess.run([*tool, str(run)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{run}/report.html\n", done.stderr


def test_pictures(run: Path, tmp_path: Path) -> None:
    """Of the two networks beside the objects; or why there are none."""
    with_config(run, tmp_path)
    assert "There are none: there are no weights of baseline" in page_of(run).sections[TITLES[4]]
    for network in compared(RunFolder(run))[:2]:
        assert network.cfg is not None
        content = {"model": build_model(network.cfg).state_dict()}
        torch.save(content, run / f"{network.name}.pth")
    (run / "splits").mkdir()
    shutil.copy(tmp_path / "shapes" / "val.json", run / "splits" / "archval.json")
    page = page_of(run)
    pictures = [a for a in page.addresses if a.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 4 * 3
    assert page.sections[TITLES[4]].split()[-9:] == ["objects", "baseline", "found"] * 3
    sizes = {Image.open(path).size for path in (run / "report" / "pictures").glob("*.jpg")}
    assert sizes == {(96, 96)}
    shutil.rmtree(tmp_path / "shapes" / "images")
    assert "is not there any more" in page_of(run).sections[TITLES[4]]
