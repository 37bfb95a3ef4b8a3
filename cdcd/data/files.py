"""Write files and folders all at once or not at all, and take their checksums.

Everything is written under a temporary name beside its destination and renamed at the end, so a
reader never sees half a file, an interrupted stage leaves its earlier output intact, and DVC's
hard-linked cache is never written through. Needs the standard library alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "file too large")
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32]


class StorageError(ValueError):
    """The disk is full or a quota is reached; nothing that existed before was changed."""


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is a full disk, quota or file size limit.

    Libraries that write by themselves (safetensors, torch) wrap the system's error in their own
    type, so the message is looked at as well as `errno`.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if any(words in str(seen).lower() for words in _FULL_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _temporary_name(path: Path) -> Path:
    # Host and process are in the name so that the next run can tell a dead run's leftover from a
    # file that somebody is still writing.
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_HOST}-(\d+)-[0-9a-f]+\.partial")
    for sibling in path.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and not _is_alive(int(match[1])):
            _remove(sibling)


def _sync_folder(path: Path) -> None:
    # Not every file system lets a folder be opened or synced; the rename has happened anyway.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    if len(files) > _SYNCED_ALONE:
        os.sync()  # waiting for each of thousands of small files takes minutes
        return
    for file in files:
        _sync_file(file)


_SYNCED_ALONE = 256


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise StorageError(
            f"{path} must fit on its disk: no space left while writing it; free some space and "
            "run the stage again (earlier outputs are untouched)"
        ) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the destination's folder; on success it becomes `path`.

    On an error the temporary file is removed and `path` stays as it was.

    Raises:
        StorageError: the disk filled up while the body ran.
        FileNotFoundError: the body wrote nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = _temporary_name(path)
    try:
        with _explained(path):
            yield temporary
            _sync_file(temporary)
            temporary.replace(path)
    finally:
        _remove(temporary)
    _sync_folder(path.parent)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder beside the destination; on success it becomes `path`.

    A folder that was at `path` is replaced as a whole. On an error the temporary folder is removed
    and the earlier one stays as it was.

    Raises:
        StorageError: the disk filled up while the body ran.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        with _explained(path):
            yield temporary
            _sync_tree(temporary)
            _swap(temporary, path)
    finally:
        _remove(temporary)
    _sync_folder(path.parent)


@contextmanager
def guarded_folder(path: str | Path) -> Iterator[Path]:
    """Give a work folder beside `path`, `.<name>.work`, that outlives errors and killed runs.

    The body finishes with `replace_directory`; until then what it wrote is kept for the next run,
    but for files under temporary names.

    Raises:
        StorageError: the disk filled up while the body ran.
        ValueError: another process works in it.
    """
    path = Path(path)
    work = path.with_name(f".{path.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    with _held(path.with_name(f".{path.name}.lock"), path):
        for leftover in work.rglob(".*.partial"):
            _remove(leftover)
        with _explained(path):
            yield work


@contextmanager
def _held(lock: Path, path: Path) -> Iterator[None]:
    """Hold a lock that the system frees even if this process is killed."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{path} must be written by one run at a time: another one is at it; wait for it "
                "to end, or stop it"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def replace_directory(work: Path, path: Path) -> None:
    """Put a finished work folder in the place of `path`, with everything in it on the disk."""
    _sync_tree(work)
    _swap(work, path)
    _sync_folder(path.parent)


def _swap(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.replace(path)
        return
    # rename(2) replaces only an empty folder, so the earlier one steps aside first.
    earlier = _temporary_name(path)
    path.replace(earlier)
    try:
        temporary.replace(path)
    except BaseException:
        earlier.replace(path)
        raise
    _remove(earlier)


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON value atomically: sorted keys, so equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, reading it in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
