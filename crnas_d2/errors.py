"""The one exception for bad input: a single line that names the key or file, the value, and what is
allowed. The command-line scripts print it and leave with status 2, before anything is written.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something that the user gave cannot be used."""
