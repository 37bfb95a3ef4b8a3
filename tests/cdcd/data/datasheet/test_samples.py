import json

import numpy as np
import pytest
from PIL import Image

from cdcd.data.datasheet import write_datasheet
from cdcd.data.manifest import Record, write_manifest
from cdcd.data.samples import Sample
from cdcd.data.shards import write_shards
from tests.cdcd.data.datasheet.tiny_sheet import contents, record, source, verdicts, write


def test_a_dance_without_video_genre_and_tempo(tmp_path):
    raw, shards = tmp_path / "raw", tmp_path / "shards"
    raw.mkdir()
    facts = source("tiktok", kind="TiktokClips", unit="clip", expected={"items": {"train": 2384}})
    (raw / "source.json").write_text(json.dumps(facts))
    known = {"audio_source": "clip", "num_frames": 60, "motion_rate_hz": 30, "video": None}
    names = [f"000001_{i}_1_seg1" for i in range(4)]
    known |= {"video_feature": "clips/video_s2/x.npy"}
    records = [Record(key=n, split="train", song=n[7], facts=known) for n in names]
    write_manifest(raw / "manifest.jsonl", records)
    motion = np.zeros((60, 75), np.float32)
    lost = motion.copy()
    motion[:] = np.random.default_rng(0).uniform(1, 90, 75)
    silence, hiss = np.zeros(44100, np.float32), np.full(44100, 0.1, np.float32)
    parts = [(silence, lost), (hiss, motion), (hiss, None), (silence, motion)]
    write_shards(
        shards, [Sample(n, "train", *part, None, {}) for n, part in zip(names, parts, strict=True)]
    )
    page = write_datasheet(raw, shards, tmp_path / "sheet")
    tree = json.loads((page.parent / "datasheet.json").read_text())
    assert tree["dance"]["seconds"]["all"]["total"] == 8
    assert tree["dance"]["videos"] == {"features only": 4}
    assert tree["dance"]["tempi"] == {}
    assert tree["splits"]["train"]["samples"] == 4
    assert set(verdicts(tree).values()) == {"not applicable"}
    for name in ("clip_1.png", "clip_2.png", "clip_3.png"):
        Image.open(page.parent / name).verify()


def test_only_shards_that_hold_a_shown_picture_are_opened(tmp_path):
    records = [record(i, label=i % 7) for i in range(400)]
    raw, shards = write(tmp_path, source("imagenet"), records)
    write_datasheet(raw, shards, tmp_path / "sheet")
    keys = json.loads((tmp_path / "sheet" / "datasheet.json").read_text())["shown"]["keys"]
    assert len(keys) == 24
    steps = np.diff([int(key[1:]) for key in keys])
    assert set(steps) <= {16, 17}
    needed = {f"train-{int(key[1:]) // 4:06d}.tar" for key in keys}
    for path in shards.glob("*.tar"):
        if path.name not in needed:
            path.unlink()
    write_datasheet(raw, shards, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "sheet")
    (shards / sorted(needed)[0]).write_bytes(b"cut")
    with pytest.raises(ValueError, match="bytes: got 3, it was cut or altered"):
        write_datasheet(raw, shards, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "sheet")
