"""Pickles of arrays, read without running anything that they name.

A pickle may call whatever it names, and even numpy's own ndarray can be called so that it reads foreign
memory. Here every name that an array needs stands for a function of this file; no other is admitted.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import torch


class _DType:
    """In place of numpy.dtype: plain numbers."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(f"an array of {code!r}: allowed are numbers")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":  # (version, byte order, ...)
            self.numpy = self.numpy.newbyteorder(">")


class _Array:
    """In place of numpy.ndarray, which a pickle makes empty and then fills."""

    tensor = torch.empty(0)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, is_fortran, raw = state
        self.fill(raw, dtype, shape, "F" if is_fortran else "C")

    def fill(self, raw: Any, dtype: _DType, shape: tuple[int, ...], order: Any) -> _Array:
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)  # str: of Python 2
        array = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
        self.tensor = torch.from_numpy(array.astype(dtype.numpy.newbyteorder("="), order="C"))
        return self


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(buffer: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    return _Array().fill(buffer, dtype, shape, order)


def _scalar(dtype: _DType, raw: Any) -> _Array:
    return _Array().fill(raw, dtype, (), "C")


def _latin1(text: str, encoding: str) -> bytes:
    """In place of _codecs.encode, by which Python 3 writes bytes for Python 2."""
    return text.encode("latin1")


_ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}: allowed are arrays")
        return _ADMITTED[module, name]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.tensor if isinstance(value, _Array) else value


def load_arrays(path: str) -> Any:
    """What a pickle holds, by Python 2 or 3, with tensors (CPU) for its arrays.

    Raises:
        pickle.UnpicklingError: it names anything but arrays of numbers.
        Exception: any other, for a file that is broken (Python's documentation of pickle).
    """
    with open(path, "rb") as file:
        return _plain(_Unpickler(file, encoding="latin1").load())
