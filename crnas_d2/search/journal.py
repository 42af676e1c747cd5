"""Scored candidates: their order, and the journal, by which a search resumes.

A candidate in it is never scored again. A last line that a kill has cut off is dropped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnas_d2.architecture import Architecture
from crnas_d2.errors import InputError


@dataclass(frozen=True)
class Candidate:
    """An architecture with its score (AP, 0..100, unrounded) and costs."""

    architecture: Architecture
    score: float
    costs: Mapping[str, float]


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best first. Ties go to fewer multiply-accumulates, then to the text form: one answer."""
    return sorted(candidates, key=lambda c: (-c.score, c.costs["macs"], str(c.architecture)))


def open_digits(record: Mapping[str, Any]) -> int:
    """How many digits of a record's dilation code are not chosen yet."""
    return str(record["architecture"]).rpartition("/")[2].count("_")


class Journal:
    """Scores by (phase, architecture in text form); ``records``, the JSON lines of a file.

    Only a process with ``writes`` writes, and tells its ``listener``, if any, of each new record.
    Raises InputError: a line is not a scored candidate.
    """

    listener: Callable[[dict[str, Any]], None] | None = None

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self._path, self._writes = Path(path), False  # lines that are read are not written again
        self.records: list[dict[str, Any]] = []
        self._scores: dict[tuple[str, str], float] = {}
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data.rfind(b"\n") + 1  # a line is whole when its newline is on disk
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                self.add(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{self._path}:{number}: not a scored candidate ({error!r}); fix or remove the line"
                ) from error
        self._writes = writes
        if writes and whole < len(data):
            os.truncate(self._path, whole)

    def score(self, phase: str, architecture: Architecture | str) -> float | None:
        """The recorded score, or None if this candidate was not scored yet."""
        return self._scores.get((phase, str(architecture)))

    def add(self, phase: str, architecture: Architecture | str, score: float, **more: Any) -> None:
        """Write a line, whole or not at all; ValueError: a second score, or one that is not finite."""
        key = (phase, str(architecture))
        if key in self._scores:
            raise ValueError(f"{key} is there a second time")
        if not math.isfinite(score):
            raise ValueError(f"{key}: score {score} is not finite")
        record = {"phase": phase, "architecture": str(architecture), "score": score, **more}
        if self._writes:
            self._append(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._scores[key] = float(score)
        self.records.append(record)
        if self._writes and self.listener:
            self.listener(record)

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while line:  # a full disk takes a part first
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(before)
                raise OSError(error.errno, error.strerror, str(self._path)) from error
