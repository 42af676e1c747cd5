"""Errors that are a single line for the user, which the command-line scripts print.

Of bad input it names the key or file, the value, and what is allowed, before anything is written; the
scripts leave with status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something that the user gave cannot be used."""


class MemoryIsFull(RuntimeError):
    """The GPU's memory is too small; the line names the keys to lower. Status 1."""


class Diverged(FloatingPointError):
    """The loss of a training is not finite, which all of its processes have seen alike."""


def run_tool(main: Callable[[], None]) -> None:
    """What a tool does; an InputError, or a file that fails, is its one line, with status 2."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
