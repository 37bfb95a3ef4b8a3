import json
from collections import Counter

import pytest

from cdcd.data.datasheet.counts import printable
from cdcd.data.manifest import read_manifest
from tests.cdcd.data.datasheet.tiny_sheet import Page


def test_reasons_come_with_examples(dance):
    tree = json.loads((dance / "sheet" / "datasheet.json").read_text())
    listed = read_manifest(dance / "raw" / "manifest.jsonl")
    skipped = Counter(r.reason for r in listed if r.reason)
    rows = tree["skipped"]["ingest"]
    assert {row["reason"]: row["count"] for row in rows} == skipped
    assert [row["count"] for row in rows] == sorted((row["count"] for row in rows), reverse=True)
    details = {(r.key, r.split): r.detail for r in listed}
    words = "".join(Page((dance / "sheet" / "index.html").read_text()).words)
    for row in rows:
        assert row["share"] == pytest.approx(row["count"] / len(listed), abs=1e-6)
        assert row["is_chosen"] == (row["reason"] == "ignored_sequence")
        assert len(row["examples"]) == min(5, row["count"])
        for example in row["examples"]:
            assert example["detail"] == printable(details[example["key"], example["split"]])
            assert example["detail"] in words
    assert tree["skipped"]["shard"] == []
