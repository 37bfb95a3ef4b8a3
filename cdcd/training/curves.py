"""Losses over the steps of a training, as files that a continued training goes on with."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdcd.data.files import atomic_path

ROWS = "curves.jsonl"
FILES = {"train.csv": "loss", "val.csv": "val_bits_per_token"}
"""What a table of curves is called, and the number that every row of it has."""
_NEVER_THE_SAME = frozenset({"tokens_per_second"})


class Curves:
    """What was tracked, kept beside the checkpoint and up to its step.

    Numbers of speed are left out: the same training gives the same files.

    Args:
        folder: of the run's checkpoint.
        step: the checkpoint's; what was tracked after it will be tracked again.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._path = folder / ROWS
        self._rows = [row for row in _read(self._path) if row["step"] <= step]
        # A row that was cut short, or that belongs to a later step, goes.
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(map(_line, self._rows)), encoding="utf-8")

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep what was tracked at a step."""
        kept = {name: value for name, value in metrics.items() if name not in _NEVER_THE_SAME}
        if not kept:
            return
        row = {"step": step, **kept}
        self._rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def last(self) -> dict[str, float]:
        """The last value of each number."""
        found: dict[str, float] = {}
        for row in self._rows:
            found.update({name: value for name, value in row.items() if name != "step"})
        return found

    def write(self, folder: Path) -> None:
        """Write a CSV for the training and one for the held-out data, those that have rows."""
        for name, column in FILES.items():
            rows = [row for row in self._rows if column in row]
            if not rows:
                continue
            with (folder / name).open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                table.writeheader()
                table.writerows(map(_short, rows))


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(row) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole rows of the file; none where there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # killed while writing it
            break
    return rows


def _short(row: Mapping[str, float]) -> dict[str, str]:
    return {k: f"{v:.7g}" if isinstance(v, float) else str(v) for k, v in row.items()}
