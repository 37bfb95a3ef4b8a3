import base64
import io
import json
import tracemalloc

import pytest
from PIL import Image

from cdcd.data.datasheet import write_datasheet
from cdcd.data.manifest import record_line
from tests.cdcd.data.datasheet.tiny_sheet import (
    Page,
    birds,
    contents,
    record,
    sheet,
    source,
    verdicts,
    write,
)


def test_the_page_needs_nothing_but_itself(dance):
    page = Page((dance / "sheet" / "index.html").read_text())
    assert page.loads
    assert all(value.startswith("data:image/") for value in page.loads)
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert "url(" not in (dance / "sheet" / "index.html").read_text()
    for value in page.loads:
        Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))).verify()
    assert (dance / "sheet" / "index.html").stat().st_size < 2_000_000
    names = {path.name for path in (dance / "sheet").glob("*.png")}
    assert names == {"clip_1.png", "clip_2.png", "clip_3.png", "histograms.png"}
    for name in names:
        with Image.open(dance / "sheet" / name) as picture:
            picture.load()
            assert picture.width == 784


def test_equal_input_gives_equal_bytes_and_no_paths(dance, tmp_path):
    write_datasheet(dance / "raw", dance / "shards", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(dance / "sheet")
    roots = json.loads((dance / "raw" / "source.json").read_text())["roots"]
    text = (dance / "sheet" / "index.html").read_text()
    for folder in roots.values():
        assert folder in text
        text = text.replace(folder, "")
    assert str(dance) not in text


def test_missing_pieces_are_missing_and_no_more(tmp_path):
    bare = {k: v for k, v in record(0).facts.items() if k not in ("captions", "class")}
    records = [record(i, label=None, facts=bare) for i in range(3)]
    tree, text = sheet(tmp_path, source("coco", expected={}), records)
    assert tree["captions"]["per_picture"] is None
    assert tree["groups"] == []
    assert tree["shown"]["negatives"] == []
    assert set(verdicts(tree).values()) == {"not applicable"}
    assert not list((tmp_path / "sheet").glob("[hn]*.png"))
    assert "Captions</h2>" not in text


def test_what_must_be_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"source\.json must exist.*dvc repro ingest"):
        write_datasheet(tmp_path, tmp_path, tmp_path / "sheet")
    raw, shards = write(tmp_path, source("cub200"), birds(), with_shards=False)
    (raw / "manifest.jsonl").unlink()
    with pytest.raises(ValueError, match=r"manifest\.jsonl must exist"):
        write_datasheet(raw, shards, tmp_path / "sheet")
    (raw / "source.json").write_text("[]")
    with pytest.raises(ValueError, match=r"source\.json must say where the data are"):
        write_datasheet(raw, shards, tmp_path / "sheet")
    assert not (tmp_path / "sheet").exists()


def test_memory_does_not_grow_with_the_training_data(tmp_path):
    facts = {k: v for k, v in record(123_456).facts.items() if k not in ("captions", "class")}
    example = record_line(record(123_456, label=777, facts=facts))
    # What is imported on the way does not count.
    write_datasheet(*write(tmp_path / "one", source("imagenet"), birds()), tmp_path / "warm")
    peaks = []
    for num_train in (3_000, 30_000):
        raw = tmp_path / f"raw_{num_train}"
        raw.mkdir()
        (raw / "source.json").write_text(json.dumps(source("imagenet")))
        with (raw / "manifest.jsonl").open("w") as file:
            for i in range(num_train + 500):
                line = example.replace("123456", f"{i:06d}").replace("777", str(i % 1000))
                line = line.replace(f"{123_456:064x}", f"{i:064x}")
                file.write(line if i >= 500 else line.replace('"train"', '"val"'))
        tracemalloc.start()
        page = write_datasheet(raw, tmp_path / "none", tmp_path / "sheet")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        tree = json.loads((page.parent / "datasheet.json").read_text())
        usable = {split: row["usable"] for split, row in tree["splits"].items()}
        assert usable == {"train": num_train, "val": 500, "test": 0}
        assert verdicts(tree)["file"] == "ok"
    assert peaks[1] - peaks[0] < 1e6  # 27,000 keys alone would take twice as much
