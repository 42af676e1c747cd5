"""Reads pickles of arrays without running anything that they name.

numpy's own constructors are not safe: a pickle can call them so that its bytes become pointers. What is
below stands in for them, and no other name is admitted.
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


def _tensor(raw: Any, dtype: _DType, shape: tuple[int, ...] = (), order: Any = "C") -> torch.Tensor:
    data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)  # str: from Python 2
    array = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
    return torch.from_numpy(array.astype(dtype.numpy.newbyteorder("="), order="C"))


class _Array:
    """Stands in for numpy.ndarray, which a pickle creates empty and then fills."""

    def __init__(self, *_: object) -> None:
        self.tensor = torch.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, is_fortran, raw = state
        self.tensor = _tensor(raw, dtype, shape, "F" if is_fortran else "C")


_ADMITTED: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": lambda dtype, raw: _tensor(raw, dtype),
    "numpy.core.numeric._frombuffer": _tensor,
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # bytes for Python 2
    "collections.OrderedDict": OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # since numpy 2
        if known not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}: allowed are arrays")
        return _ADMITTED[known]


def load_arrays(path: str) -> Any:
    """A pickle's content, with CPU tensors for arrays; an UnpicklingError for anything but numbers."""

    def with_tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_tensors(inner) for key, inner in value.items()}
        return value.tensor if isinstance(value, _Array) else value

    with open(path, "rb") as file:
        return with_tensors(_Unpickler(file, encoding="latin1").load())
