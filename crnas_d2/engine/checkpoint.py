"""Checkpoints that a kill cannot damage: written beside and renamed."""

from __future__ import annotations

import os
from typing import Any

import torch

from detectron2.checkpoint import DetectionCheckpointer


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, whose files appear whole or not at all."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth with the model, all checkpointables and ``kwargs``, then point to it."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        path = os.path.join(self.save_dir, f"{name}.pth")
        with open(path + ".part", "wb") as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".part", path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the file that names the newest checkpoint."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(path + ".part", "w", encoding="utf-8") as file:
            file.write(last_filename_basename)
        os.replace(path + ".part", path)
