"""benchmarks/gpu.py runs its whole course, on a CPU with tiny networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from detectors import ROOT


@pytest.mark.slow
def test_the_whole_course(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu.py"), "--tiny"]
    done = subprocess.run(
        [*command, "--minutes", "9", "--json", str(tmp_path / "gpu.json")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found.pop("device") == "cpu"
    assert [*found] == ["step", "memory", "memory, recomputed", "search"]
    assert not [(name, of["problem"]) for name, of in found.items() if "problem" in of]
    assert all(of["ratio"] > 0 for of in found.values())
    assert found["step"]["ratio_wall"] > 0 and found["search"]["images_per_second"] > 0
