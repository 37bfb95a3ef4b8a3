"""Deterministic WebDataset tar shards: written whole, checked before they are read.

Members of a sample share its key: `.audio.npy` (int16, scale in the meta data), `.motion.npy`
(float32), `.video.mp4` or `.video.npy` (features, float32), `.meta.json`; those of a picture are
`.image.png`, `.text.json` and `.meta.json`. Equal samples give equal bytes: fixed order, times and
owners, no compression. `shards.json` lists every shard with its sample count, size and SHA-256,
because a damaged header in the middle of a tar otherwise ends it silently.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cdcd.data.arrays import npy_bytes, parse_npy
from cdcd.data.files import atomic_directory, atomic_path, sha256_file, write_json
from cdcd.data.images import decode_image, png_bytes
from cdcd.data.samples import SPLITS, Caption, Picture, Sample

INDEX = "shards.json"
AUDIO_SCALE = 1.0 / 32767.0

# Before webdataset is imported anywhere: without it the library unpickles and runs shell commands.
os.environ.setdefault("WDS_SECURE", "1")

Members = dict[str, bytes]
"""One sample as bytes by member extension."""


def encode_sample(sample: Sample | Picture) -> Members:
    """Turn a sample into the members of a tar; audio is stored as int16 (clipped to [-1, 1])."""
    members: Members = {}
    meta = {**sample.meta, "split": sample.split}
    if isinstance(sample, Picture):
        members["image.png"] = png_bytes(sample.image)
        meta["label"] = sample.label
        if sample.captions:
            members["text.json"] = _json([[c.name, c.text] for c in sample.captions])
    else:
        steps = np.rint(np.clip(sample.audio, -1.0, 1.0) / AUDIO_SCALE).astype(np.int16)
        members["audio.npy"] = npy_bytes(steps)
        meta["audio_scale"] = AUDIO_SCALE
        if sample.motion is not None:
            members["motion.npy"] = npy_bytes(sample.motion)
        if sample.video is not None:
            members["video.mp4"] = sample.video
        if sample.video_feature is not None:
            members["video.npy"] = npy_bytes(sample.video_feature)
    # A member that a damaged tar lost must not pass for one that never was.
    meta["members"] = sorted(members)
    return {**members, "meta.json": _json(meta)}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_sample(key: str, members: Members) -> Sample | Picture:
    """Turn the members of a tar back into a sample.

    Raises:
        ValueError: a member is missing or unreadable.
    """
    meta = json.loads(members["meta.json"])
    expected = {*meta.pop("members"), "meta.json"}
    if set(members) != expected:
        raise ValueError(f"{key} has members {sorted(members)}, not {sorted(expected)}")
    split = meta.pop("split")
    if "image.png" in members:
        captions = tuple(Caption(*item) for item in json.loads(members.get("text.json", b"[]")))
        label = meta.pop("label")
        return Picture(key, split, decode_image(members["image.png"]), captions, label, meta)
    steps = parse_npy(members["audio.npy"])
    optional = {
        name: parse_npy(members[member]) if member in members else None
        for name, member in {"motion": "motion.npy", "video_feature": "video.npy"}.items()
    }
    return Sample(
        key=key,
        split=split,
        audio=(steps * np.float32(meta.pop("audio_scale"))).astype(np.float32),
        video=members.get("video.mp4"),
        meta=meta,
        **optional,
    )


class _File:
    """A file that can be given up: a tar stream writes its end even when it is thrown away."""

    def __init__(self, path: Path) -> None:
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


def shard_name(split: str, number: int) -> str:
    """Return `<split>-<six digits>.tar`."""
    return f"{split}-{number:06d}.tar"


def write_tar(path: Path, samples: Iterable[tuple[str, Members]]) -> int:
    """Write encoded samples as one tar, under a temporary name until it is whole.

    Args:
        path: the tar.
        samples: key and members, in rising order of keys.

    Returns:
        How many were written.

    Raises:
        StorageError: the disk filled up; nothing is left at `path` that was not there before.
        ValueError: a key does not follow the one before it.
    """
    import webdataset

    count, last = 0, ""
    with atomic_path(path) as temporary:
        file = _File(temporary)
        try:
            tar = webdataset.TarWriter(
                file, encoder=False, compress=False, mtime=0, user="cdcd", group="cdcd"
            )
            for key, members in samples:
                if key <= last:
                    raise ValueError(f"keys of a shard must rise: got {key} after {last}")
                tar.write({"__key__": key, **members})
                count, last = count + 1, key
            tar.close()
            file.close()
        except BaseException:
            file.abandon()
            raise
    return count


def describe_shard(path: Path, split: str, count: int) -> dict[str, Any]:
    """Return what the index says of a written tar: name, split, count, bytes, sha256."""
    return {
        "name": path.name,
        "split": split,
        "count": count,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


def write_index(folder: Path, shards: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write `shards.json` in reading order: train, val, test, then by number; return the list."""
    ordered = sorted(shards, key=lambda shard: (SPLITS.index(shard["split"]), shard["name"]))
    write_json(folder / INDEX, {"shards": ordered})
    return ordered


def write_shards(
    folder: str | Path, samples: Iterable[Sample | Picture], samples_per_shard: int = 64
) -> list[dict[str, Any]]:
    """Write samples as a new folder of shards, replacing an earlier one only when all is written.

    Args:
        folder: destination.
        samples: any order; they are held in memory to be sorted by key. The shard stage streams.
        samples_per_shard: most samples in one tar.

    Returns:
        The shards: name, split, count, bytes, sha256.

    Raises:
        StorageError: the disk filled up; the earlier folder is untouched.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    shards = []
    with atomic_directory(folder) as temporary:
        for split in SPLITS:
            mine = [sample for sample in ordered if sample.split == split]
            for number, start in enumerate(range(0, len(mine), samples_per_shard)):
                part = mine[start : start + samples_per_shard]
                path = temporary / shard_name(split, number)
                count = write_tar(path, ((s.key, encode_sample(s)) for s in part))
                shards.append(describe_shard(path, split, count))
        return write_index(temporary, shards)


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


REMEDY = "write it again with `dvc repro --force shard`"


def is_embedded(shards_dir: str | Path) -> bool:
    """Whether the shards come from the stand-in; True where nothing says otherwise."""
    try:
        text = (Path(shards_dir) / "summary.json").read_text(encoding="utf-8")
        return bool(json.loads(text)["embedded"])
    except (OSError, KeyError, ValueError):
        return True


def check_size(shards_dir: str | Path, shard: dict[str, Any]) -> Path:
    """Compare the length of a shard file with its entry in `shards.json`; return its path.

    Raises:
        ValueError: the file is missing or cut.
    """
    path = Path(shards_dir) / shard["name"]
    if not path.is_file():
        raise ValueError(f"{path} must exist, {INDEX} lists it: no such file; {REMEDY}")
    num_bytes = path.stat().st_size
    if num_bytes != shard["bytes"]:
        raise ValueError(
            f"{path} must have {shard['bytes']} bytes: got {num_bytes}, it was cut or altered; "
            f"{REMEDY}"
        )
    return path


def verify_shard(shards_dir: str | Path, shard: dict[str, Any]) -> None:
    """Compare a shard file with its entry in `shards.json`.

    Raises:
        ValueError: the file is missing, cut, or altered.
    """
    path = check_size(shards_dir, shard)
    checksum = sha256_file(path)
    if checksum != shard["sha256"]:
        raise ValueError(
            f"{path} must have SHA-256 {shard['sha256']}: got {checksum}, it was altered; {REMEDY}"
        )


def iterate_shards(shards_dir: str | Path, split: str, verify: bool = True) -> Iterator[Sample]:
    """Yield the samples of dance and music of a split, sorted by key.

    Args:
        shards_dir: folder written by the shard stage.
        split: `train`, `val` or `test`.
        verify: compare every shard with its checksum before its first sample; their lengths are
            compared before the first sample of all.

    Raises:
        ValueError: a shard is missing, cut or altered, the split is empty, or it holds pictures.
    """
    for sample in _iterate(shards_dir, split, verify):
        if isinstance(sample, Picture):
            raise ValueError(f"{shards_dir} must hold dance and music: got pictures")
        yield sample


def iterate_pictures(shards_dir: str | Path, split: str, verify: bool = True) -> Iterator[Picture]:
    """Yield the pictures of a split, sorted by key; otherwise as `iterate_shards`."""
    for sample in _iterate(shards_dir, split, verify):
        if not isinstance(sample, Picture):
            raise ValueError(f"{shards_dir} must hold pictures: got dance and music")
        yield sample


def _iterate(shards_dir: str | Path, split: str, verify: bool) -> Iterator[Sample | Picture]:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    shards = [shard for shard in read_shards_index(shards_dir) if shard["split"] == split]
    if not shards:
        raise ValueError(
            f"{shards_dir} must hold shards of split {split}: got none; "
            "see the skip reasons in its manifest.jsonl"
        )
    for shard in shards:
        check_size(shards_dir, shard)
    last = ""
    for shard in shards:
        if verify:
            verify_shard(shards_dir, shard)
        for sample in _read_tar(Path(shards_dir) / shard["name"], shard["count"]):
            if sample.key <= last:
                raise ValueError(
                    f"{Path(shards_dir) / shard['name']} must hold keys that rise: got "
                    f"{sample.key} after {last}; write it again with `dvc repro --force shard`"
                )
            last = sample.key
            yield sample


def _read_tar(path: Path, count: int) -> Iterator[Sample | Picture]:
    num_read = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in _groups(tar):
                yield decode_sample(key, members)
                num_read += 1
    except (tarfile.TarError, KeyError, ValueError, TypeError, EOFError) as error:
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
        if not item.isreg() or not key or "/" in item.name or "\\" in item.name:
            raise ValueError(f"member {item.name!r} must be a plain file without a folder")
        file = tar.extractfile(item)
        if file is None:
            raise ValueError(f"member {item.name} is no file")
        if key != current and members:
            yield current, members
            members = {}
        current = key
        if extension in members:
            raise ValueError(f"member {item.name!r} is there twice")
        members[extension] = file.read()
    if members:
        yield current, members
