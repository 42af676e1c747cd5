"""Another project's DefaultTrainer script trains a found.yaml; it calls add_crnas_config alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from detectors import ROOT, TINY, run_script, tiny_shapes

from crnas_d2 import add_crnas_config
from crnas_d2.architecture import Architecture
from crnas_d2.config import leaves, read_config
from crnas_d2.pipeline.found import write_found
from detectron2.config import get_cfg

FOUND = Architecture.parse("resnet/1-3-1-2/0-120-2-01")


def test_our_keys_change_none_of_detectron2s() -> None:
    cfg, before = get_cfg(), get_cfg()
    add_crnas_config(cfg)
    ours, theirs = leaves(cfg), leaves(before)
    assert {key: ours[key] for key in theirs} == theirs
    assert len(ours) > len(theirs) + 20
    # get_cfg returns copies: another config has none of our keys.
    assert get_cfg().dump() == before.dump()


def test_a_guest_trains_and_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    tiny_shapes(data)
    cfg = read_config("", [*TINY, "SOLVER.MAX_ITER", 2])
    (tmp_path / "base.yaml").write_text(cfg.dump())
    write_found(tmp_path / "found.yaml", cfg, str(tmp_path / "base.yaml"), FOUND, "written by a test")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    script, files = str(ROOT / "tests" / "guest_train.py"), ("found.yaml", "data", "out")
    shown = run_script(script, *(str(tmp_path / name) for name in files), folder=tmp_path)
    assert re.search(r"copypaste: AP,AP50,AP75,APs,APm,APl\n.*copypaste: \d+\.\d+,", shown)
    rates = json.loads(shown.split("rates: ")[1].splitlines()[0])
    assert rates == [digit + 1 for digit in FOUND.dilation_code]
    weights = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    assert "backbone.bottom_up.res3.2.conv3.weight" in weights
    assert not [key for key in weights if "res3.3." in key]


def test_the_guest_knows_nothing_else_of_ours() -> None:
    lines = (ROOT / "tests" / "guest_train.py").read_text().splitlines()
    code = [line for line in lines if "crnas" in line and ("import" in line or "(cfg)" in line)]
    assert [line.split("  #")[0].strip() for line in code] == [
        "from crnas_d2 import add_crnas_config",
        "add_crnas_config(cfg)",
    ]
