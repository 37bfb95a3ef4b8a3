"""The scores that matter as a small table for `dvc metrics diff` and bars for `dvc plots diff`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdcd.data.files import atomic_path, write_json

SHOWN = (
    "onset_f1",
    "beat_f1",
    "genre_accuracy",
    "tempo_error_bpm",
    "attribute_accuracy",
    "class_accuracy",
    "clip_s",
    "fid",
    "fid_stand_in",
    "bits_per_token",
)
_ENDS = {"mean": "", "ci_low": "_low", "ci_high": "_high"}


def compact(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By system: each shown score's mean, with the ends of its interval as `_low` and `_high`.

    Args:
        systems: of a metrics file. Scores that a system does not have are left out.
    """
    table: dict[str, dict[str, float]] = {}
    for system, row in systems.items():
        table[system] = {
            f"{score}{suffix}": row[score][end]
            for score in SHOWN
            if isinstance(row.get(score), Mapping)
            for end, suffix in _ENDS.items()
            if row[score][end] is not None
        }
    return table


def write_compact(metrics: Mapping[str, Any], scores_path: Path, bars_path: Path) -> None:
    """Write the table as JSON, and with a row for each system as CSV.

    Args:
        metrics: the tree of the metrics file.
        scores_path: JSON.
        bars_path: CSV; empty cells where a system has no such score.
    """
    table = compact(metrics["systems"])
    write_json(scores_path, table)
    columns = dict.fromkeys(name for row in table.values() for name in row)
    with (
        atomic_path(bars_path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.DictWriter(file, ["system", *columns], lineterminator="\n")
        rows.writeheader()
        rows.writerows({"system": system.replace("_", " "), **row} for system, row in table.items())
