"""Cached tokens and features of one split: one safetensors file of arrays and one JSON of facts.

The arrays are memory-mapped on reading, so a training run touches only the rows it draws.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

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


def write_split(
    folder: str | Path, split: str, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]
) -> None:
    """Write `folder/<split>.safetensors` and `folder/<split>.json`, each under its name when whole.

    Args:
        folder: created when missing.
        split: name without a suffix, e.g. `train`.
        arrays: name -> array `[n, ...]`, all with the same n.
        info: JSON-able facts. `info["keys"]`, where present, holds n sorted, distinct keys.

    Raises:
        CacheError: the arrays and keys disagree on n, or the keys are unsorted or repeated.
        StorageError: the disk is full; earlier files stay intact.
    """
    folder = Path(folder)
    _check_lengths(f"split {split}", arrays, info)
    text = json.dumps(dict(info), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    target, facts = _paths(folder, split)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(target) as part, atomic_path(facts) as facts_part:
        save_file(contiguous, part, metadata={_INFO_HASH: _digest(text)})
        facts_part.write_text(text, encoding="utf-8")


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


def _map_arrays(path: Path) -> dict[str, np.ndarray]:
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
            arrays[name] = np.memmap(path, dtype, mode="r", offset=start, shape=shape)
    return arrays
