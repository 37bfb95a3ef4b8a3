"""Takes in what is new in the folders that params.yaml watches: ingest and shard, nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cdcd.config import Params
from cdcd.data.files import write_json
from flows.pipeline import LOCK, Done, only_one, run_one
from flows.stage import folder, write


def watched_folders(params: Params, dataset: str) -> list[Path]:
    """The folders of a dataset's download that params.yaml names; none for the stand-in."""
    section = getattr(params.ingest, dataset).model_dump()
    named = [
        Path(value)
        for key, value in section.items()
        if isinstance(value, str) and (key == "root" or key.endswith("_dir"))
    ]
    return sorted(set(named))


def _files(root: Path) -> Iterator[tuple[str, int, int]]:
    for where, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(where) / name
            try:
                found = path.stat()
            except OSError:  # it went while we looked; the next time tells
                continue
            yield str(path), found.st_size, found.st_mtime_ns


def fingerprint(roots: list[Path]) -> str:
    """Names, sizes and times of all files below some folders, as one hash; reads no content."""
    found = hashlib.sha256()
    for root in roots:
        for entry in _files(root):
            found.update(repr(entry).encode())
    return found.hexdigest()


def refresh(params: Params, dataset: str, say: Callable[[str], None] = write) -> list[Done]:
    """Ingest and shard a dataset again if its folders changed since they were last taken in.

    A download that has become too broken (`ingest.max_skipped_share`, `shard.max_skipped_share`)
    stops here, and data/raw and data/shards stay as they were.

    Args:
        params: section `ingest` names the folders.
        dataset: its name.
        say: receives each line of DVC and the stages.

    Returns:
        What happened to both stages; empty when nothing is new.

    Raises:
        ValueError: the dataset has no folder in params.yaml, or one is missing.
        BusyError: another pipeline is at work.
        StageFailedError: a stage failed.
    """
    roots = watched_folders(params, dataset)
    if not roots:
        raise ValueError(
            f"refresh-data needs a folder to watch: ingest.{dataset} of params.yaml names none; "
            "name the download's folder there"
        )
    for root in roots:
        if not root.is_dir():
            raise ValueError(
                f"ingest.{dataset} must name folders that exist: got {root}; mount it or mend "
                "the path"
            )
    note = LOCK.with_name(f"watched-{dataset}.json")
    now = {"fingerprint": fingerprint(roots)}
    with only_one():
        if folder("raw", dataset).is_dir() and note.is_file() and _same(note, now):
            return []
        done = [run_one(f"ingest@{dataset}", say, force=True), run_one(f"shard@{dataset}", say)]
        # Last: what was cut short is looked at again.
        write_json(note, now)
    return done


def _same(note: Path, now: dict[str, str]) -> bool:

    try:
        return bool(json.loads(note.read_text(encoding="utf-8")) == now)
    except (OSError, ValueError):
        return False
