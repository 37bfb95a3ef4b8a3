import re

from cdcd.data.manifest import Record
from tests.cdcd.data.datasheet.tiny_sheet import HOSTILE, Page, birds, record, sheet, source


def test_of_many_classes_the_extremes_are_named(tmp_path):
    records = [record(i, label=min(i // 2, 44)) for i in range(100)]
    tree, text = sheet(tmp_path, source("imagenet"), records, with_shards=False)
    assert len(tree["groups"]) == 45
    assert "min 2, median 2, max 12" in text.replace("\n", "")
    assert "The five smallest" in text
    assert "bird 30" not in text


def test_hostile_names_do_not_break_the_page(tmp_path):
    facts = {**record(0).facts, "class": HOSTILE, "captions": [["0", HOSTILE + " $x_1$ 鳥"]]}
    records = [record(0, facts=facts), *birds()[1:]]
    records.append(Record(HOSTILE, "train", "skipped", "missing_image", HOSTILE * 20))
    odd = source("cub200", roots={HOSTILE: HOSTILE}, kind=HOSTILE, unit=HOSTILE, licence=HOSTILE)
    odd["expected"]["source"] = HOSTILE
    tree, text = sheet(tmp_path, odd, records)
    page = Page(text)
    assert page.tags["script"] == 0
    assert page.tags["img"] == len(page.loads)
    assert all(value.startswith("data:image/") for value in page.loads)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert "<script>alert(1)</script>" in "".join(page.words)
    (row,) = tree["skipped"]["ingest"]
    assert len(row["examples"][0]["detail"]) < 600
    assert row["examples"][0]["key"].endswith(r"\n\x00\x1b[31m\u202eabc\ud800")
