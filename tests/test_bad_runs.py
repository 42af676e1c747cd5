"""Bad checkpoints, journals and folders of earlier runs: one line, no file touched (bench.py)."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import SEARCH, TRAIN, Bench, of
from detectors import ROOT
from test_checkpoint import DAMAGES, Trap

from crnas_d2 import files
from crnas_d2.data.splits import write_splits
from crnas_d2.errors import InputError
from crnas_d2.pipeline.configs import supernet_config
from crnas_d2.pipeline.plan import plan_search
from detectron2.engine import default_argument_parser

Make = Callable[[Bench], list[Any]]  # makes bad input; returns options that name it


def weights(change: Callable[[Path], object]) -> Make:
    """A file of weights, changed."""

    def make(bench: Bench) -> list[Any]:
        path = Path(bench.checkpoint())
        change(path)
        return ["MODEL.WEIGHTS", str(path)]

    return make


def edited(edit: Callable[[dict[str, Any]], object]) -> Make:
    def change(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        edit(content["model"])
        torch.save(content, path)

    return weights(change)


def earlier(damage: str) -> Make:
    """A run whose only checkpoint is damaged."""

    def make(bench: Bench) -> list[Any]:
        bench.earlier_run()
        DAMAGES[damage](bench.output / "model_0000001.pth")
        return ["--resume"]

    return make


RECORD = {"phase": "stage", "architecture": "resnet/1-1-1-2/0-0-0-00", "score": 1.5}


def journal(*lines: Any, name: str = "journal.jsonl") -> Make:
    """A run's folder with a journal of these lines, and a whole one after them."""

    def make(bench: Bench) -> list[Any]:
        bench.earlier_run(*of("stage", []), folder="stage")
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        last = json.dumps({**RECORD, "architecture": "resnet/2-1-1-1/00-0-0-0"})
        (bench.output / "stage" / name).write_text("\n".join([*texts, last, ""]))
        return ["--resume"]

    return make


def begun(bench: Bench) -> None:
    """The folder of a search that trains its first supernet."""
    cfg = bench.starts(SEARCH)
    bench.earlier_run(*of("stage", []), folder="stage")
    bench.output.joinpath("config.yaml").write_text(cfg.dump())


TRAP = {"model": Trap(Path("/no/such/folder/x"))}
PICKLE = pickle.dumps(TRAP, protocol=2)
CONV = "backbone.bottom_up.res2.0.conv1.weight"
TORN, RACE = '{"phase": "st', "race.jsonl"
FILES: dict[str, tuple[str, Make, str]] = {
    "weights, truncated": (TRAIN, weights(DAMAGES["truncated"]), "not a detectron2 checkpoint"),
    "weights, overwritten": (SEARCH, weights(DAMAGES["overwritten"]), "not a detectron2 checkpoint"),
    "weights that are a folder": (TRAIN, weights(DAMAGES["a folder"]), "weights.pth: no such file"),
    "weights that run code": (TRAIN, weights(lambda p: torch.save(TRAP, p)), "not a detectron2"),
    "weights as a pickle": (TRAIN, weights(lambda p: p.write_bytes(PICKLE)), "not a detectron2"),
    "weights that are a number": (TRAIN, weights(lambda p: torch.save(5, p)), "not a detectron2"),
    "weights less one": (TRAIN, edited(lambda m: m.pop(CONV)), f"{CONV} has shape none"),
    "weights of no tensor": (TRAIN, edited(lambda m: m.update({CONV: 5})), CONV),
    "weights, reshaped": (TRAIN, edited(lambda m: m.update({CONV: torch.zeros(1)})), "(1,) there"),
    "only checkpoint, truncated": (TRAIN, earlier("truncated"), "000001.pth is damaged (BadZipFile"),
    "only checkpoint, emptied": (TRAIN, earlier("emptied"), "is damaged (BadZipFile"),
    "only checkpoint, flipped": (TRAIN, earlier("flipped"), "is damaged ("),
    "journal, garbage inside": (SEARCH, journal(RECORD, "garbage"), "jsonl:2: not a scored"),
    "journal, a line torn inside": (SEARCH, journal(TORN), "jsonl:1: not a scored"),
    "journal, an empty line": (SEARCH, journal(RECORD, ""), "jsonl:2: not a scored"),
    "journal, score NaN": (SEARCH, journal({**RECORD, "score": math.nan}), "nan is not finite"),
    "journal, score a text": (SEARCH, journal({**RECORD, "score": "1"}), "jsonl:1: not a scored"),
    "journal, no score": (SEARCH, journal({"phase": "stage"}), "jsonl:1: not a scored"),
    "journal, twice": (SEARCH, journal(RECORD, RECORD), "jsonl:2: not a scored candidate"),
    "journal, a list": (SEARCH, journal([RECORD]), "journal.jsonl:1: not a scored candidate"),
    "journal, another phase": (
        *(SEARCH, journal({**RECORD, "phase": "dilation"})),
        "journal.jsonl:1: phase 'dilation': allowed is 'stage'",
    ),
    "race, a line torn inside": (SEARCH, journal(TORN, name=RACE), "race.jsonl:1: not a scored"),
    "race, another phase": (
        *(SEARCH, journal({**RECORD, "phase": "dilation race N5"}, name=RACE)),
        "race.jsonl:1: phase 'dilation race N5': allowed is 'stage'",
    ),
}


@pytest.mark.parametrize("id", FILES)
def test_a_fault_is_one_line(bench: Bench, id: str) -> None:
    name, make, shown = FILES[id]
    error = bench.call(name, *make(bench))
    assert shown in error, error


SPACES = [
    # of the checkpoint, of the run
    pytest.param("stage", [], "dilation", [], id="stage to dilation"),
    pytest.param("dilation", [], "stage", [], id="dilation to stage"),
    pytest.param("", [], "stage", [], id="fixed to stage"),
    pytest.param("", [], "dilation", [], id="fixed to dilation"),
    pytest.param("stage", ["STAGE_SPACE", [[1, 2], [1, 2], [1, 2], [1]]], "stage", [], id="less"),
    pytest.param("stage", ["STAGE_SPACE", [[1, 2], [1, 2], [1, 2], [1, 3]]], "stage", [], id="other"),
    pytest.param("stage", ["STAGE_SPACE", [[1, 2], [1, 2], [1, 2], [1, 2, 3]]], "stage", [], id="more"),
    pytest.param("stage", ["SHARED", True], "stage", [], id="shared depths"),
    pytest.param("dilation", [], "joint", ["SHARED", True], id="dilation to joint"),
    pytest.param("stage", ["WIDTHS", [4, 6, 8, 14]], "stage", [], id="wider"),
    pytest.param("stage", ["FAMILY", "resnet_basic"], "stage", [], id="family"),
    pytest.param("dilation", ["STAGE_CODE", [1, 1, 2, 1]], "dilation", [], id="stage code"),
]


@pytest.mark.parametrize(("held_kind", "held", "kind", "options"), SPACES)
def test_another_space(
    bench: Bench, held_kind: str, held: list[Any], kind: str, options: list[Any]
) -> None:
    own, other, shown = of(held_kind, held), of(kind, options), "is of another network or space: "
    weights = ["MODEL.WEIGHTS", bench.checkpoint(*own)]
    error = bench.call(TRAIN, *other, *weights)
    assert error.startswith(f"error: MODEL.WEIGHTS: {weights[1]}: {shown}") and "allowed is" in error
    assert bench.starts(TRAIN, *own, *weights)
    bench.earlier_run(*own)
    error = bench.call(TRAIN, "--resume", *other)
    assert error.startswith(f"error: --resume: {bench.output / 'model_0000001.pth'}: {shown}")
    assert error.endswith("; set the config back, or start in another OUTPUT_DIR\n")
    assert bench.starts(TRAIN, "--resume", *own)


@pytest.mark.parametrize(("held_kind", "kind"), [("dilation", "stage"), ("stage", "dilation")])
def test_weights_of_another_space_for_a_search(bench: Bench, held_kind: str, kind: str) -> None:
    path = bench.checkpoint(*of(held_kind, []))
    error = bench.call(SEARCH, "SEARCH.PHASES", (kind,), "MODEL.WEIGHTS", path)
    assert error.startswith(f"error: MODEL.WEIGHTS: {path}: is of another network or space: ")


def test_weights_of_the_first_supernet_start_a_search(bench: Bench) -> None:
    weights = ["MODEL.WEIGHTS", bench.checkpoint(*of("stage", []))]
    assert bench.starts(SEARCH, *weights)
    assert "MODEL.WEIGHTS" in bench.call(SEARCH, *weights, "SEARCH.PHASES", ("dilation",))
    # The second supernet is another one, so it starts without them.
    plan = plan_search(default_argument_parser().parse_args(bench.arguments(weights)))
    phases = [supernet_config(plan.cfg, kind) for kind in ("stage", "dilation")]
    assert [phase.MODEL.WEIGHTS for phase in phases] == [weights[1], ""]


def test_a_fixed_network_resumes_and_is_tested_with_its_own_weights_only(bench: Bench) -> None:
    bench.earlier_run()
    other = ["MODEL.CRNAS.STAGE_CODE", [1, 1, 2, 1]]
    for flags in (["--resume"], ["--resume", "--eval-only"]):
        assert bench.starts(TRAIN, *flags)
        assert "--resume: " in bench.call(TRAIN, *flags, *other)
    weights = ["MODEL.WEIGHTS", str(bench.output / "model_0000001.pth")]
    assert "MODEL.WEIGHTS: " in bench.call(TRAIN, "--eval-only", *weights, *other)
    new = [*weights, "OUTPUT_DIR", str(bench.folder / "new")]
    assert "MODEL.WEIGHTS: " in bench.call(TRAIN, *new, *other)
    assert bench.starts(TRAIN, *new)


def test_resume_with_another_space(bench: Bench) -> None:
    """A search resumes with the config that it was started with, and no other."""
    begun(bench)
    assert bench.starts(SEARCH, "--resume")
    space = [[1, 2], [1, 2], [1, 2], [1, 3]]
    error = bench.call(SEARCH, "--resume", "MODEL.CRNAS.STAGE_SPACE", space)
    assert error.startswith(f"error: MODEL.CRNAS.STAGE_SPACE: {space}: the run in {bench.output} has ")


@pytest.mark.parametrize(
    "left", ["stage/journal.jsonl", "dilation_N5/journal.jsonl", "stage/matches/0"]
)
def test_what_suits_the_device_may_change_before_the_first_score(bench: Bench, left: str) -> None:
    """That memory is short, say, shows when the first candidate is scored."""
    begun(bench)
    changed = ["SEARCH.EVAL.BATCH_SIZE", 1, "SEARCH.EVAL.AMP", "bf16"]
    changed += ["SEARCH.EVAL.CHANNELS_LAST", True]
    assert bench.starts(SEARCH, "--resume", *changed).SEARCH.EVAL.BATCH_SIZE == 1
    bench.output.joinpath(left).parent.mkdir(exist_ok=True)
    bench.output.joinpath(left).touch()
    error = bench.call(SEARCH, "--resume", *changed)
    assert error.startswith(f"error: SEARCH.EVAL.AMP: 'bf16': the run in {bench.output} has ''")


@pytest.mark.parametrize(
    ("held", "phases"), [("stage", ("dilation",)), ("dilation_N5", ("stage", "retrain"))]
)
def test_phases_that_pass_over_a_search_of_the_folder(
    bench: Bench, held: str, phases: tuple[str, ...]
) -> None:
    """found.yaml would be overwritten by another network."""
    (bench.output / held).mkdir(parents=True)
    error, missing = bench.call(SEARCH, "--resume", "SEARCH.PHASES", phases), held.split("_")[0]
    assert error.startswith(f"error: SEARCH.PHASES: {phases}: ") and f"name {missing}, too" in error


def test_runs_of_others_below_the_folder_are_no_hindrance(bench: Bench) -> None:
    bench.earlier_run(folder="baseline-0")
    assert bench.starts(TRAIN)
    assert bench.starts(SEARCH)


def test_resume_with_other_data(bench: Bench) -> None:
    """Part of the candidates would be scored on another archval than the rest."""
    plan = plan_search(default_argument_parser().parse_args(bench.arguments(["--resume"])))
    write_splits(plan.parts, bench.output / "splits")
    assert bench.starts(SEARCH, "--resume")
    path = bench.json(lambda content: content["annotations"].pop())
    error = bench.call(SEARCH, "--resume", "DATASETS.TRAIN_JSON", path)
    assert error.startswith("error: DATASETS.TRAIN: its JSON gives another ")


OF_A_SEARCH = (
    *("stage/last_checkpoint", "dilation_N5/last_checkpoint", "joint/last_checkpoint"),
    *("trainings/train_0/resnet_1-2-1-1_0-00-0-0/last_checkpoint", "trainings/journal.jsonl"),
    *("stage/journal.jsonl", "stage/race.jsonl", "stage/matches", "dilation_N16/matches"),
    *("test/matches", "latency.jsonl"),
)


@pytest.mark.parametrize(
    ("name", "left"), [(TRAIN, "last_checkpoint"), *((SEARCH, left) for left in OF_A_SEARCH)]
)
def test_a_folder_that_holds_an_earlier_run(bench: Bench, name: str, left: str) -> None:
    """Matches of another network, say, would be believed."""
    (bench.output / left).parent.mkdir(parents=True)
    (bench.output / left).touch()
    error = bench.call(name)
    assert error.startswith(f"error: OUTPUT_DIR: {bench.output}: holds {left} of an earlier run")
    assert "--resume" in error


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--eval-only"]])
def test_a_folder_that_is_a_file(bench: Bench, flags: list[str]) -> None:
    bench.output.write_text("a file")
    for name in (TRAIN,) if "--eval-only" in flags else (TRAIN, SEARCH):
        assert f"OUTPUT_DIR: '{bench.output}': is not a folder" in bench.call(name, *flags)


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--eval-only"]])
def test_a_training_is_not_written_into_a_search(bench: Bench, flags: list[str]) -> None:
    (bench.output / "splits").mkdir(parents=True)
    error = bench.call(TRAIN, *flags, "MODEL.WEIGHTS", bench.checkpoint())
    assert error == f"error: OUTPUT_DIR: {bench.output}: holds a search; name another folder\n"


def test_eval_only_does_not_evaluate_random_weights(bench: Bench) -> None:
    assert bench.call(TRAIN, "--eval-only").startswith("error: MODEL.WEIGHTS: '': with --eval-only ")


def test_eval_only_does_not_read_the_training_set(bench: Bench) -> None:
    bench.checkpoint(name="weights.pth")
    options = ["MODEL.WEIGHTS", str(bench.folder / "weights.pth"), "DATASETS.TRAIN_JSON", "gone.json"]
    assert bench.starts(TRAIN, "--eval-only", *options).MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_a_search_evaluates_nothing(bench: Bench) -> None:
    assert bench.call(SEARCH, "--eval-only").startswith("error: --eval-only: ")


def test_own_training_data_alone_is_not_evaluated_on_other_data(bench: Bench) -> None:
    none = ["DATASETS.TEST_JSON", "", "DATASETS.TEST_IMAGES", "", "DATASETS.TEST", ("bccd_val",)]
    assert bench.starts(TRAIN, *none).DATASETS.TEST == ()
    assert bench.starts(SEARCH, *none, "SEARCH.PHASES", ("stage", "retrain")).SEARCH.PHASES == (
        "stage",
    )
    error = bench.call(SEARCH, *none, "SEARCH.PHASES", ("retrain",))
    assert error.startswith("error: DATASETS.TEST: (): the phase retrain needs one test set")
    assert bench.starts(SEARCH, *none, "SEARCH.FINALISTS.NUM", 2).DATASETS.TEST == ()


def test_two_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a killed one keep it; locks are between processes, so the other is a real one."""
    code = "import sys, time; from crnas_d2.files import hold; hold(sys.argv[1]); print(flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(60)", str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout is not None and other.stdout.readline()
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    with pytest.raises(InputError, match="another run writes in it"):
        files.hold(str(tmp_path))
    other.kill()
    monkeypatch.setattr(files, "PATIENCE", 20)
    files.hold(str(tmp_path))
    other.communicate()
