"""The small table that DVC compares: main scores with their intervals, a row for each system."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from cdcd.evaluation.compact import compact, write_compact

METRICS: dict[str, Any] = {
    "systems": {
        "model": {
            "onset_f1": {"mean": 0.9, "ci_low": 0.8, "ci_high": 0.95, "n": 43},
            "fid": {"mean": 12.0, "ci_low": None, "ci_high": None},
            "beats": {"d2m": {"hit": {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0}}},
            "num_seeds": 3,
        },
        "white_noise": {"onset_f1": {"mean": 0.3, "ci_low": 0.2, "ci_high": 0.4}, "fid": None},
    }
}


def test_shown_scores_have_their_interval_where_there_is_one() -> None:
    assert compact(METRICS["systems"]) == {
        "model": {"onset_f1": 0.9, "onset_f1_low": 0.8, "onset_f1_high": 0.95, "fid": 12.0},
        "white_noise": {"onset_f1": 0.3, "onset_f1_low": 0.2, "onset_f1_high": 0.4},
    }


def test_bars_have_a_row_for_each_system(tmp_path: Path) -> None:
    write_compact(METRICS, tmp_path / "scores.json", tmp_path / "bars.csv")
    assert json.loads((tmp_path / "scores.json").read_text()) == compact(METRICS["systems"])
    with (tmp_path / "bars.csv").open(newline="") as file:
        model, noise = csv.DictReader(file)
    assert (model["system"], model["onset_f1"], model["fid"]) == ("model", "0.9", "12.0")
    assert (noise["system"], noise["onset_f1"], noise["fid"]) == ("white noise", "0.3", "")
