"""Checkpoints: written beside and renamed, so that a kill cannot damage them; read without running what
they name. One that is damaged all the same is passed over for the one before it.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crnas_d2.errors import InputError
from crnas_d2.files import write_atomically, write_bytes
from crnas_d2.modeling.checkpoint.array_pickle import load_arrays
from crnas_d2.modeling.checkpoint.weights import read_checkpoint
from detectron2.checkpoint import DetectionCheckpointer


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, whose files appear whole or not at all.

    Args:
        input_convention: goes into every file (crnas_d2/modeling/checkpoint/weights.py).
    """

    def __init__(
        self, model: nn.Module, save_dir: str, input_convention: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self._input_convention = input_convention

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth with the model, all checkpointables and ``kwargs``, then point to it.

        Raises:
            FloatingPointError: a weight is not finite, so that nobody could go on from there.
            OSError: naming the file; the ones before it stay as they are.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {
            "model": self.model.state_dict(),
            "input_convention": self._input_convention,
            **kwargs,
        }
        for key, tensor in data["model"].items():
            if not torch.isfinite(tensor).all():
                raise FloatingPointError(f"{key} is not finite, so {name}.pth was not written")
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        write_atomically(
            os.path.join(self.save_dir, f"{name}.pth"), lambda file: torch.save(data, file)
        )
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the file that names the newest checkpoint."""
        write_bytes(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename.encode())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to go on from; the log says which newer ones are damaged.

        Raises:
            InputError: none can be read.
        """
        path, damaged = last_whole(self.save_dir)
        for line in damaged:
            self.logger.warning("%s; going on from %s", line, path)
        return path

    def _load_file(self, filename: str) -> dict[str, Any]:
        """As detectron2's, of .pth and .pkl files, but nothing in them is run.

        Raises:
            InputError: not a checkpoint.
        """
        if not filename.endswith(".pkl"):
            loaded = read_checkpoint(filename, "MODEL.WEIGHTS")
            return loaded if "model" in loaded else {"model": loaded}
        try:  # of detectron2's model zoo, or of Caffe2
            content = load_arrays(filename)
            if "model" not in content:
                content = {"model": content.get("blobs", content), "__author__": "Caffe2"}
        except Exception as error:  # a broken pickle may raise any
            raise InputError(f"MODEL.WEIGHTS: {filename}: not a checkpoint ({error})") from error
        return {"matching_heuristics": True, **content}


def last_whole(folder: str) -> tuple[str, list[str]]:
    """The checkpoint to go on from: what last_checkpoint names or, if that is damaged, the model_*.pth
    of the highest iteration that is not.

    Returns:
        its path, and for each file before it in that order a line that says what is wrong with it.

    Raises:
        InputError: all are damaged.
    """
    tag = Path(folder) / "last_checkpoint"
    named = tag.parent / Path(tag.read_text("utf-8", errors="replace").strip("\0\n ") or tag.name).name
    numbers = {path: re.fullmatch(r"model_(\d+)\.pth", path.name) for path in tag.parent.iterdir()}
    others = [(int(number[1]), path) for path, number in numbers.items() if number and path != named]
    damaged: list[str] = []
    for path in [named, *(path for _, path in sorted(others, reverse=True))]:
        damage = _damage(path)
        if not damage:
            return str(path), damaged
        damaged.append(f"{path} is damaged ({damage})")
    raise InputError(
        f"--resume: {'; '.join(damaged)}; no other checkpoint is there, so start anew in another folder"
    )


def _damage(path: Path) -> str:
    """What is wrong with a file that torch.save wrote; empty: its sums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # a broken archive may raise any
        return f"{path.stat().st_size} bytes, {error}" if path.is_file() else str(error)
    return f"{part} has changed" if part else ""
