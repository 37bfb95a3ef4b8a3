"""Read pickles of other people without running what they name.

A pickle is a program: it may name any importable function and call it. Published annotations need
only arrays in builtin containers, so everything else is refused by name. The few numpy names that
an array needs are not handed out either, because they are enough to do harm (`numpy.ndarray` called
with an object dtype turns bytes into pointers): small stand-ins take their place, collect what the
pickle says and build arrays of numbers from it.

A few bytes can also ask for unlimited work: a list copied again and again, or a tuple of itself
twice, ten times over, as a key. So what a pickle may do is counted.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 256 << 20
"""Size of a file; the largest published annotation has a hundredth of it."""
MAX_WORK = 300_000
"""Instructions, and items that are copied; the longest published list takes 30 thousand."""
MAX_DEPTH = 100
"""Containers within containers; published files have three."""
_MAX_DIMS = 64
_COPIES = 4  # text to bytes to array, with room for both to be longer than in the file

_NUMBERS = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|S\d{1,9})")


class UnsafePickleError(ValueError):
    """A pickle names a global that an array file has no need of."""


class CorruptPickleError(ValueError):
    """A pickle is cut short, is no pickle at all, or asks for more than an array file needs."""


class _Dtype:
    """What a pickle says of a dtype."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise UnsafePickleError(
                f"a pickle may hold arrays of numbers only: it holds dtype {_short(repr(code))}"
            )
        self.dtype: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, byte_order, *layout = _as_tuple(state)
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
        shape, dtype, is_fortran, data = _as_tuple(state)[-4:]
        if len(shape) > _MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
            raise TypeError("an array's shape must be a few numbers from 0 on")
        flat = np.frombuffer(_as_bytes(data), _plain(dtype), count=math.prod(shape))
        # A copy, because an array over bytes is read-only and keeps the whole pickle alive.
        self.array = flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _plain(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise TypeError(f"an array's dtype must be a dtype: got {type(dtype).__name__}")
    return dtype.dtype


def _as_bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))


def _as_tuple(state: Any) -> tuple[Any, ...]:
    if not isinstance(state, tuple):
        raise TypeError(f"an array's state must be a tuple: got {type(state).__name__}")
    return state


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


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


_KEYS = (str, bytes, int, float, complex, np.number, type(None))
_CONTAINERS = (dict, list, tuple, set, frozenset)
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
        for container in _CONTAINERS
    },
}


class _Instructions:
    """The table of instructions; every look-up counts as work."""

    def __init__(self, unpickler: _RestrictedUnpickler) -> None:
        self.unpickler = unpickler

    def __getitem__(self, code: int) -> Callable[[_RestrictedUnpickler], None]:
        self.unpickler.work_left -= 1
        if self.unpickler.work_left < 0:
            self.unpickler.spend(0)  # says so
        guarded = _GUARDED.get(code)
        # An unknown code is a KeyError, as it is without this table.
        return guarded or self.unpickler.instructions[code]


# The pure-Python unpickler: the C one allocates a table as long as the largest index that a file
# names, gigabytes for a few damaged bytes. Annotations have some dozens of instructions.
class _RestrictedUnpickler(pickle._Unpickler):
    instructions: dict[int, Any] = pickle._Unpickler.dispatch
    memo: dict[int, Any]
    stack: list[Any]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.dispatch = _Instructions(self)  # type: ignore[assignment, misc]
        self.work_left = MAX_WORK
        self.bytes_left = _COPIES * len(data) + 4096
        self.has_carriage_return = False

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnsafePickleError(
                "a pickle may name only numpy arrays and builtin containers: it names "
                f"{_short(f'{module}.{name}')!r}"
            ) from None

    def spend(self, work: int) -> None:
        self.work_left -= work
        if self.work_left < 0:
            raise CorruptPickleError(
                f"a pickle must need at most {MAX_WORK} instructions and copied items: it asks "
                "for more"
            )

    def spend_on(self, values: Iterable[Any]) -> None:
        """Count what passing on these values can copy."""
        for value in values:
            self.spend(1)
            if isinstance(value, str | bytes):
                self.bytes_left -= len(value)
        if self.bytes_left < 0:
            raise CorruptPickleError(
                f"a pickle must copy its text at most {_COPIES} times: it asks for more"
            )

    def check_keys(self, keys: Iterable[Any]) -> None:
        """Refuse keys whose hash is work: tuples of tuples, and numbers of any length."""
        for key in keys:
            self.spend(1)
            parts = key if type(key) is tuple else (key,)
            self.spend(len(parts))
            for part in parts:
                is_long = isinstance(part, int) and part.bit_length() > 64
                if is_long or not isinstance(part, _KEYS):
                    raise CorruptPickleError(
                        "a pickle's keys must be text, numbers of 64 bits or tuples of them: got "
                        f"{'a longer number' if is_long else type(part).__name__}"
                    )

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what an allowed name makes of its arguments; what is copied is counted."""
        if not isinstance(arguments, tuple | list):
            raise TypeError(f"arguments must be a tuple: got {type(arguments).__name__}")
        self.spend_on(arguments)
        if function not in _CONTAINERS:
            return function(*arguments)
        for items in arguments:
            if not isinstance(items, _CONTAINERS):
                raise TypeError(f"{function.__name__} must be made of a container")
            self.spend(len(items))
            if function in (set, frozenset):
                self.check_keys(items)
            elif function is dict and not isinstance(items, dict):
                pairs = [item for item in items if isinstance(item, tuple) and len(item) == 2]
                if len(pairs) != len(items):
                    raise TypeError("dict must be made of pairs")
                self.check_keys(key for key, _ in pairs)
        return function(*arguments)

    def _instantiate(self, klass: Any, args: Any) -> None:
        # How protocol 0 calls a name; the base class would call it uncounted.
        self.stack.append(self.call(klass, args))


def _reduce(unpickler: _RestrictedUnpickler) -> None:
    arguments = unpickler.stack.pop()
    unpickler.stack[-1] = unpickler.call(unpickler.stack[-1], arguments)


def _build(unpickler: _RestrictedUnpickler) -> None:
    state = unpickler.stack.pop()
    maker = unpickler.stack[-1]
    if not isinstance(maker, _Array | _Dtype):
        raise TypeError(f"{type(maker).__name__} must have no state")
    unpickler.spend_on(_as_tuple(state))
    maker.__setstate__(state)


def _unicode_line(unpickler: _RestrictedUnpickler) -> None:
    unpickler.instructions[pickle.UNICODE[0]](unpickler)
    unpickler.has_carriage_return |= unpickler.stack[-1].endswith("\r")


def _keyed(code: bytes, keys: Callable[[list[Any]], list[Any]]) -> dict[int, Any]:
    """Return an instruction that looks at keys on the stack before it does what it always does."""

    def guarded(unpickler: _RestrictedUnpickler) -> None:
        unpickler.check_keys(keys(unpickler.stack))
        unpickler.instructions[code[0]](unpickler)

    return {code[0]: guarded}


def _refused(code: bytes) -> dict[int, Any]:
    """Return an instruction that no array file has: instances, extensions, buffers, own ids."""

    def refuse(_: _RestrictedUnpickler) -> None:
        raise UnsafePickleError(
            "a pickle may hold only numpy arrays and builtin containers: it has the instruction "
            f"{code!r}"
        )

    return {code[0]: refuse}


_GUARDED: dict[int, Callable[[_RestrictedUnpickler], None]] = {
    pickle.REDUCE[0]: _reduce,
    pickle.BUILD[0]: _build,
    pickle.UNICODE[0]: _unicode_line,
    **_keyed(pickle.SETITEM, lambda stack: stack[-2:-1]),
    **_keyed(pickle.SETITEMS, lambda stack: stack[::2]),
    **_keyed(pickle.DICT, lambda stack: stack[::2]),
    **_keyed(pickle.ADDITEMS, lambda stack: stack),
    **_keyed(pickle.FROZENSET, lambda stack: stack),
    **{
        number: function
        for code in (
            *(pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.BINPERSID),
            *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
            # Reserves whatever length it states.
            *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
        )
        for number, function in _refused(code).items()
    },
}


def _finished(tree: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Replace the stand-ins in a tree; `done` keeps shared parts shared (and the walk short)."""
    if not isinstance(tree, _Array | _Dtype | dict | list | tuple):
        return tree
    if id(tree) in done:
        return done[id(tree)]
    if depth > MAX_DEPTH:
        raise CorruptPickleError(
            f"a pickle must nest its containers at most {MAX_DEPTH} deep: it goes deeper"
        )
    result: Any
    match tree:
        case _Array():
            result = tree.array
        case _Dtype():
            result = tree.dtype
        case dict():
            result = {key: _finished(value, done, depth + 1) for key, value in tree.items()}
        case list():
            result = [_finished(value, done, depth + 1) for value in tree]
        case _:
            result = tuple(_finished(value, done, depth + 1) for value in tree)
    done[id(tree)] = result
    return result


def _attempt(data: bytes) -> tuple[Any, bool]:
    """Read a pickle; also return whether a line of text in it ended with a carriage return."""
    unpickler = _RestrictedUnpickler(data)
    try:
        return _finished(unpickler.load(), {}), unpickler.has_carriage_return
    except (UnsafePickleError, CorruptPickleError):
        raise
    except Exception as error:
        # Damaged bytes reach almost any opcode, so almost any exception may come out of them.
        told = _short(" ".join(str(error).split())) or type(error).__name__
        raise CorruptPickleError(f"a pickle must be complete and well formed: {told}") from error


def loads(data: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """Read one pickle of number arrays, numbers, text and builtin containers.

    Python 2's byte strings become text (latin1). Pickles of protocol 0 are lines of text, and
    copies exist whose line ends were converted to CRLF: they are read as well.

    Args:
        data: the pickle.
        max_bytes: it may not be larger.

    Raises:
        UnsafePickleError: it names another global; the message says which.
        CorruptPickleError: it is truncated, no pickle, or a limit of this module is exceeded.
    """
    if len(data) > max_bytes:
        raise CorruptPickleError(f"a pickle must have at most {max_bytes} bytes: it has more")
    is_text = not data.startswith(pickle.PROTO) and b"\r\n" in data
    first: UnsafePickleError | CorruptPickleError | None = None
    tree: Any = None
    try:
        tree, has_carriage_return = _attempt(data)
        if not (is_text and has_carriage_return):
            return tree
    except (UnsafePickleError, CorruptPickleError) as error:
        if not is_text:
            raise
        first = error
    try:
        return _attempt(data.replace(b"\r\n", b"\n"))[0]
    except UnsafePickleError:
        raise
    except CorruptPickleError:
        if first is not None:
            raise first from None
        return tree


def load(path: str | Path, max_bytes: int = MAX_BYTES) -> Any:
    """Read one pickle file; see `loads`. The messages begin with the path.

    Raises:
        UnsafePickleError: it names a global that is not allowed.
        CorruptPickleError: it is truncated, no pickle, or larger than `max_bytes`.
    """
    path = Path(path)
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    try:
        return loads(data, max_bytes)
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path}: {error}; it was not loaded: download it again from its publisher"
        ) from None
    except CorruptPickleError as error:
        raise CorruptPickleError(f"{path}: {error}; download it again") from None
