"""Bad input: one line that names the key, the value and what is allowed, status 2, no file touched.

Most cases call a script's own `main` in this process, up to the point where a run would start; the
last ones start the script as a person does.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectors import ROOT, TINY, command_line, tiny_shapes, tiny_yaml

from crnas_d2.config import read_config
from crnas_d2.data.splits import write_split
from crnas_d2.launch import run
from crnas_d2.pipeline.plan import plan_search
from crnas_d2.pipeline.run import _step_config
from crnas_d2.pipeline.scorer import Split
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_backbone

TRAIN, SEARCH = "train_net.py", "search_net.py"


class Started(Exception):
    """Nobody complained before the run began to write; holds its config."""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace(".py", "_script"), ROOT / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    tiny_shapes(folder)
    return folder


class Bench:
    """A folder in which nothing may change, and the scripts to call there."""

    def __init__(
        self, folder: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        self.folder = folder
        self.shapes = shapes
        self.output = folder / "out"
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def arguments(self, options: list[Any]) -> list[str]:
        """Flags first, then KEY VALUE pairs after those of a run that would work."""
        flags = []
        while options and str(options[0]).startswith("--"):
            flag, *options = options
            flags.append(flag)
            if flag not in ("--resume", "--eval-only"):
                value, *options = options
                flags.append(str(value))
        if "--config-file" not in flags:  # what found.yaml would be based on
            flags += ["--config-file", str(self.base())]
        data = tiny_shapes(self.shapes)
        own = ["OUTPUT_DIR", str(self.output)]
        return [*flags, *command_line([*TINY, *data, *own, *options])]

    def base(self) -> Path:
        path = self.folder / "base.yaml"
        if not path.exists():
            tiny_yaml(path)
        return path

    def call(self, name: str, *options: Any) -> str:
        """Standard error of a script that leaves with status 2 before it starts."""
        module = script(name)

        def start(cfg: CfgNode, *args: Any, **kwargs: Any) -> None:
            raise Started(cfg)

        self._monkeypatch.setattr(module, "start_run", start)
        self._monkeypatch.setattr(sys, "argv", [name, *self.arguments(list(options))])
        check = getattr(module, "train_config", None) or module.plan_search
        self._capsys.readouterr()
        before = snapshot(self.folder)
        with pytest.raises(SystemExit) as left:
            run(module.main, check, default_argument_parser())
        assert left.value.code == 2
        assert snapshot(self.folder) == before
        error = self._capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    def starts(self, name: str, *options: Any) -> CfgNode:
        """The config of a script that finds nothing to complain of."""
        with pytest.raises(Started) as started:
            self.call(name, *options)
        return started.value.args[0]

    def json(self, change: Callable[[dict[str, Any]], object]) -> str:
        """A copy of the training JSON, changed."""
        content = json.loads((self.shapes / "train.json").read_text())
        change(content)
        path = self.folder / "changed.json"
        path.write_text(json.dumps(content))
        return str(path)

    def checkpoint(self, *options: Any, name: str = "weights.pth") -> str:
        """A detector's checkpoint, as far as its backbone goes, of TINY with other options."""
        cfg = read_config("", [*TINY, *options])
        weights = {f"backbone.{k}": v for k, v in build_backbone(cfg).state_dict().items()}
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": weights, "iteration": 1}, path)
        return str(path)

    def earlier_run(self, *options: Any, folder: str = "") -> None:
        """OUTPUT_DIR as a run left it."""
        place = Path("out") / folder
        self.checkpoint(*options, name=str(place / "model_0000001.pth"))
        (self.folder / place / "last_checkpoint").write_text("model_0000001.pth")


def snapshot(folder: Path) -> dict[str, Any]:
    """Names, sizes, times and bytes of all that is below."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        state = path.stat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (state.st_size, state.st_mtime_ns, content)
    return found


@pytest.fixture
def bench(
    tmp_path: Path,
    shapes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Bench:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    bench = Bench(tmp_path, shapes, monkeypatch, capsys)
    bench.base()
    return bench


def test_the_bench_lets_good_input_start(bench: Bench) -> None:
    """So that what is refused below is refused for the one thing that was changed."""
    assert bench.starts(TRAIN)
    assert bench.starts(TRAIN, "--eval-only")
    assert bench.starts(TRAIN, "MODEL.CRNAS.SUPERNET", "dilation")
    assert bench.starts(SEARCH)
    assert bench.starts(SEARCH, "SEARCH.PHASES", ("stage", "dilation", "retrain"))


def test_a_snapshot_sees_a_touched_file(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a")
    before = snapshot(tmp_path)
    (tmp_path / "kept").write_text("a")
    assert snapshot(tmp_path) != before


def test_a_wanted_file_is_shown_as_it_was_named(bench: Bench) -> None:
    error = bench.call(TRAIN, "--config-file", "no/such.yaml")
    assert error == "error: --config-file: no/such.yaml: no such file\n"


CODES = [
    # options, what the line shows: the key, the value, what is allowed
    (["MODEL.CRNAS.STAGE_CODE", [1, 2, 1]], ["STAGE_CODE", "[1, 2, 1]", "4 integers of at least 1"]),
    (["MODEL.CRNAS.STAGE_CODE", [1, 0, 1, 1]], ["STAGE_CODE", "[1, 0, 1, 1]", "at least 1"]),
    (["MODEL.CRNAS.DILATION_CODE", [0, 1]], ["DILATION_CODE", "[0, 1]", "[1, 2, 1, 1] takes 5"]),
    (["MODEL.CRNAS.DILATION_CODE", [0] * 6], ["DILATION_CODE", "[0, 0, 0, 0, 0, 0]", "takes 5"]),
    (
        ["MODEL.CRNAS.DILATION_CODE", [0, 1, 2, 3, 0]],
        ["DILATION_CODE", "[0, 1, 2, 3, 0]", "each 0, 1 or 2"],
    ),
    (["MODEL.CRNAS.DILATION_CODE", [0, 1, -1, 0, 0]], ["DILATION_CODE", "-1", "each 0, 1 or 2"]),
    (["MODEL.CRNAS.FAMILY", "vgg"], ["MODEL.CRNAS.FAMILY", "'vgg'", "resnet_basic, resnet"]),
    (["MODEL.CRNAS.WIDTHS", [4, 8, 12]], ["MODEL.CRNAS.WIDTHS", "[4, 8, 12]", "4 stages"]),
    (["MODEL.CRNAS.STAGE_SPACE", [[1], [1], [0], [1]]], ["STAGE_SPACE", "[0]", "positive depths"]),
    (
        ["MODEL.BACKBONE.NAME", "build_vgg"],
        ["MODEL.BACKBONE.NAME", "'build_vgg'", "build_crnas_fpn_backbone"],
    ),
    (["MODEL.CRNAS.STAGE_KODE", [1]], ["MODEL.CRNAS.STAGE_KODE", "[1]"]),
    (["MODEL.CRNAS.STAGE_CODE", "many"], ["MODEL.CRNAS.STAGE_CODE", "many", "list"]),
    (["MODEL.WEIGHTS", "no/such.pth"], ["MODEL.WEIGHTS", "no/such.pth", "no such file"]),
    (["SOLVER.IMS_PER_BATCH", 0], ["SOLVER.IMS_PER_BATCH", "0", "a multiple of the 1"]),
    (
        ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
        ["DATALOADER.SAMPLER_TRAIN", "'RepeatFactorTrainingSampler'", "TrainingSampler"],
    ),
]


@pytest.mark.parametrize("name", [TRAIN, SEARCH])
@pytest.mark.parametrize(("options", "shown"), CODES, ids=str)
def test_a_network_that_is_none(bench: Bench, name: str, options: list[Any], shown: list[str]) -> None:
    error = bench.call(name, *options)
    assert all(part in error for part in shown), error


def test_an_unknown_key_in_the_config_file(bench: Bench) -> None:
    bench.base().write_text("MODEL: {CRNAS: {STAGE_KODE: [1]}}\n")
    error = bench.call(SEARCH)
    assert "base.yaml" in error and "MODEL.CRNAS.STAGE_KODE" in error


@pytest.mark.parametrize("text", ["MODEL: [\n  a: {", "_BASE_: no/such.yaml\n", "just text\n"])
def test_a_config_file_that_is_none(bench: Bench, text: str) -> None:
    bench.base().write_text(text)
    error = bench.call(TRAIN)
    assert error.startswith(f"error: --config-file: {bench.base()}: ") and len(error) > 40
    assert "_BASE_" not in text or "no/such.yaml" in error


FIVE_MACS = {"macs": [5, 0.01]}
ANY_MACS = {"macs": [5e6, 0.999]}  # of the tiny detector's backbone
SEARCHES = [
    (["SEARCH.BUDGETS", (9,)], ["SEARCH.BUDGETS", "9", "blocks from 4 to 8", "nearest: 6, 7, 8"]),
    (["SEARCH.BUDGETS", (5, 3)], ["SEARCH.BUDGETS", "3", "nearest: 4, 5, 6"]),
    (["SEARCH.BUDGETS", (9,), "SEARCH.STAGE.ONLY_ELIGIBLE", True], ["SEARCH.BUDGETS", "9", "4 to 8"]),
    (["SEARCH.BUDGETS", ("five",)], ["SEARCH.BUDGETS", "'five'", "a number"]),
    (["SEARCH.BUDGETS", ()], ["SEARCH.BUDGETS", "()", "numbers"]),
    (["SEARCH.BUDGETS", ({"macs": 5},)], ["SEARCH.BUDGETS: {'macs': 5}: macs: a tolerance", "0.02]"]),
    (["SEARCH.BUDGETS", (5, {"blocks": 5})], ["SEARCH.BUDGETS", "(5, {'blocks': 5})", "different"]),
    (["SEARCH.BUDGETS", (FIVE_MACS, {"macs": [5, 0.3]})], ["SEARCH.BUDGETS", "different values"]),
    (["SEARCH.BUDGETS", (FIVE_MACS,)], ["SEARCH.BUDGETS: macs 5 +-1%: none of 16 codes", "nearest"]),
    (["SEARCH.BUDGETS", (5, {"latency": [1, 0.1], "blocks": 9})], ["SEARCH.BUDGETS: 9: none", "6, 7"]),
    (
        ["SEARCH.BUDGETS", (FIVE_MACS,), "SEARCH.STAGE.METHOD", "random"],
        ["SEARCH.BUDGETS: macs 5 +-1%: none of 16 codes"],
    ),
    (
        ["SEARCH.BUDGETS", (ANY_MACS,), "SEARCH.STAGE.ONLY_ELIGIBLE", True],
        ["SEARCH.BUDGETS: macs 5e6 +-99.9%: ", "SEARCH.STAGE.ONLY_ELIGIBLE", "blocks alone"],
    ),
    (
        ["SEARCH.BUDGETS", (ANY_MACS,), "SEARCH.STAGE.SAMPLING", "eligible"],
        ["SEARCH.BUDGETS: macs 5e6 +-99.9%: ", "SEARCH.STAGE.SAMPLING 'eligible'", "blocks alone"],
    ),
    (["SEARCH.STAGE.METHOD", "greedy"], ["SEARCH.STAGE.METHOD: 'greedy'", "'exhaustive', 'evolution'"]),
    (["SEARCH.DILATION.METHOD", "all"], ["SEARCH.DILATION.METHOD: 'all'", "'greedy', 'evolution'"]),
    (["SEARCH.EVALUATIONS", 0], ["SEARCH.EVALUATIONS: 0: at least 1"]),
    (["SEARCH.PHASES", ("stage", "tea")], ["SEARCH.PHASES", "'tea'", "'dilation'"]),
    (["SEARCH.STAGE.SAMPLING", "fair"], ["SEARCH.STAGE.SAMPLING", "'fair'", "'uniform', 'eligible'"]),
    (["SEARCH.DILATION.TOP_K", 0], ["SEARCH.DILATION.TOP_K", "0", "at least 1"]),
    (["SEARCH.ARCHVAL.SIZE", 12], ["SEARCH.ARCHVAL.SIZE", "12", "1 to 11", "12 training images"]),
    (["SEARCH.ARCHVAL.SIZE", 500], ["SEARCH.ARCHVAL.SIZE", "500", "1 to 11"]),
    (["SEARCH.ARCHVAL.SIZE", -1], ["SEARCH.ARCHVAL.SIZE", "-1", "1 to 11"]),
    (["SEARCH.ARCHVAL.SPLIT_FIELD", "slide"], ["SEARCH.ARCHVAL.SPLIT_FIELD", "'slide'", "file_name, height, id"]),
    (["SEARCH.EVAL.METRIC", "APxl"], ["SEARCH.EVAL.METRIC", "'APxl'", "AP, AP50"]),
    (["SEARCH.EVAL.METRIC", "APl"], ["SEARCH.EVAL.METRIC", "bbox APl", "no object that counts"]),
    (["SEARCH.EVAL.TASK", "segm"], ["SEARCH.EVAL.TASK", "'segm'", "MASK_ON", "bbox"]),
    (["SEARCH.FOUND_BASE", "no/such.yaml"], ["SEARCH.FOUND_BASE", "no/such.yaml", "no such"]),
    (["MODEL.CRNAS.SUPERNET", "stage"], ["MODEL.CRNAS.SUPERNET", "'stage'", "leave it empty"]),
    (["MODEL.BACKBONE.FREEZE_AT", 2], ["MODEL.BACKBONE.FREEZE_AT", "2", "allowed is 0"]),
    (["TEST.PRECISE_BN.ENABLED", True], ["TEST.PRECISE_BN.ENABLED", "True", "False"]),
    (
        ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"],
        ["MODEL.BACKBONE.NAME", "'build_resnet_fpn_backbone'", "build_crnas_fpn_backbone"],
    ),
]


@pytest.mark.parametrize(("options", "shown"), SEARCHES, ids=str)
def test_a_search_that_cannot_be(bench: Bench, options: list[Any], shown: list[str]) -> None:
    error = bench.call(SEARCH, *options)
    assert all(part in error for part in shown), error


@pytest.mark.parametrize(
    "options",
    [
        ["SEARCH.BUDGETS", (5, ANY_MACS, {"blocks": 5, **ANY_MACS}, {"latency": [1e-9, 0.01]})],
        ["SEARCH.BUDGETS", (ANY_MACS,), "SEARCH.STAGE.METHOD", "evolution"],
        ["SEARCH.BUDGETS", (9, FIVE_MACS), "SEARCH.PHASES", ("dilation",)],
        ["SEARCH.BUDGETS", ({"blocks": [5, 0.2]},), "SEARCH.STAGE.ONLY_ELIGIBLE", True],
    ],
    ids=str,
)
def test_budgets_that_can_be(bench: Bench, options: list[Any]) -> None:
    """Whether latency can be met is known when it was measured, after the checks."""
    assert bench.starts(SEARCH, *options)


def test_a_found_base_that_is_not_ours(bench: Bench) -> None:
    other = bench.folder / "other.yaml"
    other.write_text("MODEL: {BACKBONE: {NAME: build_resnet_backbone}}\n")
    error = bench.call(SEARCH, "SEARCH.FOUND_BASE", str(other))
    assert "SEARCH.FOUND_BASE" in error and "build_resnet_backbone" in error


def test_a_supernet_that_is_none(bench: Bench) -> None:
    error = bench.call(TRAIN, "MODEL.CRNAS.SUPERNET", "both")
    assert "MODEL.CRNAS.SUPERNET: 'both': allowed are ('', 'stage', 'dilation')" in error


@pytest.mark.parametrize("kind", ["stage", "dilation"])
def test_a_supernet_that_cannot_be_trained(bench: Bench, kind: str) -> None:
    def call(*options: Any) -> str:
        return bench.call(TRAIN, *options, "MODEL.CRNAS.SUPERNET", kind)

    assert "MODEL.BACKBONE.FREEZE_AT: 2" in call("MODEL.BACKBONE.FREEZE_AT", 2)
    assert "TEST.PRECISE_BN.ENABLED: True" in call("TEST.PRECISE_BN.ENABLED", True)
    assert "MODEL.BACKBONE.NAME" in call("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    assert "--eval-only" in call("--eval-only")


@pytest.mark.parametrize("name", [TRAIN, SEARCH])
class TestData:
    def test_no_annotations(self, bench: Bench, name: str) -> None:
        path = bench.json(lambda content: content.update(annotations=[]))
        error = bench.call(name, "DATASETS.TRAIN_JSON", path)
        assert error.startswith(f"error: DATASETS.TRAIN_JSON: {path}: no annotations; ")
        assert "at least one annotation" in error

    @pytest.mark.parametrize("part", ["images", "categories", "annotations"])
    def test_a_part_is_not_there(self, bench: Bench, name: str, part: str) -> None:
        path = bench.json(lambda content: content.pop(part))
        assert f"no {part}" in bench.call(name, "DATASETS.TRAIN_JSON", path)

    def test_a_missing_image(self, bench: Bench, name: str) -> None:
        path = bench.json(lambda content: content["images"][7].update(file_name="gone.jpg"))
        error = bench.call(name, "DATASETS.TRAIN_JSON", path)
        gone = bench.shapes / "images" / "gone.jpg"
        assert error == (f"error: DATASETS.TRAIN_IMAGES: {gone}: no such image (1 of 12 are missing)\n")

    def test_no_json(self, bench: Bench, name: str) -> None:
        path = bench.folder / "notes.json"
        path.write_text("images: none\nat all")
        error = bench.call(name, "DATASETS.TRAIN_JSON", str(path))
        assert error.startswith(f"error: DATASETS.TRAIN_JSON: {path}: not a JSON file")

    def test_no_file(self, bench: Bench, name: str) -> None:
        error = bench.call(name, "DATASETS.TRAIN_JSON", "no/such.json")
        assert "DATASETS.TRAIN_JSON" in error and "no/such.json" in error

    @pytest.mark.parametrize("key", ["TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES"])
    def test_one_of_two(self, bench: Bench, name: str, key: str) -> None:
        error = bench.call(name, f"DATASETS.{key}", "")
        assert error.startswith(f"error: DATASETS.{key}: empty; ") and "both are needed" in error

    def test_no_training_set(self, bench: Bench, name: str) -> None:
        none = ["DATASETS.TRAIN_JSON", "", "DATASETS.TRAIN_IMAGES", ""]
        assert "DATASETS.TRAIN: ()" in bench.call(name, *none)
        error = bench.call(name, *none, "DATASETS.TRAIN", ("moon_train",))
        assert "DATASETS.TRAIN: 'moon_train'" in error

    def test_the_test_set_too(self, bench: Bench, name: str) -> None:
        """Of a search only where it retrains: it does not look at the test set before."""
        options = ["SEARCH.PHASES", ("stage", "dilation", "retrain")]
        gone = ["DATASETS.TEST_IMAGES", "no/such/folder"]
        assert "DATASETS.TEST_IMAGES" in bench.call(name, *options, *gone)
        path = bench.json(lambda content: content["categories"][0].update(name="circle"))
        error = bench.call(name, *options, "DATASETS.TEST_JSON", path)
        assert "DATASETS.TEST_JSON" in error and "circle" in error and "disc" in error


SPACES = [
    # of the checkpoint, of the run
    pytest.param("stage", [], "dilation", [], id="stage to dilation"),
    pytest.param("dilation", [], "stage", [], id="dilation to stage"),
    pytest.param("", [], "stage", [], id="fixed to stage"),
    pytest.param("", [], "dilation", [], id="fixed to dilation"),
    pytest.param("stage", ["STAGE_SPACE", [[1, 2], [1, 2], [1, 2], [1]]], "stage", [], id="less"),
    pytest.param("stage", ["STAGE_SPACE", [[1, 2], [1, 2], [1, 2], [1, 3]]], "stage", [], id="other"),
    pytest.param("stage", ["STAGE_SPACE", [[1, 2], [1, 2], [1, 2], [1, 2, 3]]], "stage", [], id="more"),
    pytest.param("stage", ["NESTED_DEPTHS", True], "stage", [], id="nested"),
    pytest.param("stage", ["WIDTHS", [4, 6, 8, 14]], "stage", [], id="wider"),
    pytest.param("stage", ["FAMILY", "resnet_basic"], "stage", [], id="family"),
    pytest.param("dilation", ["STAGE_CODE", [1, 1, 2, 1]], "dilation", [], id="stage code"),
]


def of(kind: str, options: list[Any]) -> list[Any]:
    """Options of MODEL.CRNAS."""
    keys = ["SUPERNET", kind, *options]
    return [f"MODEL.CRNAS.{item}" if i % 2 == 0 else item for i, item in enumerate(keys)]


@pytest.mark.parametrize(("held_kind", "held", "kind", "options"), SPACES)
class TestAnotherSpace:
    def test_weights(
        self, bench: Bench, held_kind: str, held: list[Any], kind: str, options: list[Any]
    ) -> None:
        path = bench.checkpoint(*of(held_kind, held))
        error = bench.call(TRAIN, *of(kind, options), "MODEL.WEIGHTS", path)
        assert error.startswith(f"error: MODEL.WEIGHTS: {path}: is of another network or space: ")
        assert "allowed is" in error
        assert bench.starts(TRAIN, *of(held_kind, held), "MODEL.WEIGHTS", path)

    def test_resume(
        self, bench: Bench, held_kind: str, held: list[Any], kind: str, options: list[Any]
    ) -> None:
        bench.earlier_run(*of(held_kind, held))
        error = bench.call(TRAIN, "--resume", *of(kind, options))
        assert error.startswith(f"error: --resume: {bench.output / 'model_0000001.pth'}: is of ano")
        assert bench.starts(TRAIN, "--resume", *of(held_kind, held))


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
    parts = Split("archtrain", "archval", plan.parts[1])
    steps = [_step_config(plan, parts, kind, kind) for kind in ("stage", "dilation")]
    assert [step.MODEL.WEIGHTS for step in steps] == [weights[1], ""]


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


@pytest.mark.parametrize("content", [b"", b"no weights at all", None])
def test_a_checkpoint_that_is_none(bench: Bench, content: bytes | None) -> None:
    path = bench.folder / "weights.pth"
    if content is None:
        torch.save([1, 2, 3], path)
    else:
        path.write_bytes(content)
    error = bench.call(TRAIN, *of("stage", []), "MODEL.WEIGHTS", str(path))
    assert error.startswith(f"error: MODEL.WEIGHTS: {path}: not a detectron2 checkpoint")


def test_a_checkpoint_that_resume_misses(bench: Bench) -> None:
    bench.earlier_run()
    (bench.output / "model_0000001.pth").unlink()
    assert "--resume: " in bench.call(TRAIN, "--resume")


def test_resume_with_another_space(bench: Bench) -> None:
    """A search resumes with the config that it was started with, and no other."""
    cfg = bench.starts(SEARCH)
    bench.earlier_run(*of("stage", []), folder="stage")
    bench.output.joinpath("config.yaml").write_text(cfg.dump())
    assert bench.starts(SEARCH, "--resume")
    space = [[1, 2], [1, 2], [1, 2], [1, 3]]
    error = bench.call(SEARCH, "--resume", "MODEL.CRNAS.STAGE_SPACE", space)
    assert error.startswith(f"error: MODEL.CRNAS.STAGE_SPACE: {space}: the run in {bench.output} has ")


@pytest.mark.parametrize("left", ["stage/journal.jsonl", "dilation_N5/journal.jsonl", "stage/matches"])
def test_what_suits_the_device_may_change_before_the_first_score(bench: Bench, left: str) -> None:
    """That memory is short, say, shows when the first candidate is scored."""
    cfg = bench.starts(SEARCH)
    bench.earlier_run(*of("stage", []), folder="stage")
    bench.output.joinpath("config.yaml").write_text(cfg.dump())
    changed = ["SEARCH.EVAL.BATCH_SIZE", 1, "SEARCH.EVAL.AMP", "bf16", "SEARCH.EVAL.CHANNELS_LAST", True]
    assert bench.starts(SEARCH, "--resume", *changed).SEARCH.EVAL.BATCH_SIZE == 1
    bench.output.joinpath(left).parent.mkdir(exist_ok=True)
    if left.endswith("matches"):
        bench.output.joinpath(left).mkdir()
    else:
        bench.output.joinpath(left).touch()
    error = bench.call(SEARCH, "--resume", *changed)
    assert error.startswith(f"error: SEARCH.EVAL.AMP: 'bf16': the run in {bench.output} has ''")


@pytest.mark.parametrize("folder", ["stage", "dilation_N5", "retrain/found"])
def test_a_folder_that_holds_a_search(bench: Bench, folder: str) -> None:
    bench.earlier_run(folder=folder)
    error = bench.call(SEARCH)
    assert error.startswith(f"error: OUTPUT_DIR: {bench.output}: holds {folder}/last_checkpoint")
    assert "--resume" in error


def test_steps_that_pass_over_the_stage_search_of_the_folder(bench: Bench) -> None:
    (bench.output / "stage").mkdir(parents=True)
    error = bench.call(SEARCH, "--resume", "SEARCH.PHASES", ("dilation",))
    assert error.startswith("error: SEARCH.PHASES: ('dilation',): ") and "name stage, too" in error


def test_runs_of_others_below_the_folder_are_no_hindrance(bench: Bench) -> None:
    bench.earlier_run(folder="baseline-0")
    assert bench.starts(TRAIN)
    assert bench.starts(SEARCH)


def test_resume_with_other_data(bench: Bench) -> None:
    """Part of the candidates would be scored on another archval than the rest."""
    plan = plan_search(default_argument_parser().parse_args(bench.arguments(["--resume"])))
    write_split(plan.parts, bench.output / "splits")
    assert bench.starts(SEARCH, "--resume")
    path = bench.json(lambda content: content["images"].pop(3) and cut_off(content))
    error = bench.call(SEARCH, "--resume", "DATASETS.TRAIN_JSON", path)
    assert error.startswith("error: DATASETS.TRAIN: its JSON gives another ")


def cut_off(content: dict[str, Any]) -> None:
    """Drop the annotations of images that are gone."""
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]


def test_eval_only_does_not_read_the_training_set(bench: Bench) -> None:
    bench.checkpoint(name="weights.pth")
    options = ["MODEL.WEIGHTS", str(bench.folder / "weights.pth"), "DATASETS.TRAIN_JSON", "gone.json"]
    assert bench.starts(TRAIN, "--eval-only", *options).MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_a_search_evaluates_nothing(bench: Bench) -> None:
    assert bench.call(SEARCH, "--eval-only").startswith("error: --eval-only: ")


def test_own_training_data_alone_is_not_evaluated_on_other_data(bench: Bench) -> None:
    none = ["DATASETS.TEST_JSON", "", "DATASETS.TEST_IMAGES", "", "DATASETS.TEST", ("bccd_val",)]
    assert bench.starts(TRAIN, *none).DATASETS.TEST == ()
    error = bench.call(SEARCH, *none, "SEARCH.PHASES", ("stage", "retrain"))
    assert error.startswith("error: DATASETS.TEST: (): one test set is needed to retrain")


def test_a_found_base_of_another_family(bench: Bench) -> None:
    path = bench.folder / "basic.yaml"
    path.write_text(read_config("", [*TINY, "MODEL.CRNAS.FAMILY", "resnet_basic"]).dump())
    error = bench.call(SEARCH, "SEARCH.FOUND_BASE", str(path))
    assert "has MODEL.CRNAS.FAMILY 'resnet_basic'" in error and "'resnet' is needed" in error


@pytest.mark.parametrize(
    "options",
    [
        ["MODEL.CRNAS.NORM", "GN"],
        ["MODEL.FPN.IN_FEATURES", ["res9"]],
        ["MODEL.FPN.IN_FEATURES", []],
        ["MODEL.CRNAS.WIDTHS", [0, 6, 8, 12]],
        ["MODEL.CRNAS.STAGE_SPACE", [1, 2, 3, 4]],
    ],
    ids=str,
)
def test_a_backbone_that_cannot_be_built(bench: Bench, options: list[Any]) -> None:
    assert bench.call(TRAIN, *options).startswith("error: MODEL.")


def test_a_folder_that_holds_a_journal(bench: Bench) -> None:
    (bench.output / "stage").mkdir(parents=True)
    (bench.output / "stage" / "journal.jsonl").write_text("{}\n")
    assert "holds stage/journal.jsonl" in bench.call(SEARCH)


@pytest.mark.parametrize("left", ["stage/race.jsonl", "stage/matches/x", "dilation_N16/matches/x"])
def test_what_a_race_leaves_is_of_an_earlier_run(bench: Bench, left: str) -> None:
    """Matches of another network would be believed."""
    (bench.output / left).parent.mkdir(parents=True)
    (bench.output / left).write_text("")
    held = "/".join(left.split("/")[:2])
    assert f"OUTPUT_DIR: {bench.output}: holds {held} of an earlier run" in bench.call(SEARCH)


def test_a_folder_that_holds_latencies(bench: Bench) -> None:
    bench.output.mkdir()
    (bench.output / "latency.jsonl").write_text("")
    assert "holds latency.jsonl of an earlier run" in bench.call(SEARCH)


def test_a_folder_that_holds_a_training(bench: Bench) -> None:
    bench.earlier_run()
    error = bench.call(TRAIN)
    assert error.startswith(f"error: OUTPUT_DIR: {bench.output}: holds last_checkpoint of an earlier")
    assert "--resume" in error


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--eval-only"]])
def test_a_folder_that_is_a_file(bench: Bench, flags: list[str]) -> None:
    bench.output.write_text("a file")
    for name in (TRAIN,) if "--eval-only" in flags else (TRAIN, SEARCH):
        assert f"OUTPUT_DIR: {bench.output}: is not a folder" in bench.call(name, *flags)


@pytest.mark.parametrize("name", [TRAIN, SEARCH])
def test_gpus_that_are_not_there(bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    error = bench.call(name, "--num-gpus", 2, "MODEL.DEVICE", "cuda")
    assert error == "error: --num-gpus: 2: there are 1; allowed are 1 to 1\n"


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        (TRAIN, ["MODEL.CRNAS.DILATION_CODE", [0, 1, 2, 3, 0]], "MODEL.CRNAS.DILATION_CODE: "),
        (SEARCH, ["SEARCH.BUDGETS", (9,)], "SEARCH.BUDGETS: 9: "),
    ],
)
def test_as_a_person_starts_it(bench: Bench, name: str, options: list[Any], shown: str) -> None:
    before = snapshot(bench.folder)
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *bench.arguments(options)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {shown}")
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert snapshot(bench.folder) == before
