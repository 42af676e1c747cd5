"""Checkpoints: a damaged one is skipped, no code in them is run, and a good one is never lost."""

from __future__ import annotations

import errno
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import assert_same_weights, tiny_config

from crnas_d2.engine.checkpoint import last_whole
from crnas_d2.engine.setup import check_weights
from crnas_d2.engine.trainer import DetectionTrainer, SupernetTrainer
from crnas_d2.errors import InputError
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage


def trainer_in(folder: Path, *options: Any) -> DetectionTrainer:
    """Six iterations with checkpoints after the second, the fourth and the sixth; no evaluation."""
    options = ("MODEL.CRNAS.SUPERNET", "stage", *options)
    trainer = SupernetTrainer(tiny_config(folder / "data", folder / "out", *options))
    trainer.resume_or_load(resume=True)
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    trainer_in(folder).train()
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run's folder for one test."""
    for path in (trained / "out").iterdir():
        if path.suffix == ".pth" or path.name == "last_checkpoint":
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def flip(path: Path) -> None:
    """A few bytes in the middle: more than the space between two tensors."""
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 300):
        content[place] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 100),
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "flipped": flip,
    "overwritten": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "removed": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_serves(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, and the run ends as it would have."""
    out = folder / "out"
    expected = torch.load(out / "model_final.pth", weights_only=True)["model"]
    for name in ("model_final.pth", "model_0000005.pth"):
        DAMAGES[damage](out / name)
    with caplog.at_level(logging.WARNING):
        trainer = trainer_in(folder)
    assert trainer.start_iter == 4
    # Nothing says that there was a fifth one, once it is gone.
    for name in ("model_final.pth", "model_0000005.pth")[: 1 if damage == "removed" else 2]:
        line = next(record.getMessage() for record in caplog.records if name in record.getMessage())
        assert "is damaged (" in line and line.endswith(f"resuming from {out / 'model_0000003.pth'}")
    if damage == "a folder":
        (out / "model_0000005.pth").rmdir()
        (out / "model_final.pth").rmdir()
    trainer.train()
    assert_same_weights(trainer.model.state_dict(), expected)
    assert last_whole(str(out)) == str(out / "model_final.pth")


@pytest.mark.parametrize("damage", ["removed", "halved"])
def test_a_kill_between_the_last_two_checkpoints(damage: str, folder: Path) -> None:
    """model_final.pth is missing or damaged, and no iteration is left; resuming writes it."""
    final, tag = folder / "out" / "model_final.pth", folder / "out" / "last_checkpoint"
    expected = torch.load(final, weights_only=True)["model"]
    DAMAGES[damage](final)
    tag.write_text("model_0000005.pth")
    trainer_in(folder).train()
    found = torch.load(final, weights_only=True)
    assert found["iteration"] == 5 and tag.read_text() == "model_final.pth"
    assert_same_weights(found["model"], expected)


TAGS = ["", "\0\0\0", "model_0000003.pth\n", "gone.pth", "../gone.pth", "\xff"]


@pytest.mark.parametrize("tag", TAGS)
def test_a_damaged_tag(tag: str, folder: Path) -> None:
    (folder / "out" / "last_checkpoint").write_bytes(tag.encode("latin-1"))
    expected = "model_0000003.pth" if "3" in tag else "model_0000005.pth"
    assert last_whole(str(folder / "out")) == str(folder / "out" / expected)
    assert trainer_in(folder).start_iter == (4 if "3" in tag else 6)


@pytest.mark.parametrize("damage", ["emptied", "removed"])
def test_no_whole_checkpoint_is_one_line(damage: str, folder: Path) -> None:
    out = folder / "out"
    for path in out.glob("*.pth"):
        DAMAGES[damage](path)
    cfg = tiny_config(folder / "data", out, "MODEL.CRNAS.SUPERNET", "stage")
    for check in (lambda: check_weights(cfg, resume=True), lambda: trainer_in(folder)):
        with pytest.raises(InputError) as caught:
            check()
        assert str(caught.value).startswith(f"--resume: {out / 'model_final.pth'} is damaged (")
        assert "\n" not in str(caught.value)


def test_the_check_before_a_run_looks_at_the_checkpoint_that_will_be_used(folder: Path) -> None:
    """The newest one would do, but it is damaged, and the one before is of another network."""
    out = folder / "out"
    cfg = tiny_config(folder / "data", out, "MODEL.CRNAS.SUPERNET", "stage")
    for name in ("model_final.pth", "model_0000005.pth"):
        os.truncate(out / name, 1000)
    check_weights(cfg, resume=True)
    content = torch.load(out / "model_0000003.pth", weights_only=True)
    content["model"] = {k: v for k, v in content["model"].items() if "res4" not in k}
    torch.save(content, out / "model_0000003.pth")
    with pytest.raises(InputError, match=r"--resume: .*model_0000003\.pth: is of another network"):
        check_weights(cfg, resume=True)


# What is there, what of it is damaged, what is saved, and what is left of the periodic ones.
PRUNED = {
    "older than three": ([1, 3, 5], [], 7, [3, 5, 7]),
    "damaged ones do not count": ([1, 3, 5], [3], 7, [1, 3, 5, 7]),
    "the only other good one stays": ([1, 3, 5], [3, 5], 7, [1, 3, 5, 7]),
    "and goes when there are three": ([1, 3, 5, 6], [3], 7, [5, 6, 7]),
    "newer ones of before a step back": ([1, 3, 5, 6], [], 2, [2, 3, 5, 6]),
    "a few": ([1], [], 3, [1, 3]),
}


@pytest.mark.parametrize("case", PRUNED)
def test_old_checkpoints_are_deleted(case: str, folder: Path) -> None:
    """Earlier runs' count; an undamaged one is deleted only if there are three newer ones."""
    there, damaged, saved, left = PRUNED[case]
    out = folder / "out"
    content = (out / "model_0000001.pth").read_bytes()
    for path in out.glob("model_0*.pth"):
        path.unlink()
    trainer = trainer_in(folder)
    for iteration in there:
        (out / f"model_{iteration:07}.pth").write_bytes(content)
    for iteration in damaged:
        flip(out / f"model_{iteration:07}.pth")
    trainer.checkpointer.save(f"model_{saved:07}", iteration=saved)
    names = [f"model_{iteration:07}.pth" for iteration in left]
    assert sorted(path.name for path in out.glob("*.pth")) == sorted([*names, "model_final.pth"])
    assert last_whole(str(out)) == str(out / f"model_{saved:07}.pth")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._path), "w"))


# Of a backbone of ours, and of detectron2's own, whose weights are not looked at before.
NETWORKS = {
    "ours": ["MODEL.CRNAS.SUPERNET", "stage"],
    "detectron2's": [
        *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    ],
}


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_in_a_file_is_run(network: str, name: str, tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / name
    content = {"model": {"backbone.x": Trap(sprung)}, "__author__": "somebody"}
    if name.endswith(".pth"):
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    options = [*NETWORKS[network], "MODEL.WEIGHTS", str(path)]
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", *options)
    trainer = (SupernetTrainer if cfg.MODEL.CRNAS.SUPERNET else DetectionTrainer)(cfg)
    with pytest.raises(InputError) as caught:
        trainer.resume_or_load(resume=False)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not sprung.exists()
    # The trap does work.
    pickle.loads(path.read_bytes()) if name == "weights.pkl" else torch.load(path, weights_only=False)
    assert sprung.exists()


def test_a_pickle_of_the_model_zoo_is_loaded(tmp_path: Path) -> None:
    """By names, as detectron2 does it, into a backbone of detectron2's."""
    options = NETWORKS["detectron2's"]
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", *options)
    state = build_model(cfg).backbone.bottom_up.state_dict()
    path = tmp_path / "R-50.pkl"
    arrays = {key: value.numpy() for key, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    cfg.MODEL.WEIGHTS = str(path)
    trainer = DetectionTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert_same_weights(trainer.model.backbone.bottom_up.state_dict(), state)


# ---- a loss that is not finite -------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["", "stage"])
def test_a_loss_that_is_not_finite_ends_training(kind: str, value: float, tmp_path: Path) -> None:
    """The error names path and iteration, no step is made, and the last checkpoint stays."""
    cfg = tiny_config(tmp_path / "data", tmp_path / "out", "MODEL.CRNAS.SUPERNET", kind)
    trainer = (SupernetTrainer if kind else DetectionTrainer)(cfg)
    forward, losses = trainer.model.forward, 0

    def diverging(data: Any) -> Any:
        nonlocal losses
        losses += 1
        found = forward(data)
        return {key: loss * (value if losses == 4 else 1) for key, loss in found.items()}

    trainer.model.forward = diverging
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    where = f"iteration 3, {trainer.model.backbone.bottom_up.path}" if kind else "iteration 3"
    checkpoint = tmp_path / "out" / "model_0000001.pth"
    assert str(caught.value) == f"{where}: the loss is {value}; last checkpoint: {checkpoint}"
    assert last_whole(str(tmp_path / "out")) == str(checkpoint)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def after_step(trainer: DetectionTrainer, iteration: int, act: Callable[[], object]) -> None:
    """Let ``act`` be called when the step of that iteration is done."""
    step = type(trainer).run_step

    def stepped() -> None:
        step(trainer)
        if trainer.iter == iteration:
            act()

    trainer.run_step = stepped


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path: Path) -> None:
    """A gradient may overflow right before a checkpoint is due."""
    trainer = trainer_in(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 1)
    after_step(trainer, 2, lambda: next(trainer.model.parameters()).data.fill_(float("inf")))
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    first = next(name for name, _ in trainer.model.named_parameters())
    assert "iteration 2, resnet/" in str(caught.value)
    assert f"{first} is not finite, so model_0000002.pth was not written" in str(caught.value)
    assert last_whole(str(tmp_path / "out")) == str(tmp_path / "out" / "model_0000001.pth")


def test_nothing_is_evaluated_after_an_error(tmp_path: Path) -> None:
    """detectron2 would in the last iteration, with processes that are gone."""
    trainer = DetectionTrainer(tiny_config(tmp_path / "data", tmp_path / "out", "SOLVER.MAX_ITER", 2))
    trainer.test = lambda *_: pytest.fail("evaluated")

    def fail() -> None:
        raise LookupError

    after_step(trainer, 1, fail)
    with pytest.raises(LookupError):
        trainer.train()


# ---- a disk that fails ---------------------------------------------------------------------------


def test_a_disk_that_fills_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file, the checkpoints before it are whole, and no temporary file is left."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = folder / "out"
    trainer = trainer_in(folder)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
            patch.setattr(os, name, full)
            trainer.checkpointer.save("model_final", iteration=5)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(out / "model_final.pth")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_size_limit_inside_torch_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own closing of the file hides the first error behind a RuntimeError."""
    trainer = trainer_in(tmp_path)
    save = torch.save

    def limited(data: Any, file: Any) -> None:
        class Limited:
            def write(self, chunk: Any) -> int:
                if file.tell() > 1000:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                return file.write(chunk)

            def flush(self) -> None:
                file.flush()

        save(data, Limited())

    monkeypatch.setattr(torch, "save", limited)
    with pytest.raises(OSError) as caught:
        trainer.checkpointer.save("model_0000001", iteration=1)
    assert caught.value.errno == errno.EFBIG
    assert not list((tmp_path / "out").glob("model*"))


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    (tmp_path / "out" / "model_0000001.pth.part").mkdir()
    with pytest.raises(IsADirectoryError), EventStorage(0):
        trainer.checkpointer.save("model_0000001", iteration=1)
    assert not trainer.checkpointer.has_checkpoint()
