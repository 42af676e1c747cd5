"""The one way a file is written: to a temporary file, through to disk, then renamed.

So a reader sees the old file or the whole new one, whatever kills the process or fills the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Union

PathLike = Union[str, Path]


def write_atomically(path: PathLike, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file by what ``write`` puts into it; its folder is created.

    Args:
        path: of the file.
        write: called with the temporary file, open for bytes.

    Raises:
        OSError: naming ``path``; the file from before stays, and no temporary file does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch.save turns a failed write into a RuntimeError of its own.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        if temporary.is_file():
            temporary.unlink()  # the disk may be full of it
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def write_bytes(path: PathLike, content: bytes) -> None:
    """``write_atomically`` of bytes."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: PathLike, text: str) -> None:
    """``write_atomically`` of text in UTF-8."""
    write_bytes(path, text.encode())
