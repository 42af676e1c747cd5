"""Bars that say how far a part of a run is and, where its course is known, when all of it will end.

On a terminal a bar moves; elsewhere it is a line every ten seconds. Rank 0 alone shows them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from tqdm import tqdm

from detectron2.utils import comm


@dataclass
class Part:
    """A part of a run; units are steps or candidates."""

    units: float  # in all, at most
    done: float  # before this run, or by it
    cost: float  # of a unit, in what all parts of a run have in common, such as arithmetic


class Course:
    """The parts of a run in their order; what is left of them, at the speed so far."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts, self.name = dict(parts), ""  # of the present part
        self._spent = self._seconds = 0.0  # by bars that are closed, in this run

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        before, self.name = self.name, name
        try:
            yield
        finally:
            self.name = before

    def add(self, units: float, seconds: float) -> None:
        """So much of the present part has been done, in this time."""
        if part := self._parts.get(self.name):
            part.done += units
            self._spent += units * part.cost
            self._seconds += seconds

    def left(self, units: float, seconds: float) -> tuple[float, float] | None:
        """Seconds until the end of the present part, and of the run, if its bar has come this far.

        None while nothing is known.
        """
        if self.name not in self._parts:
            return None
        names = list(self._parts)
        present = self._parts[self.name]
        costs = [present.cost * max(0.0, present.units - present.done - units)]
        for name in names[names.index(self.name) + 1 :]:
            part = self._parts[name]
            costs.append(part.cost * max(0.0, part.units - part.done))
        spent = self._spent + units * present.cost
        if not spent:
            return None
        speed = (self._seconds + seconds) / spent
        return speed * costs[0], speed * sum(costs)


_course = Course({})  # of the run of this process


def begin(parts: Mapping[str, Part]) -> None:
    """The run of this process has these parts."""
    global _course
    _course = Course(parts)


def at(name: str) -> AbstractContextManager[None]:
    """Bars in this context are of this part of the run; those before it are over."""
    return _course.at(name)


class Bar(tqdm):
    """tqdm's, followed by a ``note``, such as the best so far, and by what is left of the whole run."""

    note: Callable[[], str] = staticmethod(str)
    _is_open = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_open = not self.disable

    def _share(self) -> tuple[float, float]:
        return self.n - self.initial, time.time() - self.start_t

    @property
    def format_dict(self) -> dict[str, Any]:
        left = _course.left(*self._share()) if self._is_open else None
        rest = ""
        if left is not None:
            own, whole = map(tqdm.format_interval, left)
            rest = f"; {_course.name} done in {own}, all done in {whole}"
        return {**super().format_dict, "rest": self.note() + rest}

    def close(self) -> None:
        super().close()  # shows it once more
        if self._is_open:
            _course.add(*self._share())
            self._is_open = False


class _Lines:
    """A file in which each state of a bar is a line of its own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if line := text.strip():
            self._file.write(line + "\n")

    def flush(self) -> None:
        self._file.flush()


def progress_bar(*args: Any, **kwargs: Any) -> Bar:
    """A tqdm bar, on rank 0 only; a line every ten seconds where standard error is no terminal."""
    disable, file = not comm.is_main_process(), kwargs.pop("file", sys.stderr)
    options: dict[str, Any] = {"mininterval": 0.2, "dynamic_ncols": True, "file": file}
    if not file.isatty():
        options |= {"mininterval": 10, "file": _Lines(file)}
    options |= {"bar_format": "{l_bar}{bar}{r_bar}{rest}", **kwargs}
    return Bar(*args, disable=disable, **options)
