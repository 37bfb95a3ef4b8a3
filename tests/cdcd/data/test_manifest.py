import json
import pickle

import pytest

from cdcd.data.manifest import (
    CHOSEN_REASONS,
    REASONS,
    Record,
    SkipItem,
    broken_reasons,
    enforce_share,
    read_manifest,
    write_manifest,
)

OK = Record("b", "train", genre=3, song="mMH1", sources={"x": "00"}, facts={"pad": 2})
SKIPPED = Record("a", "test", "skipped", "too_short", "got 3 frames")


def test_records_come_back_sorted_and_bytes_do_not_depend_on_their_order(tmp_path):
    write_manifest(tmp_path / "1", [OK, SKIPPED])
    write_manifest(tmp_path / "2", [SKIPPED, OK])
    assert read_manifest(tmp_path / "1") == [SKIPPED, OK]
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"status": "skipped"}, {"reason": "too_short"}, {"status": "skipped", "reason": "because"}],
)
def test_status_and_reason_agree(changes):
    with pytest.raises(ValueError, match="reason"):
        Record("a", "train", **changes)


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "a"}', '{"key": "a", "split": "b", "c": 1}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [OK])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"manifest\.jsonl line 2 must be one JSON record"):
        read_manifest(path)


def test_a_missing_manifest_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="no such file; run the stage"):
        read_manifest(tmp_path / "none")


def test_a_number_that_json_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(tmp_path / "m", [Record("a", "train", facts={"x": float("nan")})])
    assert list(tmp_path.iterdir()) == []


def test_the_share_is_a_limit_not_a_bound_to_stay_below():
    enforce_share(2, 10, 0.2, "shard")
    with pytest.raises(
        ValueError,
        match=r"shard\.max_skipped_share .* 3 of 10 .*\(too_short 2, missing_audio 1\).* 0\.2;",
    ):
        enforce_share(3, 10, 0.2, "shard", {"missing_audio": 1, "too_short": 2})


@pytest.mark.parametrize("total", [0, 3])
def test_nothing_left_is_an_error_whatever_the_limit(total):
    with pytest.raises(ValueError, match="at least one usable item"):
        enforce_share(total, total, 1.0, "ingest")


def test_skips_by_choice_are_counted_but_not_broken():
    counts = {"too_short": 1, "ignored_sequence": 2, "ignored_image": 1, "partial_segment": 3}
    assert broken_reasons(counts) == {"too_short": 1}
    assert all(broken_reasons({reason: 1}) for reason in REASONS - CHOSEN_REASONS)


def test_a_skip_crosses_process_borders():
    skip = pickle.loads(pickle.dumps(SkipItem("too_short", "why")))
    assert (skip.reason, skip.detail) == ("too_short", "why")


def test_lines_are_plain_json(tmp_path):
    write_manifest(tmp_path / "m", [OK])
    assert json.loads((tmp_path / "m").read_text())["facts"] == {"pad": 2}
