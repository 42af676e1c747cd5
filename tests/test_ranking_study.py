"""tools/ranking_study.py on the folder of a stage search: rows, resumed, and its summary."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from detectors import run_script, tiny_shapes
from test_kill import finish, folder  # noqa: F401

pytestmark = pytest.mark.slow
TOOL = "tools/ranking_study.py"
OPTIONS = [
    *("SEARCH.PHASES", ("stage",), "MODEL.CRNAS.SHARED", True),
    *("SOLVER.MAX_ITER", 20, "SOLVER.BASE_LR", 0.02),
]


def test_a_study(folder: Path) -> None:  # noqa: F811
    run, results = finish(folder, "study", *OPTIONS), folder / "results"
    results.mkdir()
    table, trained = results / "ranking_tiny.csv", run / "trainings" / "journal.jsonl"
    pairs = [*tiny_shapes(folder / "data"), "OUTPUT_DIR", str(run), *OPTIONS]
    command = [TOOL, "--config-file", str(folder / "search.yaml"), "--csv", str(table)]
    command += ["--codes", "2", "--seeds", "2", "--also", f"again={run}"]
    run_script(*command, *map(str, pairs))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {}
    for line in (run / "stage" / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        scores[record["architecture"]] = record["score"]
    ends = {max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)}
    assert {row["architecture"] for row in rows} == ends | {"resnet/1-2-1-1/0-00-0-0"}
    alone = {}
    for line in trained.read_text().splitlines():
        record = json.loads(line)
        alone[record["phase"], record["architecture"]] = record["score"]
    assert len(rows) == len(alone) == 2 * len({row["architecture"] for row in rows})
    for row in rows:
        known = alone[f"train {row['seed']}", row["architecture"]]
        assert float(row["AP"]) == pytest.approx(known, abs=1e-3)
        assert row["supernet"] == row["again"]
        assert float(row["supernet"]) == pytest.approx(scores[row["architecture"]], abs=1e-4)
        assert {f"b{i}" for i in range(50)} <= set(row)

    before = trained.read_bytes(), table.read_bytes()
    run_script(*command, "--num-gpus", "2", *map(str, pairs))  # two processes, on the CPU
    assert (trained.read_bytes(), table.read_bytes()) == before
    lines = run_script(TOOL, "--summary", str(results)).splitlines()
    shown = [line for line in lines if line.startswith("|")]
    assert [line.split("|")[1:3] for line in shown[2:]] == [
        [" tiny    ", " supernet   "],
        [" tiny    ", " again      "],
    ]
    names = {f"ranking_tiny_{name}.{kind}" for name in ("supernet", "again") for kind in ("png", "svg")}
    assert {path.name for path in results.iterdir()} == {table.name, *names}
