"""found.pth: the found network with the weights of its path, as train_net.py takes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import FAMILIES, TINY, command_line, run_script, tiny_shapes
from torch.testing import assert_close

from crnas_d2.config import read_config
from crnas_d2.evaluation.matches import Matches

pytestmark = pytest.mark.slow
JOINT = ["MODEL.CRNAS.SHARED", True, "SEARCH.JOINT", True]


def searched(folder: Path, *options: Any, family: str = "resnet") -> Path:
    """The OUTPUT_DIR of a search; scoring sees one image at a time, as train_net.py does.

    Resumed, where it is there.
    """
    keys = [*TINY, *FAMILIES[family], "SEARCH.EVAL.BATCH_SIZE", 1, "SOLVER.MAX_ITER", 20]
    text = read_config("", keys).dump()
    (folder / "search.yaml").write_text(text)
    own = [*tiny_shapes(folder / "data"), "OUTPUT_DIR", str(folder / "out"), *options]
    resume = ["--resume"] if (folder / "out").exists() else []
    command = ["search_net.py", *resume, "--config-file", str(folder / "search.yaml")]
    run_script(*command, *command_line(own))
    return folder / "out"


def evaluated(out: Path, data: Path) -> float:
    """Of found.yaml with found.pth on archval."""
    test = {"JSON": out / "splits/archval.json", "IMAGES": data / "images"}
    options = [word for name, path in test.items() for word in (f"DATASETS.TEST_{name}", path)]
    options += ["MODEL.WEIGHTS", out / "found.pth", "OUTPUT_DIR", out / "evaluated"]
    run_script("train_net.py", "--config-file", f"{out}/found.yaml", "--eval-only", *map(str, options))
    matches = Matches.from_bytes((out / "evaluated/inference/matches.npz").read_bytes())
    return matches.scores(np.ones((1, 4)))[0]


def best(out: Path, phase: str) -> float:
    """The score of the network in found.yaml."""
    found = (out / "found.yaml").read_text().split(",")[0].lstrip("# ")
    lines = (out / phase / "journal.jsonl").read_text().splitlines()
    return {r["architecture"]: r["score"] for r in map(json.loads, lines)}[found]


@pytest.mark.parametrize("family", FAMILIES)
def test_its_score_is_the_journals(family: str, tmp_path: Path) -> None:
    out = searched(tmp_path, family=family)
    assert "out of the supernet" in torch.load(out / "found.pth", weights_only=True)["origin"]
    assert evaluated(out, tmp_path / "data") == pytest.approx(best(out, "dilation"), abs=1e-9)


def test_without_recalibration_its_statistics_are_the_supernets(tmp_path: Path) -> None:
    out = searched(tmp_path, *JOINT, "SEARCH.PHASES", ("stage",), "SEARCH.EVAL.RECALIBRATION_IMAGES", 0)
    assert evaluated(out, tmp_path / "data") == pytest.approx(best(out, "stage"), abs=1e-9)


def test_training_starts_from_it(tmp_path: Path) -> None:
    out = searched(tmp_path, *JOINT, "SEARCH.PHASES", ("stage",))
    options = ["MODEL.WEIGHTS", out / "found.pth", "OUTPUT_DIR", out / "trained"]
    options += ["SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 1e-9]
    run_script("train_net.py", "--config-file", f"{out}/found.yaml", *map(str, options))
    files = out / "found.pth", out / "trained" / "model_final.pth"
    before, after = (torch.load(file, weights_only=True)["model"] for file in files)
    weights = [key for key in before if key.endswith("weight")]
    assert weights
    for key in weights:
        assert_close(after[key], before[key], rtol=0, atol=1e-6)


def test_of_the_joint_supernet(tmp_path: Path) -> None:
    """Which is trained once; with a phase that compares its paths on the test set."""
    options = [*JOINT, "SEARCH.PHASES", ("stage", "dilation", "test"), "SEARCH.DILATION.EVIDENCE", True]
    out = searched(tmp_path, *options)
    files = [out / name for name in ("found.yaml", "results.json")]
    written = [file.read_bytes() for file in files]
    for folder in out.glob("*/matches"):
        shutil.rmtree(folder)  # which is safe (docs/DESIGN.md)
    searched(tmp_path, *options)
    assert [file.read_bytes() for file in files] == written
    assert evaluated(out, tmp_path / "data") == pytest.approx(best(out, "dilation"), abs=1e-9)
    assert not list(out.glob("stage/*.pth")) and not list(out.glob("dilation/*.pth"))
    baseline, stage, found = json.loads((out / "results.json").read_text())["paths on the test set"]
    assert [row["network"] for row in (baseline, stage, found)] == ["baseline", "stage", "found"]
    assert baseline["architecture"] == "resnet/1-2-1-1/0-00-0-0" and baseline["images"] == 4
    assert "to the baseline" not in baseline
    why = (out / "dilation" / "rates.txt").read_text()
    has_rates = found["architecture"] != stage["architecture"]
    assert why.endswith("; kept" if has_rates else ("; not kept", "is the best"))
    if found["architecture"] != baseline["architecture"]:
        low, high = found["95 % low"], found["95 % high"]
        assert low <= found["to the baseline"] <= high
        signs = {"better": low > 0, "worse": high < 0, "not told apart": low <= 0 <= high}
        assert signs[found["verdict"]]


def test_a_supernet_of_other_widths_gives_none(tmp_path: Path) -> None:
    half = [*TINY, "MODEL.CRNAS.WIDTHS", [6, 8, 12, 16]]
    (tmp_path / "base.yaml").write_text(read_config("", half).dump())
    out = searched(tmp_path, "SEARCH.FOUND_BASE", ("base.yaml",), "SEARCH.PHASES", ("stage",))
    assert not (out / "found.pth").exists()
    assert "found.pth: none: " in (out / "log.txt").read_text()
