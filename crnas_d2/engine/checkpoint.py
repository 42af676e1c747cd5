"""Checkpoints: written atomically, read without running code in them; a damaged one is skipped."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crnas_d2.errors import InputError
from crnas_d2.files import write_atomically, write_bytes
from crnas_d2.modeling.checkpoint.weights import read_checkpoint, read_file
from detectron2.checkpoint import DetectionCheckpointer

KEPT = 3  # undamaged periodic checkpoints; with two, there is one to fall back on


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, whose files are whole or not there, and hold ``input_convention``."""

    def __init__(
        self, model: nn.Module, save_dir: str, input_convention: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self._input_convention = input_convention

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth, name it in last_checkpoint, and delete old periodic checkpoints.

        Raises FloatingPointError: a weight is not finite, so training could not resume from it.
        Raises OSError: naming the file; the earlier ones stay as they are.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        model = self.model.state_dict()
        for key, tensor in model.items():
            if not torch.isfinite(tensor).all():
                raise FloatingPointError(f"{key} is not finite, so {name}.pth was not written")
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        data = {"model": model, "input_convention": self._input_convention, **states, **kwargs}
        path = Path(self.save_dir) / f"{name}.pth"
        write_atomically(path, lambda file: torch.save(data, file))
        write_bytes(path.with_name("last_checkpoint"), path.name.encode())
        kept = 0
        for other in _periodic(self.save_dir):
            if kept >= KEPT and other != path:
                other.unlink()
            elif not _damage(other):
                kept += 1

    def get_checkpoint_file(self) -> str:
        """As last_whole, which gives the path; damaged ones are logged."""
        path, damaged = last_whole(self.save_dir)
        for line in damaged:
            self.logger.warning("%s; resuming from %s", line, path)
        return path

    def _load_file(self, filename: str) -> dict[str, Any]:
        """As detectron2's, of .pth and .pkl files, but no code in them is run; else an InputError."""
        if not filename.endswith(".pkl"):
            loaded = read_checkpoint(filename, "MODEL.WEIGHTS")
            return loaded if "model" in loaded else {"model": loaded}
        content = read_file(filename, "MODEL.WEIGHTS")  # of detectron2's model zoo, or of Caffe2
        if "model" not in content:
            content = {"model": content.get("blobs", content), "__author__": "Caffe2"}
        return {"matching_heuristics": True, **content}


def _periodic(folder: str) -> list[Path]:
    """Those that have an iteration in their name, the highest first."""
    found = Path(folder).glob("model_[0-9]*.pth")
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


def last_whole(folder: str) -> tuple[str, list[str]]:
    """The checkpoint to resume from: what last_checkpoint names or, if that is damaged, the undamaged
    model_*.pth of the highest iteration; and a line on each damaged one before it in that order.

    Raises InputError: all are damaged.
    """
    tag = Path(folder) / "last_checkpoint"
    named = tag.parent / Path(tag.read_text("utf-8", errors="replace").strip("\0\n ") or tag.name).name
    damaged: list[str] = []
    for path in dict.fromkeys([named, *_periodic(folder)]):
        damage = _damage(path)
        if not damage:
            return str(path), damaged
        damaged.append(f"{path} is damaged ({damage})")
    raise InputError(f"--resume: {'; '.join(damaged)}; start anew in another OUTPUT_DIR")


def _damage(path: Path) -> str:
    """What is wrong with a file that torch.save wrote; empty: its checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
        return f"{part} has changed" if part else ""
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # a broken archive may raise any
        return f"{path.stat().st_size} bytes, {error}" if path.is_file() else str(error)
