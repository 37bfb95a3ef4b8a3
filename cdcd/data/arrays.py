"""Arrays in npy files of other people: no pickle, no more memory than the file has bytes."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_HEADER = 10_000


class ArrayFileError(ValueError):
    """Bytes that are no whole npy file of numbers; one line."""


class UnsafeArrayError(ArrayFileError):
    """An npy file of Python objects: reading it would run a pickle."""


def parse_npy(data: bytes) -> NDArray[Any]:
    """Read the one array of an npy file.

    The header is checked against the number of bytes before anything is allocated, because it may
    promise any size.

    Raises:
        UnsafeArrayError: it holds objects or records.
        ArrayFileError: it is damaged, cut short or longer than its array.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # the header is parsed as Python: damage raises almost anything
        told = " ".join(str(error).split()) or type(error).__name__
        raise ArrayFileError(f"an npy file must begin with a header: {told[:200]}") from None
    if dtype.hasobject or dtype.fields or dtype.kind not in "biuf":
        raise UnsafeArrayError(f"an npy file must hold numbers: it holds {str(dtype)[:80]!r}")
    have, need = len(data) - stream.tell(), math.prod(shape) * dtype.itemsize
    if have != need:
        raise ArrayFileError(
            f"an npy file must be as long as its array: {have} bytes for {list(shape)} {dtype}, "
            f"which take {need}"
        )
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return an array as an npy file: little-endian, C order, equal bytes for equal arrays."""
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
