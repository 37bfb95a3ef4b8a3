import json
from dataclasses import replace

import pytest

from cdcd.data.datasheet import write_datasheet
from cdcd.data.manifest import read_manifest, write_manifest
from tests.cdcd.data.datasheet.tiny_sheet import birds, record, sheet, source, verdicts


def test_published_splits_do_not_leak(dance):
    tree = json.loads((dance / "sheet" / "datasheet.json").read_text())
    assert verdicts(tree) == {
        "song": "ok",  # val and test share theirs, as published
        "class": "not applicable",
        "file": "ok",
        "sequence": "ok",
        "choreography": "ok",
    }


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("song", lambda r, held: replace(r, song=held.song)),
        ("sequence", lambda r, held: replace(r, sequence=held.sequence)),
        (
            "choreography",
            lambda r, _: replace(r, sequence="gHO_sBM_cAll_d20_mHO1_ch02"),
        ),
        (
            "file",
            lambda r, held: replace(
                r,
                sources=r.sources | {r.facts["motion"]: held.sources[held.facts["motion"]]},
            ),
        ),
    ],
)
def test_what_a_dance_shares_with_the_test_split_is_found(dance, tmp_path, kind, change):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("source.json", "summary.json"):
        (raw / name).write_bytes((dance / "raw" / name).read_bytes())
    records = read_manifest(dance / "raw" / "manifest.jsonl")
    held = next(r for r in records if r.split == "test" and r.status == "ok")
    first = next(r for r in records if r.split == "train" and r.status == "ok")
    changed = [change(r, held) if r is first else r for r in records]
    write_manifest(raw / "manifest.jsonl", changed)
    page = write_datasheet(raw, tmp_path / "none", tmp_path / "sheet")
    tree = json.loads((page.parent / "datasheet.json").read_text())
    found = {check["name"]: check for check in tree["checks"]}
    assert found[kind]["verdict"] == "LEAK"
    assert found[kind]["count"] == 1
    (example,) = found[kind]["examples"]
    assert f"train: {first.key}" in example["items"]
    assert ">LEAK<" in page.read_text()
    expected = {kind, "choreography"} if kind == "sequence" else {kind}
    assert {name for name, check in found.items() if check["verdict"] == "LEAK"} == expected


@pytest.mark.parametrize("split", ["stackgan", "official"])
def test_a_class_in_two_splits(tmp_path, split):
    records = [*birds(), record(40, "test", label=2)]
    tree, text = sheet(tmp_path, source("cub200", settings={"split": split}), records)
    if split == "official":
        assert verdicts(tree)["class"] == "not applicable"
        assert ">LEAK<" not in text
        return
    (check,) = [check for check in tree["checks"] if check["verdict"] == "LEAK"]
    assert check["name"] == "class"
    assert check["examples"] == [
        {"shared": "2", "items": ["train: p000006", "test: p000040"]},
    ]


@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_an_identical_picture_in_two_splits(tmp_path, one, other):
    records = [*birds(), record(40, "val", label=20)]
    path = "root/images/000050.jpg"
    records += [
        record(50, one, sources={path: "ab" * 32}, label=30),
        record(51, other, sources={"root/images/000051.jpg": "ab" * 32}, label=31),
    ]
    tree, _ = sheet(tmp_path, source("imagenet"), records, with_shards=False)
    (check,) = [check for check in tree["checks"] if check["verdict"] == "LEAK"]
    assert check["name"] == "file"
    assert check["examples"][0]["shared"] == "ab" * 32
    assert set(check["examples"][0]["items"]) == {f"{one}: p000050", f"{other}: p000051"}
    # A caption file, or the copy of a skipped item, is no leak.
    alone = [replace(r, status="skipped", reason="too_short") if r.key == "p000051" else r
             for r in records]  # fmt: skip
    tree, _ = sheet(tmp_path / "alone", source("imagenet"), alone, with_shards=False)
    assert "LEAK" not in verdicts(tree).values()
