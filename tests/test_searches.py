"""tools/searches.py: what several searches gained, from their results and from the CSV alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from detectors import ROOT


def tool(*arguments: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "searches.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


def write_run(
    folder: Path, baseline: list[float], found: list[float], verdicts: dict[str, Any] | None = None
) -> Path:
    rows = [
        {"network": name, "architecture": code, "seed": seed, "AP": score}
        for name, code, scores in (
            ("baseline", "resnet/2-2-2-2", baseline),
            ("found", "resnet/1-3-2-2", found),
        )
        for seed, score in [*enumerate(scores), ("mean", 0.0)]
    ]
    rows[-1] |= {"95 % low": -0.5, "95 % high": 7.25}
    results = {"verdicts": verdicts or {"N8": {"says": "better"}}, "networks on the test set": rows}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_the_mean_gain_and_its_interval(tmp_path: Path) -> None:
    """By hand: gains 1, 2, 3 have the mean 2, and 4.303 / sqrt(3) on each side of it."""
    runs = [write_run(tmp_path / f"search-{n}", [50.0, 52.0], [50.0 + n, 52.0 + n]) for n in (1, 2, 3)]
    csv = tmp_path / "all.csv"
    first = tool("--csv", csv, *runs[:2])
    assert (
        first.returncode == 0
        and "mean gain +1.50 AP (95 %: -4.85 .. +7.85; 2 searches)" in first.stdout
    )
    done = tool("--csv", csv, runs[2], runs[0])  # one of them a second time
    assert "mean gain +2.00 AP (95 %: -0.48 .. +4.48; 3 searches)" in done.stdout
    assert "| +3.00 (-0.50 .. +7.25) |" in done.stdout and "| resnet/1-3-2-2 |" in done.stdout
    assert "51.00 (50.00, 52.00)" in done.stdout
    assert tool("--csv", csv).stdout == done.stdout
    assert len(csv.read_text().splitlines()) == 1 + 3 * 4


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    two = {"N8": {"says": "better"}, "N16": {"says": "better"}}
    several = write_run(tmp_path / "several", [50.0], [51.0], two)
    (tmp_path / "other").mkdir()
    alike = [write_run(tmp_path / name, [50.0], [51.0]) for name in ("one", "other/one")]
    for arguments, message in (
        ([several], "several: has 2 budgets; a search of one is needed"),
        (alike, "folders of different names are needed"),
        ([tmp_path / "run"], "results.json: has no table"),
        ([], "all.csv: no such file, and no runs are named"),
    ):
        done = tool("--csv", tmp_path / "all.csv", *arguments)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith("error: ") and message in line
    assert not (tmp_path / "all.csv").exists()
