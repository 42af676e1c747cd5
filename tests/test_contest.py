"""A whole search with finalists: noise first, trainings, verdict and table; killed and resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_kill import finish, folder, kill_at, start  # noqa: F401

from crnas_d2.evaluation.matches import Matches

pytestmark = pytest.mark.slow
NAME = str.maketrans(" /", "__")  # from the journal to a folder's name
FINALISTS = [
    *("SEARCH.PHASES", ("stage", "dilation", "retrain")),
    *("SEARCH.FINALISTS.NUM", 2, "SEARCH.FINALISTS.SEEDS", 2, "SEARCH.RETRAIN.SEEDS", 2),
    *("SEARCH.FINALISTS.TRY_LONGER", True),
    *("SOLVER.MAX_ITER", 30, "SOLVER.BASE_LR", 0.02),
]


def trained(run: Path) -> list[dict[str, Any]]:
    """Of all networks that have been trained alone; seconds differ from run to run."""
    path = run / "trainings" / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:  # noqa: F811
    return finish(folder, "finalists", *FINALISTS)


def test_what_is_trained(whole: Path) -> None:
    """The baseline comes first, with all its seeds; half of the finalists go into the second round."""
    records = trained(whole)
    baseline = "resnet/1-2-1-1/0-00-0-0"
    phases = [record["phase"] for record in records]
    assert [r["architecture"] for r in records[:2]] == [baseline] * 2
    assert phases[:2] == ["archtrain 0", "archtrain 1"]
    assert len({(r["phase"], r["architecture"]) for r in records}) == len(records)
    first, second = phases.count("archtrain 0"), phases.count("archtrain 1")
    assert first in (4, 5) and second <= first // 2 + 2  # with 1 or 2 new ones of the dilation search
    for record in records:
        parts = [record[name].translate(NAME) for name in ("phase", "architecture")]
        path = whole.joinpath("trainings", *parts)
        matches = Matches.from_bytes((path / "inference" / "matches.npz").read_bytes())
        found = matches.scores(np.ones((1, len(matches.image_ids))))[0]
        assert record["error"] > 0 or not found
        assert record["score"] == record["metrics"]["AP"] == pytest.approx(found, abs=1e-9)
        assert [file.name for file in path.glob("*.pth")] == ["model_final.pth"]
    assert any(record["score"] for record in records)


def test_verdict_and_table(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    comment = (whole / "found.yaml").read_text().splitlines()[1]
    verdict, (noise,) = results["verdicts"]["N5"], results["noise"]
    assert comment == f"# {verdict['text']}"
    assert verdict["says"] in ("the baseline stands", "not told apart", "better")
    assert "trained alone on archtrain, seed" in verdict["weights"]
    assert len(noise["scores"]) == 2 and noise["seeds"] == pytest.approx(
        np.std(noise["scores"], ddof=1)
    )
    assert "on 4 images of archval: seeds have a standard deviation of" in noise["text"]
    assert "half as many iterations again" in noise["text"]
    found = yaml.safe_load((whole / "found.yaml").read_text())["MODEL"]["CRNAS"]["STAGE_CODE"]
    with (whole / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["network"], row["seed"]) for row in rows] == [
        (network, seed) for network in ("baseline", "stage", "found") for seed in ("0", "1", "mean")
    ]
    assert rows[-1]["architecture"].startswith(f"resnet/{'-'.join(map(str, found))}/")
    for zero, one, mean in zip(rows[::3], rows[1::3], rows[2::3]):
        assert float(mean["AP"]) == pytest.approx((float(zero["AP"]) + float(one["AP"])) / 2)
    for network in ("stage", "found"):
        # Without the column every network is the baseline.
        told = [row.get("to the baseline", "") for row in rows if row["network"] == network]
        same = rows[0]["architecture"] == next(
            row["architecture"] for row in rows if row["network"] == network
        )
        assert told[:2] == ["", ""] and bool(told[2]) != same
    assert results["networks on the test set"][0]["AP"] == float(rows[0]["AP"])


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_while_a_finalist_trains(processes: int, folder: Path, whole: Path) -> None:  # noqa: F811
    """Resumed with as many processes it is the same run; with others, nothing is done twice."""
    name, log = f"killed{processes}", folder / f"killed{processes}.out"
    run = folder / name
    known = trained(whole)

    def moment() -> bool:
        names = ("phase", "architecture")
        ended = {tuple(record[n].translate(NAME) for n in names) for record in trained(run)}
        tags = (run / "trainings").glob("archtrain_*/*/last_checkpoint")
        return len(ended) >= 3 and any(tag.parts[-3:-1] not in ended for tag in tags)

    kill_at(start(folder, name, *FINALISTS), moment, log)
    before = trained(run)
    assert before == known[: len(before)]
    assert start(folder, name, *FINALISTS, processes=processes).wait(timeout=600) == 0, log.read_text()
    after = trained(run)
    assert after[: len(before)] == before
    assert len({(r["phase"], r["architecture"]) for r in after}) == len(after)
    if processes == 1:
        assert after == known
        assert (run / "found.yaml").read_bytes() == (whole / "found.yaml").read_bytes()
