"""Pickles that hold data and nothing else: numbers, text, containers, numpy arrays and torch tensors.

A pickle is a program that can call anything, so opening one with `pickle.load` runs whatever its writer wanted. The
reader here knows a fixed set of names, each of which builds data out of checked arguments, and refuses every other one.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Refused(ValueError):
    """A pickle asked for something that is not data."""


def load(path: Path) -> Any:
    """What the pickle at ``path`` holds, also one written by Python 2; nothing in it is ever executed.

    Arrays of objects come out as arrays of objects, as they were saved.

    Raises:
        ValueError: there is no such file, it is no pickle or a damaged one, or it asks for anything but data; the last
            is refused by name.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; check the path")
    try:
        with open(path, "rb") as file:
            return loads(file)
    except Refused as error:
        raise ValueError(f"{path}: refused, since it {error}") from error
    except Exception as error:  # over damaged bytes the unpickler raises a dozen types
        raise ValueError(
            f"{path}: cannot be read as a pickle ({type(error).__name__}: {error}); copy or record it again"
        ) from error


def loads(file: Any, find: Callable[[str, str], Any] | None = None) -> Any:
    """What the pickle in an open binary file holds; raises `Refused`, or whatever damaged bytes lead to.

    ``find`` says what else than data a module's name stands for; it raises `Refused` too.
    """
    return _Reader(file, find or _data).load()


def _data(module: str, name: str) -> Any:
    """What stands for a name that data are built with."""
    try:
        return _ADMITTED[module, name]
    except KeyError:
        raise Refused(
            f"asks for {module}.{name}: only numbers, text, containers, arrays and tensors are read, since "
            "anything else could run code; if you trust the file, open it yourself and save its arrays as .npz"
        ) from None


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any, find: Callable[[str, str], Any]) -> None:
        super().__init__(file, encoding="latin1")  # numpy's arrays of Python 2 need that encoding
        self.find = find

    def find_class(self, module: str, name: str) -> Any:
        return self.find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("refers to something outside itself; save the arrays themselves")


class _Dtype:
    """Stands for `numpy.dtype` in a pickle: a number's kind, size and byte order, or a Python object."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[<>=|]?([biuf][1248]|O8?)", code):
            raise Refused(f"holds an array of dtype {code!r}; save arrays of numbers")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands for `numpy.ndarray`: it takes its contents from a pickle only once they are found to fit."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        super().__setstate__((1, *_checked(shape, dtype, fortran, content)))  # type: ignore[arg-type]


def _checked(
    shape: Sequence[int], dtype: _Dtype, fortran: bool, content: Any
) -> tuple[tuple[int, ...], np.dtype, bool, Any]:
    assert isinstance(dtype, _Dtype)
    shape, size = tuple(map(int, shape)), math.prod(shape)
    if dtype.numpy.hasobject:
        right = isinstance(content, list) and len(content) == size
    else:
        content = content.encode("latin1") if isinstance(content, str) else bytes(content)
        right = len(content) == size * dtype.numpy.itemsize
    if not right or min(shape, default=0) < 0:
        raise pickle.UnpicklingError(f"an array of shape {shape} does not fit its content")
    return shape, dtype.numpy, bool(fortran), content


def _uncalled(*_: Any) -> Any:
    """Stands for the class of arrays, which real files name for ``_reconstruct`` alone: called it would hold whatever
    lay in memory."""
    raise pickle.UnpicklingError("an array without contents")


def _empty_array(*_: Any) -> _Array:
    """`numpy`'s ``_reconstruct``: the contents follow."""
    return np.ndarray.__new__(_Array, (0,), "b")


def _array_of(buffer: Any, dtype: _Dtype, shape: Sequence[int], order: str) -> np.ndarray:
    """`numpy`'s ``_frombuffer``."""
    shape, numpy_dtype, _, content = _checked(shape, dtype, False, buffer)
    return np.frombuffer(content, numpy_dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, content: Any) -> Any:
    _, numpy_dtype, _, content = _checked((1,), dtype, False, content)
    return np.frombuffer(content, numpy_dtype)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """``_codecs.encode``: how Python 3 writes bytes in old protocols."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """``bytes()``: how Python 3 writes no bytes at all in old protocols."""
    return b""


def _storage(content: bytes) -> Tensor:
    """All numbers of a storage, which `torch`'s own restricted reader opens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that storages with a type are on their way out
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())


def _tensor(stored: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """`torch`'s ``_rebuild_tensor_v2``, within the bounds of what is stored."""
    numbers = [offset, *size, *stride]
    past = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if math.prod(size) else 0
    repeated = math.prod(size) > len(stored)  # as a stride of 0 does, so that few bytes become as many as they like
    if min(numbers) < 0 or past > len(stored) or repeated:
        raise pickle.UnpicklingError(f"a tensor of size {tuple(size)} does not fit its storage")
    return stored.as_strided(size, stride, offset)


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _uncalled,
    ("numpy", "dtype"): _Dtype,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}
for _module in ("numpy.core", "numpy._core"):  # numpy's name before and since version 2
    _ADMITTED |= {
        (f"{_module}.multiarray", "_reconstruct"): _empty_array,
        (f"{_module}.multiarray", "scalar"): _scalar,
        (f"{_module}.numeric", "_frombuffer"): _array_of,
    }
