"""The table of keys, and which of two schedules counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crnas_d2 import config
from crnas_d2.config import CHECKS, add_crnas_config, leaves, read_config
from crnas_d2.errors import InputError
from crnas_d2.keys import KEYS, RESUME_ALWAYS, RESUME_UNTIL_SCORED
from detectron2.config import get_cfg


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_no_default_of_detectron2_changes() -> None:
    before, cfg = leaves(get_cfg()), get_cfg()
    add_crnas_config(cfg)
    after = leaves(cfg)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == set(KEYS)


@pytest.mark.parametrize("name", KEYS)
def test_every_key_says_what_it_means(name: str) -> None:
    assert len(KEYS[name].meaning.split()) >= 3 and KEYS[name].meaning.endswith((".", "?", ")"))


def test_defaults_are_allowed() -> None:
    cfg = read_config("")
    assert leaves(cfg)["SEARCH.EVAL.BATCH_SIZE"] == 8
    assert set(leaves(cfg)) >= {*RESUME_ALWAYS, *RESUME_UNTIL_SCORED}


@pytest.mark.parametrize("name", CHECKS)
def test_a_value_that_is_not_allowed(name: str) -> None:
    """Of every checked key: one line with the key, the value and what is allowed."""
    default = leaves(read_config(""))[name]
    bad = {str: "no such thing", int: -1, float: -1.0, bool: None, list: []}[type(default)]
    with pytest.raises(InputError) as caught:
        read_config("", [name, bad])
    message = str(caught.value)
    assert message.startswith(f"{name}: {bad!r}: ") and len(message) > len(f"{name}: {bad!r}: ")
    assert "\n" not in message


@pytest.mark.parametrize("where", ["file", "command line"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SEARCH.ARCHVAL_SIZE", "; did you mean SEARCH.ARCHVAL.SIZE?"),
        ("MODEL.CRNAS.STAGE_CODES", "; did you mean MODEL.CRNAS.STAGE_CODE?"),
        ("SEARCH.NOTHING_LIKE_IT", ""),
    ],
)
def test_an_unknown_key(name: str, said: str, where: str, tmp_path: Path) -> None:
    *nodes, last = name.split(".")
    text = "".join(f"{node}: {{" for node in nodes) + f"{last}: 1" + "}" * len(nodes)
    file = written(tmp_path / "old.yaml", text)
    with pytest.raises(InputError) as caught:
        read_config(file) if where == "file" else read_config("", [name, 1])
    shown = {"file": f"--config-file: {file}: no such key: {name}"}
    assert str(caught.value) == shown.get(where, f"{name}: 1: no such key") + said


@pytest.mark.parametrize("name", ["INPUT.MIN_SIZE_TRAIN", "MODEL.PIXEL_STD"])
def test_texts_where_numbers_are_needed(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: \['a'\]: at least 1.* is needed"):
        read_config("", [name, ("a",)])


EPOCHS = {"EPOCHS": 13, "STEP_EPOCHS": [8, 11], "LR_PER_IMAGE": 0.00125}


@pytest.mark.parametrize(
    ("child", "opts", "epochs", "rate"),
    [
        ({}, [], 13, 0.00125),
        ({"MAX_ITER": 90000}, [], 0, 0.00125),
        ({"MAX_ITER": 90000}, ["SOLVER.STEPS", (8,)], 0, 0.00125),
        ({"BASE_LR": 0.02}, [], 13, 0.0),
        ({"MAX_ITER": 90000, "EPOCHS": 26}, [], 26, 0.00125),
        ({"MAX_ITER": 90000}, ["SOLVER.EPOCHS", 3], 3, 0.00125),
        ({"EPOCHS": 26}, ["SOLVER.MAX_ITER", 9], 0, 0.00125),
        ({"BASE_LR": 0.02}, ["SOLVER.LR_PER_IMAGE", 0.001], 13, 0.001),
        ({"LR_PER_IMAGE": 0.002}, ["SOLVER.BASE_LR", 0.1], 13, 0.0),
    ],
)
@pytest.mark.parametrize("between", [False, True], ids=["child", "grandchild"])
def test_the_schedule_given_last_counts(
    tmp_path: Path, child: dict[str, Any], opts: list[Any], epochs: int, rate: float, between: bool
) -> None:
    """A child's iterations over a base's epochs, and the reverse; through a config in between, too."""
    written(tmp_path / "base.yaml", f"SOLVER: {EPOCHS}\n")
    base = "base.yaml"
    if between:
        (tmp_path / "sub").mkdir()
        written(tmp_path / "sub" / "middle.yaml", "_BASE_: ../base.yaml\nSEED: 3\n")
        base = "sub/middle.yaml"
    file = written(tmp_path / "child.yaml", f"_BASE_: {base}\nSOLVER: {child}\n")
    solver = read_config(file, opts).SOLVER
    assert (solver.EPOCHS, solver.LR_PER_IMAGE) == (epochs, rate)
    assert bool(solver.STEP_EPOCHS) == bool(epochs)


def test_steps_alone_over_a_base_in_epochs(tmp_path: Path) -> None:
    """detectron2's default number of iterations would take the place of the epochs."""
    written(tmp_path / "base.yaml", f"SOLVER: {EPOCHS}\n")
    file = written(tmp_path / "child.yaml", "_BASE_: base.yaml\nSOLVER: {STEPS: [5]}\n")
    with pytest.raises(InputError, match=r"^SOLVER.STEPS: \(5,\): the schedule is 13 epochs"):
        read_config(file)
    assert read_config(file, ["SOLVER.MAX_ITER", 9]).SOLVER.EPOCHS == 0


def test_several_bases(tmp_path: Path) -> None:
    """As fvcore takes them: the later of two bases counts."""
    written(tmp_path / "epochs.yaml", f"SOLVER: {EPOCHS}\n")
    written(tmp_path / "iterations.yaml", "SOLVER: {MAX_ITER: 5, STEPS: [3]}\n")
    for names, epochs in (("epochs.yaml, iterations.yaml", 0), ("iterations.yaml, epochs.yaml", 13)):
        file = written(tmp_path / "child.yaml", f"_BASE_: [{names}]\n")
        assert read_config(file).SOLVER.EPOCHS == epochs


def test_looking_for_keys_runs_nothing(tmp_path: Path) -> None:
    """detectron2 runs such tags when it merges a config, with a warning; once is enough."""
    text = f"SOLVER: {{BASE_LR: !!python/object/apply:os.mkdir ['{tmp_path}/made']}}\n"
    file = written(tmp_path / "tag.yaml", text)
    assert list(config._keys_by_layer(file)) == [{"SOLVER.BASE_LR"}]
    assert not (tmp_path / "made").exists()


def test_a_base_of_epochs_over_a_grandparent_of_iterations(tmp_path: Path) -> None:
    written(tmp_path / "grand.yaml", "SOLVER: {MAX_ITER: 5, STEPS: [3]}\n")
    written(tmp_path / "base.yaml", f"_BASE_: grand.yaml\nSOLVER: {EPOCHS}\n")
    file = written(tmp_path / "child.yaml", "_BASE_: base.yaml\nSEED: 1\n")
    assert read_config(file).SOLVER.EPOCHS == 13
