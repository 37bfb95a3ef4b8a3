import json
import pickle
import shutil
import time
from collections import Counter

import pytest

from cdcd.config import CocoEmbedded, CocoSource
from cdcd.data.adapters import coco
from cdcd.data.adapters.base import Options
from cdcd.data.manifest import record_line, without_duplicates
from tests.cdcd.data import tiny_pictures as tiny

OPTIONS = Options(segment_seconds=2, video_fps=15, video_height=48, image_size=256)
SETTING = CocoSource(root=None, embedded=CocoEmbedded(num_train=2, num_val=2, image_height=64))


def open_source(root):
    return coco.open_source(SETTING, root)


def records(source):
    return {record.key: record for record in map(source.inspect, source.items())}


def key(number):
    return f"{number:012d}"


@pytest.fixture
def root(tmp_path):
    return tiny.write_coco(tmp_path / "coco")


def edit(root, change, split="train", kind="captions"):
    path = root / "annotations" / f"{kind}_{split}2014.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("is_nested", [False, True])
def test_counts_in_both_layouts(tmp_path, is_nested):
    source = open_source(tiny.write_coco(tmp_path / "coco", is_nested=is_nested))
    found = records(source)
    assert list(found) == [key(number) for number in (9, 25, 26, 30, 34, 36)]
    assert {number: len(found[key(number)].facts["captions"]) for number in tiny.COCO_TRAIN} == (
        tiny.COCO_TRAIN
    )
    assert Counter((r.split, r.reason) for r in found.values()) == {
        ("train", None): 3,
        ("train", "missing_image"): 1,
        ("train", "missing_caption"): 1,
        ("val", None): 1,
    }
    folder = "train2014/train2014" if is_nested else "train2014"
    assert found[key(9)].facts["image"] == f"root/{folder}/COCO_train2014_000000000009.jpg"
    assert json.loads(json.dumps(source.settings)) == source.settings
    assert source.expected().items == {"train": 82_783, "val": 40_504}
    assert source.expected().samples == {"train": 414_113, "val": 202_654}
    assert source.num_items() is None


def test_a_folder_too_high_or_too_low(tmp_path):
    root = tiny.write_coco(tmp_path / "data" / "coco")
    for given in (tmp_path / "data", root, root / "annotations", root / "val2014"):
        source = open_source(given)
        assert source.roots == {"root": root}
        assert len(records(source)) == 6


@pytest.mark.parametrize(
    "folder", ["annotations/annotations", "annotations_trainval2014/annotations", "."]
)
def test_annotations_unpacked_elsewhere(root, folder):
    (root / "annotations").rename(root / "kept")
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path in (root / "kept").iterdir():
        path.rename(root / folder / path.name)
    assert len(records(open_source(root))) == 6


def test_pictures_in_either_folder_are_found(root):
    # An unpacking that was interrupted and repeated elsewhere.
    (root / "train2014" / "train2014").mkdir()
    name = f"COCO_train2014_{key(9)}.jpg"
    (root / "train2014" / name).rename(root / "train2014" / "train2014" / name)
    assert sum(r.status == "ok" for r in records(open_source(root)).values()) == 4


def test_pictures_and_captions(root):
    source = open_source(root)
    record = records(source)[key(25)]
    ((listed, picture),) = source.load(record, OPTIONS)
    assert listed.key == picture.key == key(25)
    assert picture.image.shape == (90, 120, 3)  # small ones are not scaled up
    assert (picture.image[..., 0] == picture.image[..., 1]).all()
    assert picture.label is None
    assert picture.pairs() == [
        (f"{key(25)}_{25_000 + 7 * i}", f"a cat of 25, {i}.") for i in range(6)
    ]
    assert picture.meta["image_id"] == 25
    assert "categories" not in picture.meta


def test_each_picture_has_its_licence(root):
    found = records(open_source(root))
    assert {number: found[key(number)].licence for number in (9, 25, 26, 30)} == {
        9: "CC BY-NC",
        25: "CC BY-NC",
        26: "CC BY",
        30: "CC BY",
    }
    edit(root, lambda tree: tree.pop("licenses"))
    assert records(open_source(root))[key(9)].licence == coco.Coco.licence


def test_instances(tmp_path):
    root = tiny.write_coco(tmp_path / "coco", has_instances=True)
    found = records(open_source(root))
    dog = {"category": "dog", "bbox": [1.5, 2.0, 30.25, 40]}
    cat = {"category": "cat", "bbox": [1.5, 2.0, 30.25, 40], "attributes": {"color": "red"}}
    for number, objects in ((9, []), (25, [dog]), (26, [dog, cat])):
        facts = found[key(number)].facts
        assert facts["objects"] == objects
        assert facts["num_objects"] == len(objects)
        assert facts["categories"] == sorted({item["category"] for item in objects})
    (root / "annotations" / "instances_val2014.json").unlink()
    found = records(open_source(root))
    assert "objects" not in found[key(26)].facts
    assert "objects" in found[key(25)].facts


def test_file_names_stay_in_their_folder(root):
    shutil.copy(root / "val2014" / f"COCO_val2014_{key(26)}.jpg", root / "secret.jpg")
    names = ("../secret.jpg", str(root / "secret.jpg"), "a\\..\\b.jpg", "", "a\0b", "n" * 5000)

    def change(tree):
        entry = tree["images"][0]
        tree["images"] = [
            {**entry, "id": number, "file_name": name} for number, name in enumerate(names)
        ]

    edit(root, change)
    found = records(open_source(root))
    for number in range(len(names)):
        assert found[key(number)].reason == "unsupported_name"
        assert len(found[key(number)].detail) < 400


def test_broken_pictures_have_a_reason(root):
    path = root / "train2014" / f"COCO_train2014_{key(9)}.jpg"
    path.write_bytes(path.read_bytes()[:400])  # cut short: the header is whole
    (root / "train2014" / f"COCO_train2014_{key(25)}.jpg").write_bytes(b"")
    source = open_source(root)
    found = records(source)
    assert found[key(25)].reason == "unreadable_image"
    if found[key(9)].status == "ok":
        with pytest.raises(Exception, match="unreadable_image"):
            list(source.load(found[key(9)], OPTIONS))
    else:
        assert found[key(9)].reason == "unreadable_image"


def test_an_id_that_is_listed_twice_is_marked(root):
    edit(root, lambda tree: tree["images"].append(tree["images"][-1]))
    source = open_source(root)
    found = [record for record in map(source.inspect, source.items()) if record.key == key(9)]
    assert [record.status for record in found] == ["ok", "ok"]
    marked = list(without_duplicates(found))
    assert [record.reason for record in marked] == [None, "duplicate_key"]


def test_annotations_that_fit_nothing_are_told(root, caplog):
    def change(tree):
        tree["annotations"].append({"image_id": 777, "id": 1, "caption": "of no picture"})
        tree["annotations"].append({"image_id": 9, "id": 9000, "caption": "again"})

    edit(root, change)
    record = records(open_source(root))[key(9)]
    names = [name for name, _ in record.facts["captions"]]
    assert len(names) == len(set(names)) == 5
    assert "1 pictures have captions but are not listed" in caplog.text
    assert "1 captions repeat the id" in caplog.text


def test_half_a_character_does_no_harm(root):
    edit(root, lambda tree: tree["annotations"][0].update(caption="a \ud800 cat"))
    for record in records(open_source(root)).values():
        record_line(record).encode()


def test_items_come_sorted_and_the_same_again(tmp_path):
    root = tiny.write_coco(tmp_path / "coco", has_instances=True)
    before = tiny.contents(root)
    source = open_source(root)
    items = list(source.items())
    assert items == list(source.items()) == list(open_source(root).items())
    assert [item.name for item in items] == sorted(item.name for item in items)
    again = pickle.loads(pickle.dumps(source))
    for item in items:
        record = source.inspect(item)
        assert record_line(again.inspect(item)) == record_line(record)
        assert source.planned_keys(record, OPTIONS) == [record.key] == [item.name]
        if record.status == "ok":
            list(source.load(record, OPTIONS))
    coco.check(root)
    assert tiny.contents(root) == before


@pytest.mark.parametrize("size", [1, 7, 64])
def test_pieces_of_any_size_read_the_same(tmp_path, size, monkeypatch):
    root = tiny.write_coco(tmp_path / "coco", has_instances=True)
    expected = list(open_source(root).items())
    monkeypatch.setattr(coco, "_CHUNK", size)
    assert list(open_source(root).items()) == expected


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_white_space_and_a_byte_order_mark_do_not_matter(root, indent, mark):
    expected = list(open_source(root).items())
    path = root / "annotations" / "captions_train2014.json"
    path.write_text(mark + json.dumps(json.loads(path.read_text()), indent=indent) + "\r\n\n")
    assert list(open_source(root).items()) == expected


def test_a_long_file_is_read_in_pieces(tmp_path):
    path = tmp_path / "instances_train2014.json"
    entry = '{"segmentation": [[%s]], "image_id": %d, "bbox": [1, 2, 3, 4], "category_id": 1}'
    outline = ",".join(["1.25"] * 200)
    with path.open("w") as file:
        file.write('{"info": {}, "annotations": [')
        file.write(",".join(entry % (outline, number) for number in range(20_000)))
        file.write('], "categories": [{"id": 1, "name": "cat"}]}')
    start = time.process_time()
    found = coco.read_instances(path)
    assert len(found.objects) == 20_000
    assert time.process_time() - start < 10


BROKEN = [
    ("", "must go on with {"),
    ("[]", "must go on with {"),
    ("{", "Expecting"),
    ('{"images": [', "Expecting"),
    ('{"images": [{"id": 1, "file_name": "a"}', "must go on with ]"),
    ('{"images": [], "annotations": []} x', "something follows its end"),
    ('{"images": {}, "annotations": []}', "has no list images"),
    ('{"images": []}', "has no list annotations"),
    ('{"images": [1], "annotations": []}', r"images\[0\] must be an object: got 1"),
    ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\]: has no 'file_name'"),
    ('{"images": [{"id": "1", "file_name": ""}], "annotations": []}', r"images\[0\]: an id"),
    ('{"images": [{"id": true, "file_name": ""}], "annotations": []}', r"images\[0\]: an id"),
    ('{"images": [{"id": 1, "file_name": 5}], "annotations": []}', "must be text: got 5"),
    ('{"images": [], "annotations": [{"image_id": 1, "id": 1}]}', "has no 'caption'"),
    ('{"images": [{"id": NaN, "file_name": ""}], "annotations": []}', "must be finite: got NaN"),
    ('{"images": [{"id": %s, "file_name": ""}]}' % ("9" * 5000), "json files of MS COCO"),
    ('{"images": [%s' % ("[" * 100_000), "json files of MS COCO"),
    ("\x80", "json files of MS COCO"),
    ("version https://git-lfs.github.com/spec/v1", "must go on with {"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_broken_captions_are_an_error_of_one_line(root, text, words):
    path = root / "annotations" / "captions_train2014.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"ingest\.coco\.root .*unzip annotations_train") as caught:
        list(open_source(root).items())
    assert caught.match(words)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert any("captions_train2014.json" in finding.text for finding in coco.check(root))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.pop("categories"), "has no list categories"),
        (lambda tree: tree["categories"].pop(), "category_id 18 is not among its categories"),
        (lambda tree: tree["annotations"][0].update(bbox=[1, 2, 3]), "bbox must be four numbers"),
        (lambda tree: tree["annotations"][0].update(bbox=["1"] * 4), "bbox must be four numbers"),
        (lambda tree: tree["annotations"][0].update(bbox=None), r"annotations\[0\]"),
        (lambda tree: tree["annotations"][0].pop("image_id"), "has no 'image_id'"),
    ],
)
def test_broken_instances_are_an_error_of_one_line(tmp_path, change, words):
    root = tiny.write_coco(tmp_path / "coco", has_instances=True)
    edit(root, change, kind="instances")
    with pytest.raises(ValueError, match=r"ingest\.coco\.root .*instances_train2014") as caught:
        list(open_source(root).items())
    assert caught.match(words)
    assert "\n" not in str(caught.value)


def test_captions_in_the_place_of_instances(root):
    path = root / "annotations" / "captions_train2014.json"
    shutil.copy(path, root / "annotations" / "instances_train2014.json")
    with pytest.raises(ValueError, match="has no 'bbox'"):
        list(open_source(root).items())


def test_the_layout_of_2017_is_refused_with_a_hint(tmp_path):
    root = tmp_path / "coco"
    tiny.write_picture(root / "train2017" / "000000000009.jpg", (120, 90))
    tree = tiny.coco_json("train", {9: 5})
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(tree))
    with pytest.raises(
        ValueError, match=r"layout of 2017, .*train2014\.zip, val2014\.zip"
    ) as caught:
        open_source(root)
    assert "\n" not in str(caught.value)
    findings = coco.check(root)
    assert not any(finding.is_fine for finding in findings[:5])
    assert "2017" in findings[0].text
    # Beside the layout of 2014 it does no harm.
    shutil.copytree(tiny.write_coco(tmp_path / "other"), root, dirs_exist_ok=True)
    assert len(records(open_source(root))) == 6


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (["annotations"], r"no annotations/captions_train2014\.json; unzip annotations_trainval"),
        (["train2014"], r"captions_train2014\.json but no train2014/; unzip train2014\.zip"),
        (["val2014"], r"captions_val2014\.json but no val2014/; unzip val2014\.zip"),
        (["annotations/captions_val2014.json"], r"no annotations/captions_val2014\.json"),
        (["annotations", "train2014", "val2014"], r"no annotations/captions_train2014\.json"),
    ],
)
def test_what_is_missing_is_told_in_one_line(root, gone, words):
    for name in gone:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=r"ingest\.coco\.root must .*cocodataset\.org") as caught:
        open_source(root)
    assert caught.match(words)
    assert "\n" not in str(caught.value)


def test_one_split_alone_is_read_with_a_warning(tmp_path, caplog):
    root = tiny.write_coco(tmp_path / "coco", splits=["val"])
    assert list(records(open_source(root))) == [key(26)]
    assert "no split train" in caplog.text


def test_check_tells_every_part(root, tmp_path):
    findings = coco.check(root)
    told = "\n".join(finding.text for finding in findings)
    for words in (
        "train2014: 4 of 82,783 pictures; unzip train2014.zip of cocodataset.org again",
        "val2014: 1 of 40,504 pictures",
        "captions_train2014.json: 5 of 82,783 pictures, 19 of 414,113 captions",
        "captions_val2014.json: 1 of 40,504 pictures, 6 of 202,654 captions",
        "instances_train2014.json: not there; optional",
    ):
        assert words in told
    (tmp_path / "empty").mkdir()
    assert [finding.is_fine for finding in coco.check(tmp_path / "empty")] == [False] * 4 + [
        True
    ] * 2
    assert [finding.is_fine for finding in coco.check(tmp_path / "nothing")] == [False]


def test_every_item_of_the_stand_in_is_usable(tmp_path):
    embedded = pytest.importorskip("cdcd.data.embedded.coco")
    root = tmp_path / "download"
    embedded.write_download(root, seed=0, num_train=5, num_val=3, image_height=64)
    found = records(open_source(root))
    assert Counter((r.split, r.status) for r in found.values()) == {
        ("train", "ok"): 5,
        ("val", "ok"): 3,
    }
    for record in found.values():
        assert len(record.facts["captions"]) >= 5
        assert record.facts["categories"]
        assert all("color" in item["attributes"] for item in record.facts["objects"])
        assert record.licence == "Synthesised by this project"
