"""tools/results.py: rows of finished runs, mean and spread. Networks trained alone, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench import script
from detectors import tiny_config

from crnas_d2.architecture import Architecture
from crnas_d2.budget import Budget
from crnas_d2.engine.setup import check_same_run
from crnas_d2.errors import InputError
from crnas_d2.pipeline import training
from crnas_d2.pipeline.plan import Plan
from crnas_d2.pipeline.trainings import ARCHTRAIN, WHOLE, Network, Trainings, measured
from detectron2.config import CfgNode

results = script("tools/results.py")


COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def finished(
    folder: Path, data: Path, seed: int, ap: float, iteration: int = 6, named: Any = COCO
) -> Path:
    """The OUTPUT_DIR of a run of 6 iterations, as detectron2 writes it."""
    cfg = tiny_config(data, folder, "SEED", seed)
    (folder / "config.yaml").write_text(cfg.dump())
    metrics = {f"bbox/{m}": ap for m in named}
    lines = [{"iteration": 3, "total_loss": 1.0}, {"iteration": iteration, **metrics}]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if iteration == 6:
        (folder / "model_final.pth").touch()
    return folder


def test_rows_and_summary(tmp_path: Path) -> None:
    rows = []
    for seed, ap in ((0, 50.0), (1, 52.0), (2, 54.0)):
        rows.append(results.row_of("base", finished(tmp_path / str(seed), tmp_path / "data", seed, ap)))
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert rows[0]["architecture"] == "resnet/1-2-1-1/0-00-0-0" and rows[0]["iterations"] == 6
    assert "52.00 ± 2.00" in results.summary(rows)
    assert "±" not in results.summary(rows[:1])


def test_a_csv_of_coco_and_of_pascal_voc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which has three metrics; written, and read again."""
    voc = finished(tmp_path / "voc", tmp_path / "data", 0, 50.0, named=COCO[:3])
    coco = finished(tmp_path / "coco", tmp_path / "data", 0, 40.0)
    line = ["results.py", "--csv", str(tmp_path / "new" / "runs.csv")]
    for runs in ([f"a={voc}"], [f"b={coco}"], []):
        monkeypatch.setattr("sys.argv", [*line, *runs])
        results.main()
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.count("50.00") == 3 and second.count("40.00") == 6
    monkeypatch.setattr("sys.argv", [*line, str(voc)])
    with pytest.raises(InputError, match=f"^{voc}: NAME=FOLDER is needed$"):
        results.main()


def test_scoring_may_change_until_a_candidate_is_scored(tmp_path: Path) -> None:
    """Not only until the baseline was trained alone."""
    cfg = tiny_config(tmp_path / "data", tmp_path / "out")
    (tmp_path / "out" / "config.yaml").write_text(cfg.dump())
    cfg.SEARCH.EVAL.BATCH_SIZE += 1
    for folder in ("trainings", "stage"):
        check_same_run(cfg)
        (tmp_path / "out" / folder).mkdir()
        (tmp_path / "out" / folder / "journal.jsonl").touch()
    with pytest.raises(InputError, match=r"SEARCH\.EVAL\.BATCH_SIZE"):
        check_same_run(cfg)


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", tmp_path / "data", 0, 50.0, iteration=3)
    with pytest.raises(InputError, match="a finished run"):
        results.row_of("base", folder)


def test_a_classifier_has_no_row_of_a_detector(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", tmp_path / "data", 0, 50.0)
    (folder / "metrics.json").write_text('{"iteration": 6, "classification/top1": 70.0}\n')
    with pytest.raises(InputError, match=r"bbox/AP in .*: not there"):
        results.row_of("base", folder)


def test_a_network_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each architecture, data and number of its seed; another schedule is refused."""
    trained: list[CfgNode] = []

    class Trainer:
        last_results = {"bbox": {"AP": 1.0, "APs": float("nan"), "AP-disc": 0.5}}

        def __init__(self, cfg: CfgNode) -> None:
            trained.append(cfg)

        register_hooks = resume_or_load = train = lambda *args: None

    monkeypatch.setattr(training, "DetectionTrainer", Trainer)
    options = ["SEARCH.FINALISTS.SCHEDULE", 0.5, "SEARCH.FOUND_BASE", ["base.yaml"]]
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", *options)
    base = tmp_path / "base.yaml"
    base.write_text(cfg.dump())
    plan = Plan(cfg, {Budget.parse(5): str(base)}, "", None)
    codes = [Architecture("resnet", (1, 2, 1, 1), (0, 0, 0, 0, digit)) for digit in (1, 2)]
    one, other = (Network(code, str(base)) for code in codes)
    asked = [(one, ARCHTRAIN, 0), (one, ARCHTRAIN, 1), (other, ARCHTRAIN, 0), (one, WHOLE, 0)]
    for each in [*asked, *asked]:
        trainings = Trainings(plan, "archtrain", "archval")  # as a resumed run has it
        assert trainings(*each) == 1.0
    assert [run.OUTPUT_DIR for run in trained] == [str(trainings.folder(*each)) for each in asked]
    assert len({run.SEED for run in trained}) == 3  # finalists share the seeds' numbers
    assert [run.SOLVER.MAX_ITER for run in trained] == [3, 3, 3, 6]
    assert [run.DATASETS.TRAIN == ("archtrain",) for run in trained] == [True] * 3 + [False]
    assert [r["score"] for r in trainings.of(one, ARCHTRAIN)] == [1.0, 1.0]
    assert trainings.best(one, ARCHTRAIN, 1)[0] == trainings.folder(*asked[0]) / "model_final.pth"
    moved = Trainings(plan, "archtrain of another folder", "archval")
    assert moved(*asked[0]) == 1.0 and len(trained) == 4
    # With a second base config, a training is of one of them.
    (tmp_path / "second.yaml").write_text(cfg.dump())
    bases = {Budget.parse(5): str(base), Budget.parse(6): str(tmp_path / "second.yaml")}
    two = Trainings(Plan(cfg, bases, "", None), "archtrain", "archval")
    networks = [Network(codes[0], path) for path in bases.values()]
    for network, name in zip(networks, ("base", "second")):
        assert two.folder(network, WHOLE, 1).parts[-2] == f"train_1_{name}"
        assert two(network, WHOLE, 1) == 1.0 and len(two.of(network, WHOLE)) == 1
    assert len(trained) == 6
    base.write_text(cfg.dump().replace("MAX_ITER: 6", "MAX_ITER: 7"))
    with pytest.raises(InputError, match=r"SOLVER\.MAX_ITER: 7: the run in .* has 6"):
        trainings(one, WHOLE, 0)


BOXES = {"AP": 40.0, "AP50": 60.0, "AP75": 42.0, "APs": 20.0, "APm": 40.0, "APl": 50.0, "AP-cat": 9.0}
MASKS = {name: value - 3 for name, value in BOXES.items()}


@pytest.mark.parametrize(
    ("results_of_a_test", "task", "metric", "columns"),
    [
        ({"bbox": BOXES}, "bbox", "AP", ["AP", "AP50", "AP75", "APs", "APm", "APl"]),
        ({"bbox": BOXES}, "bbox", "APs", ["APs", "AP", "AP50", "AP75", "APm", "APl"]),
        ({"bbox": {"AP": 1.0, "AP50": 2.0, "AP75": 0.5}}, "bbox", "APs", ["AP", "AP50", "AP75"]),
        (
            {"bbox": BOXES, "segm": MASKS},
            "segm",
            "AP50",
            ["AP50", "AP", "AP75", "APs", "APm", "APl", *(f"bbox {m}" for m in list(BOXES)[:6])],
        ),
    ],
    ids=["COCO", "small objects", "Pascal VOC", "masks"],
)
def test_the_table_has_the_searchs_metric_first_and_what_the_evaluator_gives(
    results_of_a_test: dict[str, Any], task: str, metric: str, columns: list[str]
) -> None:
    row = measured(results_of_a_test, task, metric)
    assert list(row) == columns
    for column, value in row.items():
        of_task, _, name = column.rpartition(" ")
        assert value == results_of_a_test[of_task or task][name]
