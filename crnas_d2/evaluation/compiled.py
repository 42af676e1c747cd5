"""torch.compile for the blocks that paths are made of; an option of scoring, SEARCH.COMPILE.

Blocks are compiled one by one: those of equal shape share a compilation in whatever branch they are,
so that a supernet of forty branches takes as many as it has different blocks. The sizes of images are
symbols; those that were equal when a block was compiled (height and width, say) share one, and the
block is compiled once more when they differ. Scores may differ in their last bits from those of the
blocks as written, and between processes that met the images in another order.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager

import torch
import torch._dynamo
from torch import nn

from detectron2.layers import CNNBlockBase

# Compilations of one function that torch keeps, 8 by default, before it gives up: MobileNetV2 has 17
# different blocks, each with three rates, for one image and for several.
COMPILATIONS = 256
TRIAL = """
import sys, torch
try:
    torch.compile(torch.sin)(torch.ones(2, device=sys.argv[1]))
except Exception as error:
    inner = getattr(error, "inner_exception", error)
    sys.exit((str(inner).strip() or repr(inner)).splitlines()[0])
"""


def check_compiler(device: str) -> None:
    """Try it, in a process of its own: a GPU that others will work on is not to be touched by this one.

    Raises:
        RuntimeError: torch.compile does not work here, in one line.
    """
    if not hasattr(torch.compiler, "set_stance"):
        raise RuntimeError(f"torch {torch.__version__}: 2.6 or later is needed")
    done = subprocess.run([sys.executable, "-c", TRIAL, device], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"torch.compile: {said[-1]}")


def compile_blocks(network: nn.Module) -> None:
    """From now on, every block of the network compiles itself when it sees images of a new kind."""
    torch._dynamo.config.cache_size_limit = max(COMPILATIONS, torch._dynamo.config.cache_size_limit)
    for module in network.modules():
        if isinstance(module, CNNBlockBase):
            module.compile(dynamic=True)


def uncompiled() -> AbstractContextManager[None]:
    """Inside, blocks run as they are written: layers may have been given another forward."""
    return torch.compiler.set_stance("force_eager")
