"""Scored candidates: their order, and the journal, one JSON object each, written through to disk.

The journal is both memo and resume: a candidate in it is never scored again. A torn last line, as a
kill in mid-write leaves it, is dropped; any other damage is an error that names file and line.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
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


class Journal:
    """Scores by (phase, architecture in text form), in a file of JSON lines, ``records``.

    The first ``add`` creates the file and its folder; InputError if a line is not a scored candidate.
    ``writes``: whether this process is the one that writes. The others read and remember.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self._path, self._writes = Path(path), writes
        self.records: list[dict[str, Any]] = []
        self._scores: dict[tuple[str, str], float] = {}
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data.rfind(b"\n") + 1  # a line is whole when its newline is on disk
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                self._check(record)
                self._remember(record)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self._path}:{number}: not a scored candidate ({error!r}); fix or remove the line"
                ) from error
        if writes and whole < len(data):
            with self._path.open("r+b") as file:
                file.truncate(whole)

    def _check(self, record: dict[str, Any]) -> None:
        key = (record["phase"], record["architecture"])
        if key in self._scores:
            raise ValueError(f"{key} is there a second time")
        if not math.isfinite(record["score"]):
            raise ValueError(f"{key}: score {record['score']} is not finite")

    def _remember(self, record: dict[str, Any]) -> None:
        self._scores[record["phase"], record["architecture"]] = float(record["score"])
        self.records.append(record)

    def score(self, phase: str, architecture: Architecture | str) -> float | None:
        """The recorded score, or None if this candidate was not scored yet."""
        return self._scores.get((phase, str(architecture)))

    def add(self, record: dict[str, Any]) -> None:
        """Write a record of ``phase``, ``architecture``, ``score`` ... to disk, then remember it.

        Raises:
            ValueError: a score that is not finite, or a second one; nothing is written.
            OSError: naming the file; the lines before stay, and nothing of this one.
        """
        self._check(record)
        if self._writes:
            self._append(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._remember(record)

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                written = file.write(line)
                while written < len(line):  # a full disk takes a part first
                    written += file.write(line[written:])
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(before)
                raise OSError(error.errno, error.strerror, str(self._path)) from error
