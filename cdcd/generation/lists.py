"""Lists of what to generate, and folders of results with an index: what prompts and videos share.

A folder's `index.json` says of each file what it is and how it was made, so that a second run
continues where the first one stopped.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from cdcd.data.files import write_json
from cdcd.features.text import shortened

INDEX = "index.json"
FLUSH_SECONDS = 5.0
MAX_FILE_BYTES = 64 << 20
Row = TypeVar("Row")


class ListError(ValueError):
    """A list that cannot be used as a whole; one line that names the line."""


def read_text(path: Path, what: str) -> str:
    """The text of a list.

    Args:
        path: of the file.
        what: stands in it, for the message.

    Raises:
        ListError: there is no such file, or it is huge or not UTF-8.
    """
    if not path.is_file():
        raise ListError(f"{path} must be a file of {what}: there is none; check the path")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ListError(
            f"{path} must have at most {MAX_FILE_BYTES} bytes: got {path.stat().st_size}; split it"
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ListError(
            f"{path} must be UTF-8: line {line} is not; save it as UTF-8 text"
        ) from None


def read_csv(
    path: Path,
    content: str,
    check_header: Callable[[list[str]], None],
    make: Callable[[dict[str, str], int], Row],
) -> tuple[list[Row], int]:
    """The rows of a CSV with a header, and how many blank lines were left out.

    Args:
        path: for the messages.
        content: the file's text.
        check_header: raises ListError for columns that cannot be.
        make: a row of its cells by column and the line where it starts; a ValueError tells what is
            wrong with it.

    Raises:
        ListError: it is no such CSV; every bad line is found before.
    """
    reader = csv.reader(content.splitlines(keepends=True), strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        check_header(header)
        rows: list[Row] = []
        problems: list[tuple[int, str]] = []
        num_blank = 0
        line = reader.line_num + 1  # where the next row starts
        for row in reader:
            if not any(cell.strip() for cell in row):
                num_blank += 1
            elif len(row) != len(header):
                problems.append(
                    (
                        line,
                        f"must have {len(header)} cells, as the header: got {len(row)}; put cells "
                        "with commas in double quotes",
                    )
                )
            else:
                try:
                    rows.append(make(dict(zip(header, row, strict=True)), line))
                except ValueError as error:
                    problems.append((line, str(error)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ListError(
            f"{path}, line {reader.line_num}: must be CSV: {error}; put cells with commas or "
            "quotes in double quotes"
        ) from None
    refuse_lines(path, problems)
    return rows, num_blank


def whole_number(column: str, cell: str, low: int, high: int) -> int | None:
    """A cell's number, None where it is empty.

    Raises:
        ValueError: it is none, or out of range.
    """
    cell = cell.strip()
    if not cell:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", cell) or not low <= int(cell) <= high:
        raise ValueError(f"{column} must lie in {low} .. {high}: got {shortened(cell)}; change it")
    return int(cell)


def refuse_lines(path: str | Path, problems: Sequence[tuple[int, str]]) -> None:
    """Refuse a file because of some of its lines: the first with its reason, then the numbers.

    Raises:
        ListError: there are problems.
    """
    if not problems:
        return
    (line, reason), *others = problems
    more = ""
    if others:
        numbers = ", ".join(str(number) for number, _ in others[:5])
        dots = ", …" if len(others) > 5 else ""
        more = f" (and {len(others)} more bad lines: {numbers}{dots})"
    raise ListError(f"{path}, line {line}: {reason}{more}")


@dataclass
class ResultFolder:
    """A folder with an index of the files that were generated into it.

    Attributes:
        path: the folder, made when something is written.
        entries: of the index, by file.
    """

    KEY: ClassVar[str] = "files"
    """Of the list in the index."""

    path: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _flushed: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A folder with what its index says so far.

        Raises:
            ValueError: it is no folder, or its index is broken.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out must be a folder here: {path} is a file; choose another name")
        return cls(path, cls._read(path / INDEX))

    @classmethod
    def _read(cls, index: Path) -> dict[str, dict[str, Any]]:
        if not index.exists():
            return {}
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))[cls.KEY]
            return {str(entry["file"]): dict(entry) for entry in listed}
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{index} must be the index of such a folder: it is not; move it away, or choose "
                "another folder"
            ) from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from this folder; it is made, and its index read again.

        The lock is on the folder itself: it leaves no file, and the system frees it.

        Raises:
            ValueError: another process fills it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            self._lock(descriptor)
            self.entries = self._read(self.path / INDEX)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"--out must be filled by one run at a time: another one is at {self.path}; wait "
                "for it to end, or choose another folder"
            ) from None
        except OSError:
            return  # some network file systems lock no folders

    def flush(self) -> None:
        """Write the index."""
        listed = [self.entries[name] for name in sorted(self.entries)]
        write_json(self.path / INDEX, {self.KEY: listed})
        self._flushed = time.monotonic()

    def flush_now_and_then(self) -> None:
        """Write the index if the last time was seconds ago."""
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
