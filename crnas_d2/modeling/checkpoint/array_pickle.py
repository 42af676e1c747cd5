"""Reads pickles of arrays without running anything that they name.

numpy's own constructors are not safe: a pickle can call them so that its bytes become pointers. Classes
of this file stand in for them, and no other name is admitted.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import torch


class _DType:
    """Stands in for numpy.dtype; admits numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(f"an array of {code!r}: allowed are numbers")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])  # (version, byte order, ...)


class _Array:
    """Stands in for numpy.ndarray, which a pickle creates empty and then fills."""

    tensor = torch.empty(0)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, is_fortran, raw = state
        self.fill(raw, dtype, shape, "F" if is_fortran else "C")

    def fill(self, raw: Any, dtype: _DType, shape: tuple[int, ...] = (), order: Any = "C") -> _Array:
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)  # str: from Python 2
        array = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
        self.tensor = torch.from_numpy(array.astype(dtype.numpy.newbyteorder("="), order="C"))
        return self


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # bytes for Python 2
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2 and since
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_core}.multiarray", "scalar"] = lambda dtype, raw: _Array().fill(raw, dtype)
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = lambda *arguments: _Array().fill(*arguments)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}: allowed are arrays")
        return _ADMITTED[module, name]


def _with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tensors(inner) for key, inner in value.items()}
    return value.tensor if isinstance(value, _Array) else value


def load_arrays(path: str) -> Any:
    """A pickle's content, with CPU tensors for arrays; an UnpicklingError for anything but numbers."""
    with open(path, "rb") as file:
        return _with_tensors(_Unpickler(file, encoding="latin1").load())
