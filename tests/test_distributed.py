"""Several processes (torchrun, gloo, CPU) against one: paths, gradients, statistics and scores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import FULL_QUOTAS, ROOT, command_line, tiny_config, tiny_shapes, tiny_yaml

from crnas_d2.engine.trainer import SupernetTrainer

SCRIPT = Path(__file__).with_name("two_processes.py")


def run(processes: int, config: Path, mode: str) -> dict[str, Any]:
    """The file that rank 0 wrote."""
    out = config.with_name(f"{mode}-{processes}.pt")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(SCRIPT)]
    command += [str(config), str(out), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_two_processes_train_as_one(kind: str, tmp_path: Path) -> None:
    """All ranks draw the same paths; averaged gradients in float64 are those of the whole batch.

    All images have one size, and with full quotas nothing is drawn; SyncBN joins the statistics.
    """
    options = ["MODEL.CRNAS.SUPERNET", kind, "SOLVER.IMS_PER_BATCH", 4, *FULL_QUOTAS]
    config = tmp_path / "test_config.yaml"
    config.write_text(tiny_config(tmp_path / "data", tmp_path / "out", *options).dump())
    one, two = run(1, config, "gradients"), run(2, config, "gradients")
    assert [e["paths"] for e in two["ranks"]] == [one["paths"]] * 2
    assert len(set(one["paths"])) > 1
    for expected, found in zip(one["gradients"], two["gradients"]):
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            difference = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
            assert difference <= 1e-9, (name, float(difference))
    for name, buffer in one["buffers"].items():
        torch.testing.assert_close(two["buffers"][name], buffer, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_any_number_of_processes_scores_the_same(kind: str, tmp_path: Path) -> None:
    """Bit-exact from one checkpoint; each process forwards its share alone."""
    options = ["MODEL.CRNAS.SUPERNET", kind, "SOLVER.MAX_ITER", 60, "SOLVER.IMS_PER_BATCH", 4]
    options += ["SOLVER.BASE_LR", 0.02, "SOLVER.CHECKPOINT_PERIOD", 1000, "SEARCH.EVAL.BATCH_SIZE", 1]
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", *options)
    SupernetTrainer(cfg).train()
    cfg.MODEL.WEIGHTS = str(tmp_path / "out" / "model_final.pth")
    config = tmp_path / "test_config.yaml"
    config.write_text(cfg.dump())
    one = run(1, config, "scores")
    assert max(one["scores"]) > 0
    for processes in (2, 4):
        several = run(processes, config, "scores")
        assert several["scores"] == one["scores"]
        assert [e["scores"] for e in several["ranks"]] == [one["scores"]] * processes
        (total,) = one["forwards"]
        assert sum(several["forwards"]) == total
        assert max(several["forwards"]) <= -(-total // processes)


@pytest.mark.slow
def test_a_whole_search_in_two_processes(tmp_path: Path) -> None:
    """torchrun search_net.py, retraining included: journals, found.yaml and the table."""
    options = [*tiny_shapes(tmp_path / "data"), "OUTPUT_DIR", str(tmp_path / "out")]
    options += ["SEARCH.PHASES", ("stage", "dilation", "retrain")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, str(ROOT / "search_net.py")]
    command += ["--config-file", str(tiny_yaml(tmp_path / "search.yaml")), *command_line(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    out = tmp_path / "out"
    assert len((out / "stage" / "journal.jsonl").read_text().splitlines()) == 4
    assert len((out / "dilation" / "journal.jsonl").read_text().splitlines()) == 3 + 9 * 4
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("written: ") and str(out / "found.yaml") in last
    table = (out / "table.csv").read_text().splitlines()
    networks = [line.split(",")[0] for line in table]
    assert networks == ["network", *(["baseline"] * 2), *(["stage"] * 2), *(["found"] * 2)]
    assert "UnbiasedSyncBatchNorm" in (out / "log.txt").read_text()
