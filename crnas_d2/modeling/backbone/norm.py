"""Which BatchNorm a backbone has: SyncBN whenever more than one process trains, BN otherwise.

The paper trains everything with SyncBN (Sec. 4.1, A.1); torch's refuses CPU tensors.
"""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist

from crnas_d2.modeling.backbone.family import Norm
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n


class UnbiasedSyncBatchNorm(NaiveSyncBatchNorm):
    """NaiveSyncBatchNorm with torch's unbiased running variance; images of all ranks weigh alike."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        kept = self.running_var * (1 - self.momentum)
        output = super().forward(input)
        # Of all ranks: where their images differ in size, so would their running variances.
        count = torch.tensor(input.numel() / input.shape[1], dtype=torch.float64)
        dist.all_reduce(count)
        factor = float(count / (count - 1))
        self.running_var.copy_(kept + (self.running_var - kept) * factor)
        self.num_batches_tracked.add_(1)
        return output


def resolve_norm(name: str, device: str) -> Norm:
    """What ``get_norm`` takes for MODEL.CRNAS.NORM or MODEL.FPN.NORM; "auto" is resolved."""
    if name != "auto":
        return name
    world = comm.get_world_size()
    norm: Norm = "BN"
    if world > 1:
        norm = "SyncBN" if torch.device(device).type == "cuda" else UnbiasedSyncBatchNorm
    shown = getattr(norm, "__name__", norm)
    text = f"backbone norm: {shown} ({world} processes on {device})"
    log_first_n(logging.INFO, text, name=__name__, key="message")  # a search builds many networks
    return norm
