"""Curves: a continued training goes on where its checkpoint stands, whatever was written since."""

from __future__ import annotations

import csv
from pathlib import Path

from cdcd.training.curves import ROWS, Curves


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_speed_is_left_out_and_each_table_has_its_own_rows(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.add(2, {"loss": 3.0, "bound": 2.5, "tokens_per_second": 812.3})
    curves.add(2, {"val_bits_per_token": 4.5})
    curves.add(4, {"loss": 1 / 3, "bound": 1e-9, "tokens_per_second": 901.2})
    curves.write(tmp_path)
    assert _rows(tmp_path / "train.csv") == [
        {"step": "2", "loss": "3", "bound": "2.5"},
        {"step": "4", "loss": "0.3333333", "bound": "1e-09"},
    ]
    assert _rows(tmp_path / "val.csv") == [{"step": "2", "val_bits_per_token": "4.5"}]
    assert curves.last() == {"loss": 1 / 3, "bound": 1e-9, "val_bits_per_token": 4.5}


def test_what_was_tracked_after_the_checkpoint_is_tracked_again(tmp_path: Path) -> None:
    first = Curves(tmp_path)
    for step in (1, 2, 3):
        first.add(step, {"loss": float(step)})
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    second = Curves(tmp_path, step=2)
    assert second.last() == {"loss": 2.0}
    second.add(3, {"loss": 3.0})
    assert Curves(tmp_path, step=3).last() == {"loss": 3.0}
    assert Curves(tmp_path).last() == {}, "a training from the start has no past"


def test_without_held_out_data_there_is_no_table_of_it(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "checkpoint")
    curves.add(1, {"loss": 1.0})
    curves.add(1, {})
    curves.write(tmp_path)
    assert {path.name for path in tmp_path.glob("*.csv")} == {"train.csv"}


def test_large_steps_keep_all_digits(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.add(123_456_789, {"loss": 1.0})
    curves.write(tmp_path)
    assert _rows(tmp_path / "train.csv")[0]["step"] == "123456789"
