"""Shared by all tests: shared data, small configs, and random weights at unit scale."""

from __future__ import annotations

import os
from pathlib import Path

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
