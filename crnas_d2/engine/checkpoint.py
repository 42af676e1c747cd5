"""Checkpoints: written atomically, read without running code in them; a damaged one is skipped."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crnas_d2.errors import InputError
from crnas_d2.files import write_atomically, write_bytes
from crnas_d2.modeling.build import input_convention
from crnas_d2.modeling.checkpoint.weights import read_checkpoint, read_file
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode

KEPT = 3  # undamaged periodic checkpoints; with two, there is one to fall back on


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's, in OUTPUT_DIR; files are whole or not there, and hold the input convention."""

    def __init__(self, model: nn.Module, cfg: CfgNode, **checkpointables: Any) -> None:
        super().__init__(model, cfg.OUTPUT_DIR, **checkpointables)
        self._input_convention = input_convention(cfg)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth, name it in last_checkpoint, and delete old periodic checkpoints.

        Raises FloatingPointError: a weight is not finite, so training could not resume from it.
        Raises OSError: naming the file; the earlier ones stay as they are.
        """
        if not self.save_to_disk:
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
        return last_whole(self.save_dir)

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


def last_whole(folder: str) -> str:
    """The checkpoint to resume from: what last_checkpoint names or, if that is damaged, the undamaged
    model_*.pth of the highest iteration. Those passed over are logged; an InputError if there is none.
    """
    tag = Path(folder) / "last_checkpoint"
    name = Path(tag.read_text("utf-8", errors="replace").strip("\0\n ") or tag.name).name
    damaged: list[str] = []
    for path in dict.fromkeys([tag.with_name(name), *_periodic(folder)]):
        damage = _damage(path)
        if not damage:
            for line in damaged:
                logging.getLogger(__name__).warning("%s; resuming from %s", line, path)
            return str(path)
        damaged.append(f"{path} is damaged ({damage})")
    raise InputError(f"--resume: {'; '.join(damaged)}; start anew in another OUTPUT_DIR")


def _damage(path: Path) -> str:
    """What is wrong with a file that torch.save wrote; empty: its checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
            return f"{part} has changed" if part else ""
    except Exception as error:  # a broken archive may raise any
        return repr(error)
