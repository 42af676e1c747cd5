"""search_net.py, with every forward pass of a supernet in eval mode written to a file as its path.

COUNT_FILE=passes.txt python counted_search.py --config-file ... [--resume] KEY VALUE ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import search_net
from crnas_d2.launch import run
from crnas_d2.modeling.backbone.supernet import Supernet

forward = Supernet.forward


def counted(self: Supernet, x: Any) -> Any:
    if not self.training:
        with open(os.environ["COUNT_FILE"], "a", encoding="utf-8") as file:
            file.write(f"{self.path}\n")
    return forward(self, x)


if __name__ == "__main__":
    Supernet.forward = counted
    run(search_net.prepare, search_net.work, search_net.options())
