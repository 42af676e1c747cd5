"""--plan and --timed: what a search will do, told before it, is what it does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from detectors import FAMILIES, ROOT, TINY, command_line, run_script, tiny_shapes, tiny_yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crnas_d2.analysis.costs import backbone_costs
from crnas_d2.config import read_config
from crnas_d2.data.datasets import register_coco
from crnas_d2.pipeline.configs import base_paths
from crnas_d2.pipeline.course import Work, candidates, course, entrants
from crnas_d2.pipeline.estimate import Estimate, _seconds_of, estimate, shown
from crnas_d2.pipeline.outline import outline, scale
from crnas_d2.pipeline.plan import Plan, named_budget, plan_search
from crnas_d2.pipeline.run import run_search
from detectron2.data import transforms
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

ALL = [
    *("SEARCH.PHASES", ("stage", "dilation", "retrain")),
    *("SEARCH.FINALISTS.NUM", 2, "SEARCH.FINALISTS.SEEDS", 2, "SEARCH.RETRAIN.SEEDS", 2),
    *("SOLVER.MAX_ITER", 4, "MODEL.CRNAS.SHARED", True, "SEARCH.JOINT", True),
]


def planned(folder: Path, *options: Any) -> Plan:
    folder.mkdir(exist_ok=True)
    config = tiny_yaml(folder / "tiny.yaml")
    line = [*tiny_shapes(folder / "shapes"), "OUTPUT_DIR", str(folder / "out"), *options]
    arguments = ["--config-file", str(config), "--resume", *command_line(line)]
    return plan_search(default_argument_parser().parse_args(arguments))


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("resnet_basic", "greedy"),
        *(pytest.param(f, "random", marks=pytest.mark.slow) for f in FAMILIES),
        pytest.param("mobilenetv2", "greedy", marks=pytest.mark.slow),
    ],
)
def test_a_search_does_what_was_planned(
    family: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates are counted exactly, trainings are the most there can be; all is done afterwards."""
    # After four steps every score may be 0, which ends a search.
    monkeypatch.setattr("crnas_d2.pipeline.search_hook.check_told_apart", lambda *_: None)
    options = [*ALL, *FAMILIES[family], "SEARCH.DILATION.METHOD", method, "SEARCH.EVALUATIONS", 5]
    plan = planned(tmp_path, *options)
    before = {work.name: work for work in course(plan)}
    assert all(work.done == 0 for work in before.values())
    run_search(plan, resume=True)

    out = tmp_path / "out"
    after = {work.name: work for work in course(planned(tmp_path, *options))}
    for phase in ("stage", "dilation"):
        records = (out / phase / "journal.jsonl").read_text().splitlines()
        work = after[f"{phase} search"]
        # Rates of evidence or of finalists ask for rate 1 everywhere, which may be one of them.
        assert work.candidates == before[work.name].candidates == work.done == len(records)
        images = json.loads((out / "splits" / "archval.json").read_text())["images"]
        assert work.images == len(images) + 4
    assert after["joint supernet"].done == after["joint supernet"].iterations == 4
    assert after["noise"].done == after["noise"].units == 2 * 4
    trainings = [json.loads(line) for line in (out / "trainings" / "journal.jsonl").open()]
    finalists = ("noise", "stage finalists", "dilation finalists")
    for names, data in ((finalists, "archtrain"), (("retraining",), "train")):
        ended = sum(record["phase"].startswith(f"{data} ") for record in trainings)
        assert ended * 4 == sum(after[name].done for name in names)
        assert all(after[n].done <= after[n].units == before[n].units for n in names)


@pytest.mark.parametrize(
    ("config", "stage", "dilation"),
    [
        ("Search/resnet_basic", 9, 66),
        ("Search/resnet", 153 + 374, 138 + 291),
        ("Search/mobilenetv2", 43, 3 + 9 * 16),
        ("BCCD/search", 153, 139),
        ("OwnData/r18", 9, 67),
    ],
)
def test_candidates_of_the_papers_spaces(config: str, stage: int, dilation: int) -> None:
    """Stage codes by Sec. 3.3.1 and A.2; greedily 3, then 9 a block; for evidence rate 1 everywhere."""
    path = str(ROOT / "configs" / f"{config}.yaml")
    cfg = read_config(path)
    plan = Plan(cfg, base_paths(cfg, path), "", None)
    assert (candidates(plan, "stage"), candidates(plan, "dilation")) == (stage, dilation)


@pytest.mark.parametrize(
    ("options", "supernets", "dilation", "retrained"),
    [
        pytest.param([], 2, 138 + 291, 2 + 2 * 2, id="both searches"),
        pytest.param(["SEARCH.PHASES", ("dilation", "retrain")], 1, 138, 1 + 2, id="dilation alone"),
        pytest.param(["SEARCH.PHASES", ("retrain",)], 0, 0, 1 + 1, id="retraining alone"),
    ],
)
def test_several_budgets(
    options: list[Any], supernets: int, dilation: int, retrained: int, tmp_path: Path
) -> None:
    """A named code is searched for one budget, of which alone a baseline is trained."""
    path = str(ROOT / "configs" / "Search" / "resnet.yaml")
    all_three = ["SEARCH.PHASES", ("stage", "dilation", "retrain"), "SEARCH.PRETRAIN", ""]
    cfg = read_config(path, [*all_three, *options, "OUTPUT_DIR", str(tmp_path / "out")])
    parts, bases = planned(tmp_path).parts, base_paths(cfg, path)
    if options:
        bases = named_budget(cfg, bases, backbone_costs(cfg))
    found = {work.name: work for work in course(Plan(cfg, bases, "", parts))}
    assert found["retraining"].trainings == retrained
    if supernets:
        assert found["dilation supernet"].trainings == supernets
        assert found["dilation search"].candidates == dilation


def test_entrants() -> None:
    """The better half goes into each next round."""
    assert [entrants(4, seeds) for seeds in (1, 2, 3, 4)] == [4, 6, 7, 8]
    assert entrants(1, 3) == 3 and entrants(5, 2) == 5 + 3


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (100, 3000), (50, 40)])
@pytest.mark.parametrize(("shortest", "longest"), [(800, 1333), (320, 320), (0, 100)])
def test_images_are_scaled_as_detectron2_does(
    size: tuple[int, int], shortest: int, longest: int
) -> None:
    options = ["INPUT.MIN_SIZE_TEST", shortest, "INPUT.MAX_SIZE_TEST", longest]
    factor = scale(read_config("", options), *size)
    image = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    found = transforms.ResizeShortestEdge(shortest, longest).get_transform(image)
    expected = (found.new_w, found.new_h) if shortest else size
    assert expected == pytest.approx([side * factor for side in size], abs=1)


def test_what_a_person_may_want_to_look_at(tmp_path: Path) -> None:
    plan = planned(tmp_path, "TEST.DETECTIONS_PER_IMAGE", 1)
    assert plan.parts is not None
    archtrain, archval = plan.parts["archtrain"], plan.parts["archval"]
    emptied = archtrain["images"][0]["id"]
    archtrain["annotations"] = [a for a in archtrain["annotations"] if a["image_id"] != emptied]
    archval["annotations"][0]["iscrowd"] = 1
    archval["annotations"][1]["bbox"][2:] = [3, 90]
    text = outline(plan, course(plan))
    assert "  odd: 1 images of archtrain have no box, and are not trained on" in text
    assert "  odd: 1 boxes of archval are crowds" in text
    assert "  odd: 1 boxes are thinner than 4 pixels at the network" in text
    assert "3 classes have fewer than 10 objects in archval: " in text
    assert re.search(r"odd: an image has \d+ boxes; TEST.DETECTIONS_PER_IMAGE is 1", text)
    count = len(archtrain["annotations"]) + len(archval["annotations"])
    assert f"training set: 12 images, {count} boxes of 3 classes" in text
    supernet, search = course(plan)[:2]
    assert (supernet.name, supernet.units, supernet.done) == ("stage supernet", 6, 0)
    assert (search.name, search.units, search.images) == ("stage search", 4, 4 + 4)


@pytest.mark.parametrize(
    ("options", "processes", "named"),
    [
        (["SOLVER.IMS_PER_BATCH", 2], 1, "supernets: "),
        (["SOLVER.IMS_PER_BATCH", 6, "SOLVER.ACCUMULATE", 2], 1, "supernets: "),
        (["SOLVER.IMS_PER_BATCH", 2, "SEARCH.FINALISTS.NUM", 2], 1, "supernets and networks alone: "),
        (["SOLVER.IMS_PER_BATCH", 6, "MODEL.CRNAS.NORM", "BN"], 2, "supernets: "),
        (["SOLVER.IMS_PER_BATCH", 4], 1, ""),
        (["SOLVER.IMS_PER_BATCH", 6], 2, ""),  # SyncBN
    ],
)
def test_batchnorm_over_few_images(
    options: list[Any], processes: int, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, *options)
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    text = outline(plan, [])
    line = f"  odd: {named}BatchNorm sees fewer than 4 images at once (SOLVER.IMS_PER_BATCH "
    assert (line in text) == ("BatchNorm" in text) == bool(named)


def test_the_options(tmp_path: Path) -> None:
    """--plan writes nothing; --timed in a search ends with how far off it was."""
    config = tiny_yaml(tmp_path / "tiny.yaml")
    line = ["--config-file", str(config), *tiny_shapes(tmp_path / "shapes"), "OUTPUT_DIR", "out"]
    line += ["SEARCH.PHASES", ("stage",), "SOLVER.BASE_LR", 0.02, "SOLVER.MAX_ITER", 30]
    before = sorted(tmp_path.rglob("*"))
    script = str(ROOT / "search_net.py")
    said = run_script(script, "--plan", "--timed", *line, folder=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert "| stage supernet |" in said
    last = said.splitlines()[-1]
    assert re.fullmatch(r"about .*: stage supernet .*, stage search .*; checkpoints .* GB", last)
    said = run_script(script, "--timed", "--resume", *line, folder=tmp_path)
    assert "a new search in OUTPUT_DIR out" in said
    assert said.index("| stage supernet |") < said.index("about ") < said.index("it took ")
    assert re.search(r"it took .* s, [\d.]+ times what was estimated", said)
    (factor,) = re.findall(r"checkpoints have .* GB, ([\d.]+) times what was estimated", said)
    assert 0.1 < float(factor) < 2
    assert re.search(
        r"training: .*; stage supernet done in .*, all done in \d", said
    )  # the bars know the course
    start = json.loads((tmp_path / "out" / "starts.jsonl").read_text().splitlines()[0])
    assert ("commit" in start["versions"]) == (ROOT / ".git").exists()
    scalars = EventAccumulator(str(tmp_path / "out" / "stage")).Reload().Tags()["scalars"]
    assert {"total_loss", "path/stage 0", "path/stage 3"} <= {*scalars}
    assert {"stage/score", "stage/best so far"} <= {*scalars}
    said = run_script(script, "--timed", "--resume", *line, folder=tmp_path)
    assert "| 30 of 30" in said and "it took" not in said and "goes on in OUTPUT_DIR out" in said


@pytest.mark.parametrize("slow", [5.0, 0.0])
def test_estimates_follow_from_what_is_left(
    slow: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first step or score of each is slow, and is not repeated.

    The few images that are scored need no object of the metric's size.
    """
    monkeypatch.setattr("crnas_d2.pipeline.estimate.SLOW", slow)
    plan = planned(tmp_path, *ALL, "SEARCH.EVAL.METRIC", "APs")
    assert plan.parts is not None
    part = plan.parts["archtrain"]
    part["annotations"] = [a for a in part["annotations"] if a["area"] > 32**2]
    works = course(plan)
    found = estimate(plan, works)
    assert [work for work, _ in found.works] == works and found.gpu_bytes is None
    assert all(seconds > 0 for _, seconds in found.works) and found.disk_bytes > 0
    assert not (tmp_path / "out").exists()
    seconds = {work.name: seconds for work, seconds in found.works}
    # 3 and 2 trainings of as many iterations.
    assert seconds["stage finalists"] > seconds["noise"]


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (7e9, "7.0 of 8.0 GB"),
        (9e9, "9.0 of 8.0 GB, which is too little (docs/OWN_DATA.md: MODEL.CRNAS.RECOMPUTE True)"),
    ],
)
def test_memory_beside_what_the_gpu_has(
    needs: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(total_memory=8e9)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    works = [(Work("joint supernet", "joint", 1, 10, 0, 0, 0, 1.0), 90.0)]
    parts = "about 1 min 30 s: joint supernet 1 min 30 s"
    assert str(Estimate(works, needs, 1e9)) == f"{parts}; GPU memory {said}; checkpoints 1.0 GB"


def test_the_first_step_of_a_gpu_is_never_taken_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads kernels; on a CPU a slow step is slow every time. One slow step moves no median."""
    took = {"cpu": [6.0, 1.0, 1.0, 1.0], "cuda": [6.0, *[0.1] * 4, 9.0, *[0.1] * 5]}
    found = {}
    for device, seconds in took.items():
        rest = iter(seconds)
        monkeypatch.setattr("crnas_d2.pipeline.estimate._timed", lambda _, rest=rest: next(rest))
        found[device] = _seconds_of(lambda: None, device == "cuda")
    assert found == {"cpu": 6.0, "cuda": 0.1}


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "OwnData").glob("[a-z]*.yaml")))
def test_two_keys_are_enough(config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A person's own data without a test set: no table, and a line that says so."""
    data = tiny_shapes(tmp_path / "shapes")[:4]
    keys = command_line([*data, "OUTPUT_DIR", str(tmp_path / "out"), "SEARCH.ARCHVAL.SIZE", 4])
    arguments = default_argument_parser().parse_args(["--config-file", str(config), *keys])
    plan = plan_search(arguments)
    assert tuple(plan.cfg.SEARCH.PHASES) == ("stage", "dilation")
    assert "DATASETS.TEST_JSON): the phase retrain is left out" in caplog.text
    assert "retraining" not in {work.name for work in course(plan)}
    (count,) = re.findall(r"stage codes in the supernet: .*, (\d+) in all", outline(plan, course(plan)))
    assert int(count) < 10_000  # those of depths that no code of the budget has are left out


def test_durations_are_easy_to_read() -> None:
    cases = {5: "5 s", 65: "1 min 5 s", 3700: "1 h 1 min", 200000: "2 d 7 h"}
    assert {seconds: shown(seconds) for seconds in cases} == cases
    works = [(Work("joint supernet", "joint", 1, 10, 0, 0, 0, 1.0), 90.0)]
    assert str(Estimate(works, None, 2e9)) == (
        "about 1 min 30 s: joint supernet 1 min 30 s; checkpoints 2.0 GB"
    )


def test_the_test_set_is_told_of(tmp_path: Path) -> None:
    """And pictures that are in the training set, too: a slip that no AP shows."""
    shown = outline(planned(tmp_path, *ALL), [])
    assert "test set: 4 images, " in shown and "of its images are in" not in shown
    same = ["DATASETS.TEST_JSON", str(tmp_path / "again" / "shapes" / "train.json")]
    shown = outline(planned(tmp_path / "again", *ALL, *same), [])
    assert "odd: 12 of its images are in the training set, too" in shown
    assert "test set" not in outline(planned(tmp_path / "none", "SEARCH.PHASES", ("stage",)), [])
    # The phase "test" reads the search's own test set; FOUND_BASE's config may have none.
    base = tmp_path / "base.yaml"
    base.write_text(read_config("", [*TINY, "DATASETS.TEST", ()]).dump())
    keys = ["SEARCH.PHASES", ("stage", "test"), "SEARCH.FOUND_BASE", (str(base),)]
    keys += ["SEARCH.FINALISTS.NUM", 0, "MODEL.ROI_HEADS.NUM_CLASSES", 3]
    for side, file in (("TRAIN", "train"), ("TEST", "val")):
        name, shapes = f"{side} in {tmp_path}", tmp_path / "shapes"
        register_coco(name, str(shapes / f"{file}.json"), str(shapes / "images"))
        keys += [f"DATASETS.{side}", (name,)]
        keys += [f"DATASETS.{side}_JSON", "", f"DATASETS.{side}_IMAGES", ""]
    assert "test set: 4 images, " in outline(planned(tmp_path / "paths", *ALL, *keys), [])
