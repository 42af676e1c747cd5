"""pip install -e . into an environment with its own torch and detectron2 installs nothing over them."""

from __future__ import annotations

import subprocess
import sys

from detectors import ROOT


def test_pip_would_install_this_package_alone() -> None:
    """Without an index: whatever it needed beyond what is here would be an error."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, "-e", str(ROOT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    would = [line for line in done.stdout.splitlines() if line.startswith("Would install")]
    assert [line.split()[2:] for line in would] == [["crnas_d2-0.1.0"]]
