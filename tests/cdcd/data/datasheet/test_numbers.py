import json

import pytest
from PIL import Image

from cdcd.data.datasheet import write_datasheet
from cdcd.data.manifest import read_manifest
from cdcd.data.shards import read_shards_index
from tests.cdcd.data.datasheet.tiny_sheet import Page, birds, record, sheet, source, verdicts, write


def test_numbers_are_those_of_the_manifests(dance):
    tree = json.loads((dance / "sheet" / "datasheet.json").read_text())
    listed = read_manifest(dance / "raw" / "manifest.jsonl")
    for split, row in tree["splits"].items():
        mine = [r for r in listed if r.split == split]
        shards = [s for s in read_shards_index(dance / "shards") if s["split"] == split]
        assert row["listed"] == len(mine)
        assert row["usable"] == sum(r.status == "ok" for r in mine)
        assert row["skipped"] == row["listed"] - row["usable"]
        assert row["samples"] == sum(s["count"] for s in shards)
        assert row["bytes"] == sum(s["bytes"] for s in shards)
        assert row["shards"] == len(shards)
    assert tree["splits"]["train"]["official_items"] == 952
    assert tree["splits"]["train"]["difference_items"] == len(listed) - 2 - 952
    assert tree["splits"]["val"]["official_samples"] == 86
    usable = [r for r in listed if r.status == "ok"]
    seconds = tree["dance"]["seconds"]["all"]
    assert seconds["count"] == len(usable) == 6
    total = sum(r.facts["num_frames"] for r in usable) / 60
    assert seconds["total"] == pytest.approx(total, abs=0.01)
    assert tree["dance"]["tempi"] == {
        "80": {"train": 1, "val": 0, "test": 0},
        "130": {"train": 3, "val": 0, "test": 0},
        "135": {"train": 0, "val": 1, "test": 1},
    }
    assert tree["dance"]["songs"] == {"train": 3, "val": 1, "test": 1}
    with_video = sum(r.facts["video"] is not None for r in usable)
    assert tree["dance"]["videos"] == {"present": with_video, "missing": 6 - with_video}
    assert sum(tree["dance"]["audio_sources"].values()) == 6
    genres = {row["name"]: (row["total"], row["samples"]) for row in tree["groups"]}
    assert genres == {"BR Break": (2, 9), "PO Pop": (2, 6), "HO House": (2, 6)}
    assert "av" in tree["decoders"]
    assert tree["licence"].startswith("AIST++ annotations are CC BY 4.0")
    assert any("not as many as officially" in note for note in tree["notes"])


def test_pictures_are_counted_and_shown(tmp_path):
    bad = record(90, status="skipped", reason="missing_caption", detail="none", facts={})
    tree, text = sheet(tmp_path, source("cub200"), [*birds(), bad])
    assert tree["splits"]["train"] == {
        "listed": 25,
        "usable": 24,
        "skipped": 1,
        "official_items": 8855,
        "difference_items": 25 - 8855,
        "samples": 24,
        "pairs": 48,
        "official_samples": None,
        "difference_samples": None,
        "shards": 6,
        "bytes": tree["splits"]["train"]["bytes"],
    }
    assert "val" not in tree["splits"]
    assert "8,855" in text
    assert "-8,830" in text
    assert tree["captions"]["per_picture"]["max"] == 2
    assert tree["captions"]["words"] == {
        "count": 60, "min": 2, "mean": 2.5, "median": 2.5, "max": 3, "total": 150
    }  # fmt: skip
    assert tree["pictures"]["width"]["median"] == 214.5
    assert tree["pictures"]["share_small"] == 1.0
    assert tree["pictures"]["modes"] == {"L": 15, "RGB": 15}
    assert [(g["name"], g["train"], g["test"], g["samples"]) for g in tree["groups"]] == [
        (f"bird {i}", 3 * (i < 8), 3 * (i >= 8), 3) for i in range(10)
    ]
    assert tree["shown"]["keys"] == [f"p{i:06d}" for i in range(24)]
    anchor, *negatives = tree["shown"]["negatives"]
    assert len(set(negatives)) == 5
    assert all(int(key[1:]) // 3 != int(anchor[1:]) // 3 for key in negatives)
    page = Page(text)
    assert page.tags["figcaption"] == 24 + 6
    assert "bird number 7" in page.words
    assert "negative: bird" in " ".join(page.words)
    for name in ("contact_sheet.png", "negatives.png", "histograms.png"):
        with Image.open(tmp_path / "sheet" / name) as picture:
            picture.load()
    assert verdicts(tree)["class"] == verdicts(tree)["file"] == "ok"
    assert verdicts(tree)["song"] == "not applicable"
    assert tree["decoders"] == {"pillow": ["1"]}


def test_without_shards_the_counts_and_a_note(tmp_path):
    raw, shards = write(tmp_path, source("cub200", embedded=True), birds(), with_shards=False)
    shards.mkdir()
    page = write_datasheet(raw, shards, tmp_path / "sheet")
    assert "There are no shards yet: run `dvc repro shard`" in page.read_text()
    assert "embedded stand-in" in page.read_text()
    tree = json.loads((page.parent / "datasheet.json").read_text())
    assert tree["splits"]["train"]["usable"] == 24
    assert tree["splits"]["train"]["samples"] is None


def test_a_summary_that_does_not_fit_is_noted(tmp_path):
    raw, shards = write(tmp_path, source("cub200"), birds(), with_shards=False)
    (raw / "summary.json").write_text(json.dumps({"num_listed": 31}))
    page = write_datasheet(raw, shards, tmp_path / "sheet")
    assert "summary of the items says 31, their manifest has 30" in page.read_text()
