"""Read pickles of other people without running what they name.

A pickle is a program: it may name any importable function and call it. Published annotations need
only arrays in builtin containers, so everything else is refused by name. The few numpy names that
an array needs are not handed out either, because they are enough to do harm (`numpy.ndarray` called
with an object dtype turns bytes into pointers): small stand-ins take their place, collect what the
pickle says and build arrays of numbers from it.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|S\d+)")


class UnsafePickleError(ValueError):
    """A pickle names a global that an array file has no need of."""


class CorruptPickleError(ValueError):
    """A pickle is cut short or is no pickle at all."""


class _Dtype:
    """What a pickle says of a dtype."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise UnsafePickleError(
                f"a pickle may hold arrays of numbers only: it holds dtype {code!r}"
            )
        self.dtype: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, byte_order, *layout = state
        if any(part is not None for part in layout[:3]):
            raise UnsafePickleError("a pickle may hold arrays of numbers only: it holds records")
        if byte_order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """What a pickle says of an array."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, is_fortran, data = state[-4:]
        flat = np.frombuffer(_as_bytes(data), _plain(dtype), count=math.prod(shape))
        # A copy, because an array over bytes is read-only and keeps the whole pickle alive.
        self.array = flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _plain(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise TypeError(f"an array's dtype must be a dtype: got {type(dtype).__name__}")
    return dtype.dtype


def _as_bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))


# Callables without attributes: a pickle can also assign attributes to what it was given.
class _MakeArray:
    __slots__ = ()

    def __call__(self, *_: Any) -> _Array:
        return _Array()


class _MakeDtype:
    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> _Dtype:
        return _Dtype(code)


class _MakeScalar:
    __slots__ = ()

    def __call__(self, dtype: Any, data: Any) -> Any:
        return np.frombuffer(_as_bytes(data), _plain(dtype), count=1)[0]


class _MakeBytes:
    """`_codecs.encode(text, "latin1")` and `bytes()`: how protocols below 3 spell bytes."""

    __slots__ = ()

    def __call__(self, text: str = "", encoding: str = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise UnsafePickleError(f"a pickle may encode text as latin1 only: got {encoding!r}")
        return text.encode("latin1")


class _Marker:
    __slots__ = ()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Marker(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _MakeBytes(),
    ("builtins", "bytes"): _MakeBytes(),
    ("__builtin__", "bytes"): _MakeBytes(),
    **{
        (module, name): maker
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and NumPy 2
        for name, maker in (("_reconstruct", _MakeArray()), ("scalar", _MakeScalar()))
    },
    **{
        (module, container.__name__): container
        for module in ("builtins", "__builtin__")
        for container in (dict, list, tuple, set, frozenset)
    },
}


# The pure-Python unpickler: the C one allocates a table as long as the largest index that a file
# names, gigabytes for a few damaged bytes. Annotations have some dozens of instructions.
class _RestrictedUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnsafePickleError(
                "a pickle may name only numpy arrays and builtin containers: it names "
                f"{f'{module}.{name}'!r}"
            ) from None


def _finished(tree: Any, done: dict[int, Any]) -> Any:
    """Replace the stand-ins in a tree; `done` keeps shared parts shared (and the walk short)."""
    if id(tree) in done:
        return done[id(tree)]
    result: Any = tree
    match tree:
        case _Array():
            result = tree.array
        case _Dtype():
            result = tree.dtype
        case dict():
            result = {key: _finished(value, done) for key, value in tree.items()}
        case list():
            result = [_finished(value, done) for value in tree]
        case tuple():
            result = tuple(_finished(value, done) for value in tree)
    done[id(tree)] = result
    return result


def loads(data: bytes) -> Any:
    """Read one pickle of number arrays, numbers, text and builtin containers.

    Python 2's byte strings become text (latin1).

    Raises:
        UnsafePickleError: it names another global; the message says which.
        CorruptPickleError: it is truncated or no pickle.
    """
    try:
        return _finished(_RestrictedUnpickler(io.BytesIO(data), encoding="latin1").load(), {})
    except UnsafePickleError:
        raise
    except Exception as error:
        # Damaged bytes reach almost any opcode, so almost any exception may come out of them.
        told = " ".join(str(error).split()) or type(error).__name__
        raise CorruptPickleError(f"a pickle must be complete and well formed: {told}") from error


def load(path: str | Path) -> Any:
    """Read one pickle file; see `loads`. The messages begin with the path.

    Raises:
        UnsafePickleError: it names a global that is not allowed.
        CorruptPickleError: it is truncated or no pickle.
    """
    path = Path(path)
    try:
        return loads(path.read_bytes())
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path}: {error}; it was not loaded: download it again from its publisher"
        ) from None
    except CorruptPickleError as error:
        raise CorruptPickleError(f"{path}: {error}; download it again") from None
