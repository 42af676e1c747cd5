"""SEARCH.INHERIT: networks trained alone start from their paths in the joint supernet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import FAMILIES, TINY
from test_outline import ALL, planned

from crnas_d2.config import read_config
from crnas_d2.engine.trainer import DetectionTrainer
from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.supernet import find_supernet
from crnas_d2.modeling.build import architecture_of
from crnas_d2.pipeline import trainings
from crnas_d2.pipeline.course import course
from crnas_d2.pipeline.run import run_search
from detectron2.modeling import build_model

ONE_FAST = [f if f == "resnet" else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]


@pytest.mark.parametrize("family", ONE_FAST)
def test_a_network_starts_as_its_path(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of each network before its first step are those of its path, to the last bit."""
    monkeypatch.setattr("crnas_d2.pipeline.search_hook.check_told_apart", lambda *_: None)
    started: list[tuple[Any, dict[str, torch.Tensor]]] = []
    train = DetectionTrainer.train

    def noted(trainer: DetectionTrainer) -> Any:
        started.append((trainer.cfg, {k: v.clone() for k, v in trainer.model.state_dict().items()}))
        return train(trainer)

    monkeypatch.setattr(DetectionTrainer, "train", noted)
    options = [*ALL, *FAMILIES[family], "SEARCH.INHERIT", True]
    plan = planned(tmp_path, *options)
    names = [work.name for work in course(plan)]
    assert names[:4] == ["joint supernet", "stage search", "noise", "stage finalists"]
    run_search(plan, resume=True)

    out = tmp_path / "out"
    supernet_cfg = read_config(str(out / "joint" / "config.yaml"))
    model = build_model(supernet_cfg).eval()
    model.load_state_dict(torch.load(out / "joint" / "model_final.pth", weights_only=True)["model"])
    supernet = find_supernet(model)
    assert supernet is not None
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    networks = [(cfg, state) for cfg, state in started if not cfg.MODEL.CRNAS.SUPERNET]
    assert started[0][0].MODEL.CRNAS.SUPERNET == "joint" and len(networks) > 4
    for cfg, state in networks:
        alone = build_model(cfg).eval()
        alone.load_state_dict(state)
        with torch.no_grad(), supernet.using_path(architecture_of(cfg)):
            expected, found = model.backbone(images), alone.backbone(images)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        for head in ("proposal_generator", "roi_heads"):  # the heads come along
            weights = getattr(model, head).state_dict()
            assert all(torch.equal(v, state[f"{head}.{name}"]) for name, v in weights.items())
    assert not list(out.rglob("inherited.pth"))
    (verdict,) = json.loads((out / "results.json").read_text())["verdicts"].values()
    assert "trained alone on archtrain, from its path in the supernet, seed " in verdict["weights"]
    # Its schedule is too short for random weights: who trains the found network starts from found.pth.
    assert read_config(str(out / "found.yaml")).MODEL.WEIGHTS == str((out / "found.pth").resolve())

    # A finished run trains nothing again, not even in a folder that has moved.
    moved = out.rename(tmp_path / "moved")
    again = [*options, "OUTPUT_DIR", str(moved)]
    before = len(started)
    run_search(planned(tmp_path, *again), resume=True)
    assert not [cfg for cfg, _ in started[before:] if not cfg.MODEL.CRNAS.SUPERNET]
    # One that has ended, but is not in the journal, goes on from its own checkpoint: no step is left.
    journal = moved / "trainings" / "journal.jsonl"
    kept = [line for line in journal.open() if json.loads(line)["phase"] != "archtrain 0"]
    journal.write_text("".join(kept))
    before, inherited = len(started), []
    monkeypatch.setattr(trainings, "write_inherited", lambda path, *_: inherited.append(path))
    run_search(planned(tmp_path, *again), resume=True)
    resumed = [cfg for cfg, _ in started[before:] if not cfg.MODEL.CRNAS.SUPERNET]
    assert resumed and inherited == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SEARCH.JOINT", False], "SEARCH.INHERIT: True: SEARCH.JOINT is False"),
        (
            ["MODEL.CRNAS.STAGE_SPACE", [[1], [1], [1, 2], [1, 2]]],
            "STAGE_CODE (1, 2, 1, 1): not in the joint supernet",
        ),
        (
            ["SEARCH.FOUND_BASE", ["wide.yaml"]],
            "wide.yaml has other weights than the supernet: backbone.",
        ),
        (["SEARCH.PHASES", ("retrain",)], "SEARCH.PHASES: ('retrain',): SEARCH.INHERIT is True"),
    ],
)
def test_what_cannot_inherit_is_refused(options: list[Any], message: str, tmp_path: Path) -> None:
    wide = read_config("", [*TINY, "MODEL.FPN.OUT_CHANNELS", 16])
    (tmp_path / "wide.yaml").write_text(wide.dump())
    with pytest.raises(InputError) as caught:
        planned(tmp_path, *ALL, "SEARCH.INHERIT", True, *options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
