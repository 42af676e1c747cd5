"""The one way a file is written: to a temporary file, through to disk, then renamed. And log.txt.

So a reader sees the old file or the whole new one, whatever kills the process or fills the disk.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import IO, Any

from crnas_d2.errors import InputError

PATIENCE = 20  # seconds in which a killed run is gone
HELD: list[IO[str]] = []  # open as long as a run of this process
EARLY = MemoryHandler(1000)  # what is logged before log.txt is open, and lost if it never is


def hold(folder: str) -> None:
    """Keep OUTPUT_DIR for this process. Raises InputError: another one has it; on Windows, never.

    Its death, however it comes, sets the folder free; what was killed may take some seconds to go.
    Unlike flock's, this lock is not handed on to the workers of a DataLoader.
    """
    with contextlib.suppress(ImportError):
        import fcntl

        Path(folder).mkdir(parents=True, exist_ok=True)
        HELD[:] = [Path(folder, ".lock").open("a", encoding="utf-8")]
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(HELD[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return  # a file system without locks
                if time.monotonic() > end:
                    why = "another run writes in it; wait for its end, or name another folder"
                    raise InputError(f"OUTPUT_DIR: {folder}: {why}") from error
            time.sleep(0.1)


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file by what ``write`` puts into the open file that it is given; create its folder.

    Raises OSError: naming ``path``; the previous file stays, and the temporary one is removed.
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


def write_bytes(path: str | Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write at least one row; the columns are all their keys, in order of appearance."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_to_log(level: int, line: str, error: Exception | None = None) -> None:
    """Append to OUTPUT_DIR/log.txt alone, with the error's traceback; nothing if it is not open yet."""
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("crnas_d2", level, __file__, 0, line, (), exc_info)
    for handler in logging.getLogger("crnas_d2").handlers:
        path = str(getattr(getattr(handler, "stream", None), "name", ""))
        if os.path.basename(path).startswith("log.txt"):
            # Opened anew: what a full disk refuses would stay in the handler's buffer and fail again.
            with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
                file.write(handler.format(record) + "\n")
