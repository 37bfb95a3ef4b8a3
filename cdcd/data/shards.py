"""Deterministic WebDataset tar shards: written whole, checked before they are read.

Members of a sample share its key: `.audio.npy` (int16, scale in the meta data), `.motion.npy`
(float32), `.video.mp4`, `.meta.json`. Equal samples give equal bytes: fixed order, times and
owners, no compression. `shards.json` lists every shard with its sample count, size and SHA-256,
because a damaged header in the middle of a tar otherwise ends it silently.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cdcd.data.files import atomic_directory, sha256_file, write_json
from cdcd.data.samples import SPLITS, Sample

INDEX = "shards.json"
AUDIO_SCALE = 1.0 / 32767.0

# Before webdataset is imported anywhere: without it the library unpickles and runs shell commands.
os.environ.setdefault("WDS_SECURE", "1")

Members = dict[str, bytes]
"""One sample as bytes by member extension."""


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def encode_sample(sample: Sample) -> Members:
    """Turn a sample into the members of a tar; audio is stored as int16 (clipped to [-1, 1])."""
    steps = np.rint(np.clip(sample.audio, -1.0, 1.0) / AUDIO_SCALE).astype(np.int16)
    members = {"audio.npy": _npy(steps)}
    if sample.motion is not None:
        members["motion.npy"] = _npy(sample.motion)
    if sample.video is not None:
        members["video.mp4"] = sample.video
    meta = {
        **sample.meta,
        "split": sample.split,
        "audio_scale": AUDIO_SCALE,
        # A member that a damaged tar lost must not pass for one that never was.
        "members": sorted(members),
    }
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**members, "meta.json": text.encode()}


def decode_sample(key: str, members: Members) -> Sample:
    """Turn the members of a tar back into a sample.

    Raises:
        ValueError: a member is missing or unreadable.
    """
    meta = json.loads(members["meta.json"])
    expected = {*meta.pop("members"), "meta.json"}
    if set(members) != expected:
        raise ValueError(f"{key} has members {sorted(members)}, not {sorted(expected)}")
    steps = np.load(io.BytesIO(members["audio.npy"]), allow_pickle=False)
    motion = None
    if "motion.npy" in members:
        motion = np.load(io.BytesIO(members["motion.npy"]), allow_pickle=False)
    return Sample(
        key=key,
        split=meta.pop("split"),
        audio=(steps * np.float32(meta.pop("audio_scale"))).astype(np.float32),
        motion=motion,
        video=members.get("video.mp4"),
        meta=meta,
    )


class _File:
    """A file that can be given up: a tar stream writes its end even when it is thrown away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._is_abandoned = False

    def write(self, data: bytes) -> int:
        return len(data) if self._is_abandoned else self._file.write(data)

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        self._is_abandoned = True
        with suppress(OSError):  # what is still in the buffer may not fit either
            self._file.close()


class ShardWriter:
    """Writes samples into `<split>-<number>.tar` files of one folder; use as a context manager.

    Args:
        folder: an existing folder, normally the temporary one of `atomic_directory`.
        samples_per_shard: a shard is closed when it holds this many.
    """

    def __init__(self, folder: str | Path, samples_per_shard: int) -> None:
        self._folder = Path(folder)
        self._samples_per_shard = samples_per_shard
        self._open: dict[str, tuple[_File, Any]] = {}
        self._counts: dict[str, int] = {}
        self._last_key: dict[str, str] = {}
        self._shards: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            for file, _ in self._open.values():
                file.abandon()

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The shards closed so far: name, split, count, bytes, sha256."""
        return self._shards

    def write(self, key: str, split: str, members: Members) -> None:
        """Append one encoded sample; keys of a split must come in rising order."""
        import webdataset

        assert key > self._last_key.get(split, ""), f"{key} after {self._last_key[split]}"
        self._last_key[split] = key
        count = self._counts.get(split, 0)
        if split not in self._open:
            name = f"{split}-{count // self._samples_per_shard:06d}.tar"
            file = _File(self._folder / name)
            tar = webdataset.TarWriter(
                file, encoder=False, compress=False, mtime=0, user="cdcd", group="cdcd"
            )
            self._open[split] = file, tar
        self._open[split][1].write({"__key__": key, **members})
        self._counts[split] = count + 1
        if self._counts[split] % self._samples_per_shard == 0:
            self._close(split)

    def finish(self) -> list[dict[str, Any]]:
        """Close every shard, write `shards.json` and return its list of shards."""
        for split in list(self._open):
            self._close(split)
        self._shards.sort(key=lambda shard: (SPLITS.index(shard["split"]), shard["name"]))
        write_json(self._folder / INDEX, {"shards": self._shards})
        return self._shards

    def _close(self, split: str) -> None:
        file, tar = self._open[split]
        tar.close()
        file.close()
        del self._open[split]
        path = file.path
        self._shards.append(
            {
                "name": path.name,
                "split": split,
                "count": (self._counts[split] - 1) % self._samples_per_shard + 1,
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
        )


def write_shards(
    folder: str | Path, samples: Iterable[Sample], samples_per_shard: int = 64
) -> list[dict[str, Any]]:
    """Write samples as a new folder of shards, replacing an earlier one only when all is written.

    Args:
        folder: destination.
        samples: any order; they are held in memory to be sorted by key. For large sets use
            `ShardWriter`, which streams.
        samples_per_shard: most samples in one tar.

    Returns:
        The shards: name, split, count, bytes, sha256.

    Raises:
        StorageError: the disk filled up; the earlier folder is untouched.
    """
    with atomic_directory(folder) as temporary:
        writer = ShardWriter(temporary, samples_per_shard)
        with writer:
            for sample in sorted(samples, key=lambda sample: sample.key):
                writer.write(sample.key, sample.split, encode_sample(sample))
        return writer.shards


def read_shards_index(shards_dir: str | Path) -> list[dict[str, Any]]:
    """Return the shards of a folder: name, split, count, bytes, sha256; in reading order.

    Raises:
        ValueError: there is no index, or it is damaged.
    """
    path = Path(shards_dir) / INDEX
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
        for shard in shards:
            name, split = shard["name"], shard["split"]
            if Path(name).name != name or split not in SPLITS:
                raise ValueError(f"unexpected shard {name!r}")
            _ = shard["count"], shard["bytes"], shard["sha256"]
    except FileNotFoundError:
        raise ValueError(f"{path} must exist: no such file; run `dvc repro shard`") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must list the shards: {error!r}; write it again with `dvc repro --force shard`"
        ) from None
    return list(shards)


def verify_shard(shards_dir: str | Path, shard: dict[str, Any]) -> None:
    """Compare a shard file with its entry in `shards.json`.

    Raises:
        ValueError: the file is missing, cut, or altered.
    """
    path = Path(shards_dir) / shard["name"]
    remedy = "write it again with `dvc repro --force shard`"
    if not path.is_file():
        raise ValueError(f"{path} must exist, {INDEX} lists it: no such file; {remedy}")
    num_bytes = path.stat().st_size
    if num_bytes != shard["bytes"]:
        raise ValueError(
            f"{path} must have {shard['bytes']} bytes: got {num_bytes}, it was cut or altered; "
            f"{remedy}"
        )
    checksum = sha256_file(path)
    if checksum != shard["sha256"]:
        raise ValueError(
            f"{path} must have SHA-256 {shard['sha256']}: got {checksum}, it was altered; {remedy}"
        )


def iterate_shards(shards_dir: str | Path, split: str, verify: bool = True) -> Iterator[Sample]:
    """Yield the samples of a split, sorted by key.

    Args:
        shards_dir: folder written by the shard stage.
        split: `train`, `val` or `test`.
        verify: compare every shard of the split with its checksum before the first sample.

    Raises:
        ValueError: a shard is missing, cut or altered, or the split is empty.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    shards = [shard for shard in read_shards_index(shards_dir) if shard["split"] == split]
    if not shards:
        raise ValueError(
            f"{shards_dir} must hold shards of split {split}: got none; "
            "see the skip reasons in its manifest.jsonl"
        )
    if verify:
        for shard in shards:
            verify_shard(shards_dir, shard)
    for shard in shards:
        yield from _read_tar(Path(shards_dir) / shard["name"], shard["count"])


def _read_tar(path: Path, count: int) -> Iterator[Sample]:
    num_read = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in _groups(tar):
                yield decode_sample(key, members)
                num_read += 1
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} must be readable: {error!r} after {num_read} of {count} samples; write it "
            "again with `dvc repro --force shard`"
        ) from error
    if num_read != count:
        raise ValueError(
            f"{path} must hold {count} samples: got {num_read}; write it again with "
            "`dvc repro --force shard`"
        )


def _groups(tar: tarfile.TarFile) -> Iterator[tuple[str, Members]]:
    """Yield the members of each sample; consecutive members with one key are one sample."""
    current, members = "", Members()
    for item in tar:
        key, _, extension = item.name.partition(".")
        file = tar.extractfile(item)
        if file is None:
            raise ValueError(f"member {item.name} is no file")
        if key != current and members:
            yield current, members
            members = {}
        current = key
        members[extension] = file.read()
    if members:
        yield current, members
