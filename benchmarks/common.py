"""What the benchmarks share: generated pictures to train on, and how a result is shown and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crnas_d2.data.shapes import make_shapes


def generated_data(folder: str, size: tuple[int, int]) -> list[str]:
    """Sixteen pictures of height and width ``size``; the KEY VALUE pairs that train on them there."""
    make_shapes(Path(folder) / "data", 16, 2, size=size)
    return [
        *("DATASETS.TRAIN_JSON", f"{folder}/data/train.json"),
        *("DATASETS.TRAIN_IMAGES", f"{folder}/data/images"),
        *("OUTPUT_DIR", folder),
    ]


def show(result: dict[str, Any], path: str | None) -> None:
    """Print a result, a line a value, and write it to ``path``, if there is one, as JSON."""
    for key, value in result.items():
        print(f"{key}: {round(value, 5) if isinstance(value, float) else value}")
    if path:
        Path(path).write_text(json.dumps(result), encoding="utf-8")
