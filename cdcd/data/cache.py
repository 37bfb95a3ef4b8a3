"""Cached tokens and features of one split: one safetensors file of arrays and one JSON of facts.

The arrays are memory-mapped on reading, so a training run touches only the rows it draws.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from cdcd.data.files import atomic_path

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}
_INFO_HASH = "info_sha256"


class CacheError(ValueError):
    """A cached split that cannot be written or read; the message is one line."""


@dataclass(frozen=True)
class Split:
    """One split as it lies on disk.

    Attributes:
        arrays: memory-mapped, read-only arrays whose first axis is the sample.
        info: the split's JSON; `info["keys"]`, where present, names the samples in order.
    """

    arrays: Mapping[str, np.ndarray]
    info: dict[str, Any]

    def __len__(self) -> int:
        """Number of samples."""
        if "keys" in self.info:
            return len(self.info["keys"])
        return len(next(iter(self.arrays.values()))) if self.arrays else 0


@dataclass(frozen=True)
class OpenSplit:
    """A split that is being written.

    Attributes:
        arrays: writable, memory-mapped arrays, zero at first.
        info: facts to be filled in; `info["keys"]`, where present, holds sorted, distinct keys.
    """

    arrays: Mapping[str, np.ndarray]
    info: dict[str, Any] = field(default_factory=dict)


@contextmanager
def new_split(
    folder: str | Path, split: str, layout: Mapping[str, tuple[tuple[int, ...], Any]]
) -> Iterator[OpenSplit]:
    """Write `folder/<split>.safetensors` and `.json` row by row, each under its name when whole.

    Memory does not grow with the number of samples: the arrays lie in the file from the start.

    Args:
        folder: created when missing.
        split: name without a suffix, e.g. `train`.
        layout: shape `[n, ...]` and dtype of each array, all with the same n.

    Raises:
        CacheError: the arrays and keys disagree on n, or the keys are unsorted or repeated.
        StorageError: the disk is full; earlier files stay intact.
    """
    target, facts = _paths(Path(folder), split)
    with atomic_path(target) as part, atomic_path(facts) as facts_part:
        size = sum(_num_bytes(shape, dtype) for shape, dtype in layout.values())
        with part.open("wb") as file:
            file.write(_header(layout, "0" * 64))
            # Room is taken now: a disk that fills up under a memory map kills the process.
            for start in range(0, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - start)))
        opened = OpenSplit(_map_arrays(part, mode="r+"))
        yield opened
        _check_lengths(f"split {split}", opened.arrays, opened.info)
        for array in opened.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        text = json.dumps(opened.info, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        with part.open("r+b") as file:
            file.write(_header(layout, _digest(text)))
        facts_part.write_text(text, encoding="utf-8")


_BLOCK = 1 << 20


def _num_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _header(layout: Mapping[str, tuple[tuple[int, ...], Any]], digest: str) -> bytes:
    """The beginning of a safetensors file: its length does not depend on the digest."""
    entries: dict[str, Any] = {"__metadata__": {_INFO_HASH: digest}}
    place = 0
    # Wide types first, so that every array is aligned.
    for name in sorted(layout, key=lambda name: (-np.dtype(layout[name][1]).itemsize, name)):
        shape, dtype = layout[name]
        end = place + _num_bytes(shape, dtype)
        entries[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_split(
    folder: str | Path, split: str, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]
) -> None:
    """Write arrays that are in memory; see `new_split`.

    Args:
        folder: created when missing.
        split: name without a suffix, e.g. `train`.
        arrays: name -> array `[n, ...]`, all with the same n.
        info: JSON-able facts. `info["keys"]`, where present, holds n sorted, distinct keys.

    Raises:
        CacheError: the arrays and keys disagree on n, or the keys are unsorted or repeated.
        StorageError: the disk is full; earlier files stay intact.
    """
    _check_lengths(f"split {split}", arrays, info)
    layout = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    with new_split(folder, split, layout) as opened:
        opened.info.update(info)
        for name, array in arrays.items():
            opened.arrays[name][...] = array


def read_split(folder: str | Path, split: str) -> Split:
    """Open a split; no array is read into memory.

    Raises:
        CacheError: a file is missing, cut short, or belongs to another write than its partner.
    """
    target, facts = _paths(Path(folder), split)
    for path in (target, facts):
        if not path.is_file():
            raise CacheError(
                f"split {split} needs {path}: no such file; run the stage that writes it again"
            )
    text = facts.read_text(encoding="utf-8")
    try:
        info = json.loads(text)
        with safe_open(target, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except (json.JSONDecodeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CacheError(
            f"{target}: not a whole cache file ({reason}); run the stage that writes it again"
        ) from None
    if metadata.get(_INFO_HASH) != _digest(text):
        raise CacheError(
            f"{target} and {facts.name} must come from the same write: their checksums differ; "
            "run the stage that writes them again"
        )
    arrays = _map_arrays(target)
    _check_lengths(str(target), arrays, info)
    return Split(arrays, info)


def release(array: np.ndarray) -> None:
    """Let the system forget the pages of a mapped array; they are read again when they are needed.

    Without it a process that reads rows at random comes to hold the whole file.
    """
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped = array._mmap  # type: ignore[attr-defined]
        mapped.madvise(mmap.MADV_DONTNEED)


def list_splits(folder: str | Path) -> list[str]:
    """Names of the splits whose two files both exist, in the order train, val, test, others."""
    folder = Path(folder)
    found = {
        path.stem
        for path in folder.glob("*.safetensors")
        if not path.name.startswith(".") and path.with_suffix(".json").is_file()
    }
    usual = [name for name in ("train", "val", "test") if name in found]
    return usual + sorted(found.difference(usual))


def _paths(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"{split}.safetensors", folder / f"{split}.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_lengths(where: str, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    keys = info.get("keys")
    if keys is not None:
        lengths["keys"] = len(keys)
        if any(first >= second for first, second in itertools.pairwise(keys)):
            raise CacheError(f"{where}: keys must be sorted and distinct; sort them before writing")
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in sorted(lengths.items()))
        raise CacheError(f"{where}: all arrays and keys must have one length: got {listed}")


def _map_arrays(path: Path, mode: Literal["r", "r+"] = "r") -> dict[str, np.ndarray]:
    # safe_open copies what it returns; the format (8 bytes of header length, a JSON header, raw
    # little-endian buffers) lets numpy map the same bytes without a copy.
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    arrays: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, dtype = tuple(entry["shape"]), _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CacheError(f"{path}: {name} has type {entry['dtype']}, unknown to numpy")
        if 0 in shape:  # an empty buffer cannot be mapped
            arrays[name] = np.empty(shape, dtype)
        else:
            start = 8 + size + int(entry["data_offsets"][0])
            arrays[name] = np.memmap(path, dtype, mode=mode, offset=start, shape=shape)
    return arrays
