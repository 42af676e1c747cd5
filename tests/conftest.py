"""Shared by all tests: shared data, small configs, and random weights at unit scale."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported, here and in processes that tests start: threads of small networks would
# only wait for each other, many times as long on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("CRNAS_SHARED_DATA", ROOT.parent / "shared" / "data"))
os.environ.setdefault("DETECTRON2_DATASETS", str(SHARED_DATA))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets; the test is skipped where it is missing."""
    if not (SHARED_DATA / "bccd" / "train.json").is_file():
        pytest.skip(f"no data at {SHARED_DATA}; CRNAS_SHARED_DATA names another folder")
    return SHARED_DATA


@pytest.fixture(scope="session")
def bench_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of all benches; nothing may change there."""
    from detectors import tiny_shapes

    folder = tmp_path_factory.mktemp("shapes")
    tiny_shapes(folder)
    return folder


@pytest.fixture
def bench(
    tmp_path: Path,
    bench_shapes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Where scripts meet bad input (bench.py)."""
    from bench import Bench  # after the environment is set

    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    found = Bench(tmp_path, bench_shapes, monkeypatch, capsys)
    found.base()
    return found


@pytest.fixture(scope="session")
def disc_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """found.yaml of a tiny Mask R-CNN; its found.pth, random weights, sees discs everywhere.

    Nothing may change in its folder, which has the three classes' data set in shapes, too.
    """
    import torch
    from detectors import HEADS, TINY, tiny_shapes

    from crnas_d2.config import read_config
    from detectron2.modeling import build_model

    folder = tmp_path_factory.mktemp("found")
    own = [*tiny_shapes(folder / "shapes"), "MODEL.ROI_HEADS.NUM_CLASSES", 3]
    cfg = read_config("", [*TINY, *HEADS["MaskRCNN"], *own])
    (folder / "found.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    state = build_model(cfg).state_dict()
    state["roi_heads.box_predictor.cls_score.bias"] += torch.tensor([6.0, 0, 0, 0])
    torch.save({"model": state}, folder / "found.pth")
    return folder / "found.yaml"
