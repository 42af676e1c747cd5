"""Which BatchNorm a backbone has: SyncBN whenever more than one process trains, BN otherwise.

The paper trains everything with SyncBN (Sec. 4.1, A.1). torch's SyncBatchNorm refuses CPU tensors;
there detectron2's NaiveSyncBatchNorm serves, with the unbiased running variance that torch keeps.
"""

from __future__ import annotations

import logging

import torch

from crnas_d2.errors import InputError
from crnas_d2.modeling.backbone.family import Norm
from detectron2.layers import NaiveSyncBatchNorm, get_norm
from detectron2.utils import comm


class UnbiasedSyncBatchNorm(NaiveSyncBatchNorm):
    """detectron2's NaiveSyncBatchNorm; the running variance is the unbiased one, as in torch.

    Statistics are those of the joined batch when all processes have images of one size.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        kept = self.running_var * (1 - self.momentum)
        output = super().forward(input)
        count = input.numel() // input.shape[1] * comm.get_world_size()
        self.running_var.copy_(kept + (self.running_var - kept) * (count / (count - 1)))
        self.num_batches_tracked.add_(1)
        return output


def resolve_norm(name: str, device: str) -> Norm:
    """What detectron2's ``get_norm`` takes, for the value of ``MODEL.CRNAS.NORM``.

    Args:
        name: ``auto``, or any name that ``get_norm`` knows.
        device: the model's device, ``cuda``, ``cuda:1``, ``cpu`` ...

    Raises:
        InputError: an unknown name.
    """
    if name != "auto":
        try:
            get_norm(name, 32)
        except KeyError:
            raise InputError(
                f"MODEL.CRNAS.NORM: {name!r}: allowed are auto and what detectron2's get_norm takes: "
                "BN, SyncBN, FrozenBN, GN"
            ) from None
        return name
    norm: Norm = "BN"
    if comm.get_world_size() > 1:
        norm = "SyncBN" if torch.device(device).type == "cuda" else UnbiasedSyncBatchNorm
    logging.getLogger(__name__).info(
        "backbone norm: %s (%d processes on %s)",
        norm if isinstance(norm, str) else norm.__name__,
        comm.get_world_size(),
        device,
    )
    return norm
