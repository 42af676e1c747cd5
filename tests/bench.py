"""A bench for bad input: a script is called in this process up to where a run would start.

Bad input ends in one line that names the key, the value and what is allowed, with status 2, and no file
is touched. ``bench`` in conftest.py is the fixture.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectors import ROOT, TINY, command_line, tiny_shapes, tiny_yaml

from crnas_d2.config import read_config
from crnas_d2.launch import run
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_backbone

TRAIN, SEARCH = "train_net.py", "search_net.py"


class Started(BaseException):
    """The checks passed and the run began to write; holds its config."""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace(".py", "_script"), ROOT / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        check = getattr(module, "train_config", None) or module.prepare
        parser = getattr(module, "options", default_argument_parser)()
        self._capsys.readouterr()
        before = snapshot(self.folder)
        with pytest.raises(SystemExit) as left:
            run(check, module.work, parser)
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


def of(kind: str, options: list[Any]) -> list[Any]:
    """Options of MODEL.CRNAS."""
    keys = ["SUPERNET", kind, *options]
    return [f"MODEL.CRNAS.{item}" if i % 2 == 0 else item for i, item in enumerate(keys)]
