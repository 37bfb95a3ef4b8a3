import json
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest

from cdcd.config import Cub200Embedded, Cub200Source
from cdcd.data import pickles
from cdcd.data.adapters import cub200
from cdcd.data.adapters.base import Options
from cdcd.data.manifest import record_line
from cdcd.data.samples import safe_key
from tests.cdcd.data import tiny_pictures as tiny

OPTIONS = Options(segment_seconds=2, video_fps=15, video_height=48, image_size=256)
NAMES = {split: [] for split in ("train", "test")}
for _folder, _split in tiny.CUB_CLASSES.items():
    NAMES[_split] += tiny.CUB_NAMES[_folder]


def setting(split="stackgan"):
    embedded = Cub200Embedded(num_species=11, images_per_species=2, image_height=64)
    return Cub200Source(root=None, split=split, embedded=embedded)


def open_source(root, split="stackgan"):
    return cub200.open_source(setting(split), root)


def records(source):
    return {record.key: record for record in map(source.inspect, source.items())}


def by_split(source):
    names = {}
    for item in source.items():
        names.setdefault(item.split, []).append(item.name)
    return names


def missing(*names):
    return sorted([*NAMES["train"], tiny.CUB_MISSING, *names])


@pytest.fixture
def root(tmp_path):
    return tiny.write_cub(tmp_path / "cub", has_attributes=True)


LAYOUTS = [
    {"images": images, "captions": captions, "pickles": pickles}
    for images, captions, pickles in (
        ("images", "text/text", ""),
        ("CUB_200_2011/images", "text", ""),
        ("CUB_200_2011/images", "text_c10", ""),
        ("CUB_200_2011/images", "birds/text/text", "birds"),
        ("CUB_200_2011/images", "birds/text", "birds"),
        ("images", "CUB_200_2011/text_c10", "CUB_200_2011"),
    )
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    source = open_source(tiny.write_cub(tmp_path / "cub", **layout))
    assert by_split(source) == {"train": missing(), "test": NAMES["test"]}
    usable = [r for r in records(source).values() if r.status == "ok"]
    assert len(usable) == 12
    assert {r.facts["image"].rpartition("/0")[0] for r in usable} == {f"root/{layout['images']}"}
    assert all(f"root/{layout['captions']}/" in " ".join(r.sources) for r in usable)
    assert json.loads(json.dumps(source.settings)) == source.settings


def test_a_folder_too_high_or_too_low(tmp_path):
    root = tiny.write_cub(tmp_path / "data" / "CUB")
    for given in (tmp_path / "data", root, root / "CUB_200_2011", root / "text"):
        source = open_source(given)
        assert source.roots == {"root": root}
        assert source.num_items() == 13


def test_an_empty_inner_text_folder_is_not_where_captions_are(tmp_path):
    root = tiny.write_cub(tmp_path / "cub", captions="text")
    (root / "text" / "text").mkdir()
    assert open_source(root).settings["captions"] == "text"


@pytest.mark.parametrize("crlf", [False, True])
def test_stackgan_counts(tmp_path, crlf):
    source = open_source(tiny.write_cub(tmp_path / "cub", crlf=crlf, has_attributes=True))
    assert by_split(source) == {"train": missing(), "test": NAMES["test"]}
    assert source.num_items() == 13
    found = records(source)
    assert Counter((r.split, r.reason) for r in found.values()) == {
        ("train", None): 6,
        ("train", "missing_image"): 1,
        ("test", None): 6,
    }
    classes = {split: {r.label for r in found.values() if r.split == split} for split in NAMES}
    assert classes == {"train": {1, 2, None}, "test": {0, 3}}
    assert source.expected().items == {"train": 8_855, "test": 2_933}
    assert source.expected().samples["test"] == 29_330


def test_official_counts_and_no_mixing(root):
    assert (root / "train" / "filenames.pickle").is_file()
    (root / "train" / "filenames.pickle").write_bytes(b"not read")
    source = open_source(root, "official")
    names = by_split(source)
    assert {split: len(group) for split, group in names.items()} == {"train": 8, "test": 4}
    every = sorted(NAMES["train"] + NAMES["test"])
    assert names["test"] == every[2::3]
    assert sorted(names["train"] + names["test"]) == every
    assert source.expected().items == {"train": 5_994, "test": 5_794}


def test_an_official_split_is_not_read_for_stackgan(root):
    (root / "CUB_200_2011" / "train_test_split.txt").write_text("damaged")
    assert open_source(root).num_items() == 13


@pytest.mark.parametrize("has_lists", [True, False])
@pytest.mark.parametrize("crlf", [True, False])
def test_the_split_is_rebuilt_without_pickles(tmp_path, has_lists, crlf):
    root = tiny.write_cub(tmp_path / "cub", pickles=None, has_lists=has_lists, crlf=crlf)
    # macOS leaves such files beside the real ones.
    junk = root / "CUB_200_2011" / "images" / "002.Laysan_Albatross" / "._Laysan.jpg"
    junk.write_bytes(b"x")
    source = open_source(root)
    assert by_split(source) == NAMES
    assert all(r.status == "ok" for r in records(source).values())
    assert source.settings["listed_by"] == ("images.txt" if has_lists else "images")


def test_the_published_test_classes():
    assert len(cub200.TEST_CLASSES) == 50
    assert sum(cub200.TEST_CLASSES) == 4474
    assert sum(cub200.STACKGAN_ITEMS.values()) == cub200.NUM_IMAGES
    assert sum(cub200.OFFICIAL_ITEMS.values()) == cub200.NUM_IMAGES


@pytest.mark.parametrize("kind", ["bytes", "text", "array", "protocol 2"])
def test_names_as_bytes_text_or_array(root, kind):
    names = {"bytes": [b" " + n.encode() + b"\r" for n in NAMES["test"]],
             "text": [f"{n}\r\n" for n in NAMES["test"]],
             "array": np.array([n.encode() for n in NAMES["test"]]),
             "protocol 2": tuple(NAMES["test"])}[kind]  # fmt: skip
    path = root / "test" / "filenames.pickle"
    path.write_bytes(pickle.dumps(names, protocol=2 if kind != "text" else 0))
    assert by_split(open_source(root))["test"] == NAMES["test"]


@pytest.mark.parametrize("crlf", [True, False])
def test_class_info_loads_and_is_optional(tmp_path, crlf):
    root = tiny.write_cub(tmp_path / "cub", crlf=crlf)
    assert pickles.load(root / "test" / "class_info.pickle") == [1, 1, 1, 4, 4, 4]
    for split in NAMES:
        (root / split / "class_info.pickle").unlink()
    assert open_source(root).num_items() == 13


class Exploit:
    def __reduce__(self):
        import os

        return os.system, ("echo ran",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (pickle.dumps(Exploit()), r"filenames\.pickle: .*posix\.system.*not loaded"),
        (pickle.dumps(["a"])[:5], r"filenames\.pickle: .*well formed.*download it again"),
        (pickle.dumps({"a": 1}), r"must be a list of names: it holds dict; unpack"),
        (pickle.dumps([1]), r"must be a list of names: it holds int; unpack"),
    ],
)
def test_bad_pickles_are_an_error_of_one_line(root, value, words, capfd):
    (root / "test" / "filenames.pickle").write_bytes(value)
    with pytest.raises(ValueError, match=words) as caught:
        open_source(root)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_pictures(root):
    source = open_source(root)
    pictures = {}
    for record in records(source).values():
        if record.status == "ok":
            ((listed, picture),) = source.load(record, OPTIONS)
            assert listed.key == picture.key == record.key == safe_key(record.key)
            pictures[record.key] = picture
    shapes = Counter(picture.image.shape for picture in pictures.values())
    # Of shorter sides above 256 that much is kept; smaller pictures stay as they are.
    assert shapes == {(90, 120, 3): 3, (256, 384, 3): 4, (384, 256, 3): 4, (256, 256, 3): 1}
    grey = pictures[safe_key(tiny.CUB_NAMES["002.Laysan_Albatross"][1])].image
    assert (grey[..., 0] == grey[..., 1]).all()
    key = safe_key(tiny.CUB_NAMES["001.Black_footed_Albatross"][0])
    assert key == "001~Black_footed_Albatross~Black_Footed_Albatross_0001_11"
    first = pictures[key]
    assert (first.split, first.label) == ("test", 0)
    assert first.meta["class"] == "Black footed Albatross"
    assert first.meta["licence"] == cub200.Cub200.licence
    assert [caption.name for caption in first.captions] == [str(n) for n in range(10)]
    assert first.captions[3].text == "this bird is number 3 of bla."
    assert first.pairs()[3] == (f"{key}_3", first.captions[3].text)


def test_caption_files_as_they_are(root):
    captions = root / "text" / "text"
    names = NAMES["train"]
    (captions / f"{names[2]}.txt").unlink()
    (captions / f"{names[3]}.txt").write_bytes(b"\n \n\t\r\n")
    (captions / f"{names[4]}.txt").write_bytes(b"")
    many = b"\xef\xbb\xbfOne\r\n\r\nTwo\xe2\x80\xa8lines\rThree" + b"\nMore" * 12
    (captions / f"{names[5]}.txt").write_bytes(many)
    found = records(open_source(root))

    def captions_of(name):
        return found[safe_key(name)].facts["captions"]

    assert len(captions_of(tiny.CUB_SHORT)) == 9
    assert captions_of(tiny.CUB_LATIN)[3] == ["3", "a bird on a caf\ufffd chair"]
    for name in names[2:5]:
        assert found[safe_key(name)].reason == "missing_caption"
    assert captions_of(names[5])[:4] == [
        ["0", "one"],
        ["2", "two lines"],  # a separator that is no line end of these files
        ["3", "three"],
        ["4", "more"],
    ]
    assert len(captions_of(names[5])) == 15


def test_skipped_pictures_have_reasons(root):
    images = root / "CUB_200_2011" / "images"
    (images / f"{NAMES['train'][0]}.jpg").write_bytes(b"no picture")
    names = [
        *NAMES["test"],
        "../../secret/x",
        "/etc/x",
        "a/b/c",
        "",
        "x/.hidden",
        "201.New/a",
        "Z/a",
    ]
    (root / "test" / "filenames.pickle").write_bytes(pickle.dumps(names))
    found = {r.detail or r.key: r.reason for r in records(open_source(root)).values()}
    reasons = Counter(reason for reason in found.values() if reason)
    assert reasons == {
        "unreadable_image": 1,
        "missing_image": 1,
        "unsupported_name": 5,
        "missing_label": 2,
    }


def test_the_file_extension_may_vary(root):
    images = root / "CUB_200_2011" / "images"
    for name, end in zip(NAMES["test"], (".JPG", ".jpeg", ".JPEG"), strict=False):
        (images / f"{name}.jpg").rename(images / f"{name}{end}")
    assert sum(r.status == "ok" for r in records(open_source(root)).values()) == 12


def test_class_numbers_from_classes_txt(tmp_path):
    root = tiny.write_cub(tmp_path / "cub", pickles=None)
    base = root / "CUB_200_2011"
    for folder in (base / "images", root / "text" / "text"):
        (folder / "004.Groove_billed_Ani").rename(folder / "Ani")
    for name in ("images.txt", "classes.txt"):
        text = (base / name).read_text()
        (base / name).write_text(text.replace("004.Groove_billed_Ani", "Ani"))
    record = records(open_source(root))["Ani~Groove_Billed_Ani_0001_41"]
    assert (record.label, record.split, record.status) == (3, "test", "ok")
    assert record.facts["class"] == "Ani"


@pytest.mark.parametrize("place", ["beside", "inside"])
@pytest.mark.parametrize("crlf", [True, False])
def test_attributes(tmp_path, place, crlf, caplog):
    root = tiny.write_cub(tmp_path / "cub", has_attributes=True, crlf=crlf)
    if place == "inside":
        folder = root / "CUB_200_2011" / "attributes"
        (root / "attributes.txt").rename(folder / "attributes.txt")
    found = records(open_source(root))
    names = [name for group in tiny.CUB_NAMES.values() for name in group]
    for number, name in enumerate(names, start=1):
        seen = [a for i, a in enumerate(tiny.CUB_ATTRIBUTES, start=1) if number % (i + 1) == 0]
        assert found[safe_key(name)].facts["attributes"] == sorted(seen)
    assert "1 lines are not" in caplog.text


def test_without_attributes_there_is_no_such_fact(root):
    (root / "attributes.txt").unlink()
    usable = [r for r in records(open_source(root)).values() if r.status == "ok"]
    assert all("attributes" not in record.facts for record in usable)


def test_items_come_sorted_and_the_same_again(root):
    before = tiny.contents(root)
    source = open_source(root)
    items = list(source.items())
    assert items == list(source.items()) == list(open_source(root).items())
    keys = [safe_key(item.name) for item in items]
    assert keys == sorted(keys)
    assert len(items) == source.num_items()
    again = pickle.loads(pickle.dumps(source))
    for item in items:
        record = source.inspect(item)
        assert record_line(again.inspect(item)) == record_line(record)
        assert source.planned_keys(record, OPTIONS) == [record.key]
        if record.status == "ok":
            list(source.load(record, OPTIONS))
    cub200.check(root)
    assert tiny.contents(root) == before


def test_classes_of_train_and_test_may_not_meet(root):
    names = [*NAMES["test"], "002.Laysan_Albatross/other"]
    (root / "test" / "filenames.pickle").write_bytes(pickle.dumps(names))
    with pytest.raises(ValueError, match=r"classes apart: .* share 1, first '002\.Laysan"):
        open_source(root)


def _remove(*paths):
    def change(root):
        for path in paths:
            target = root / path
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


@pytest.mark.parametrize(
    ("split", "change", "words"),
    [
        ("stackgan", _remove("text"), r"root must .* no text/text/<class>.*birds metadata archive"),
        ("stackgan", _remove("CUB_200_2011"), r"root must .* no images/<class>.*CUB_200_2011\.tgz"),
        ("stackgan", _remove("test"), r"split: stackgan .* no test/filenames\.pickle.*metadata"),
        ("official", _remove("CUB_200_2011/images.txt"), r"split: official .* no images\.txt"),
        (
            "official",
            _remove("CUB_200_2011/train_test_split.txt"),
            r"split: official .* no train_test_split\.txt.*CUB_200_2011\.tgz",
        ),
        (
            "official",
            lambda root: (root / "CUB_200_2011" / "train_test_split.txt").write_text("1 1\n"),
            r"1 or 0 for every picture .* got None for picture 2; unpack",
        ),
        (
            "official",
            lambda root: (root / "CUB_200_2011" / "images.txt").write_text("1 a/b.jpg\n2\n"),
            r"images\.txt line 2 must be an id and a value: got '2'; unpack",
        ),
        (
            "stackgan",
            lambda root: [
                (root / s / "filenames.pickle").write_bytes(pickle.dumps([])) for s in NAMES
            ],
            r"root must list pictures: .* lists none",
        ),
    ],
)
def test_what_is_missing_is_told_in_one_line(root, split, change, words):
    change(root)
    with pytest.raises(ValueError, match=r"ingest\.cub200\.|images\.txt line") as caught:
        open_source(root, split)
    assert caught.match(words)
    assert "\n" not in str(caught.value)


def test_check_tells_every_part(root, tmp_path):
    told = "\n".join(finding.text for finding in cub200.check(root))
    for words in (
        "CUB_200_2011/images: 12 of 11,788 pictures, 4 of 200 classes",
        "text/text: captions of 12 of 11,788 pictures",
        "split stackgan (from filenames.pickle): train 7 of 8,855, test 6 of 2,933",
        "split official (from train_test_split.txt): train 8 of 5,994, test 4 of 5,794",
        "3 attributes (optional)",
    ):
        assert words in told
    assert not any(finding.is_fine for finding in cub200.check(root)[:4])
    (tmp_path / "empty").mkdir()
    findings = cub200.check(tmp_path / "empty")
    assert [finding.is_fine for finding in findings] == [False] * 4 + [True]
    assert "CUB_200_2011.tgz" in findings[0].text
    assert "birds metadata archive" in findings[1].text
    assert [f.is_fine for f in cub200.check(tmp_path / "nothing")] == [False]


def test_check_goes_on_behind_damage(root):
    (root / "test" / "filenames.pickle").write_bytes(b"damaged")
    (root / "CUB_200_2011" / "train_test_split.txt").write_bytes(b"\x00\xff")
    findings = cub200.check(root)
    assert len(findings) == 5
    assert "filenames.pickle" in findings[2].text
    assert all("\n" not in finding.text for finding in findings)


def test_every_item_of_the_stand_in_is_usable(tmp_path):
    embedded = pytest.importorskip("cdcd.data.embedded.cub200")
    root = tmp_path / "download"
    embedded.write_download(root, seed=0, num_species=11, images_per_species=2, image_height=48)
    for split, classes in (("stackgan", 0), ("official", 11)):
        source = open_source(root, split)
        found = records(source)
        assert len(found) == source.num_items() == 22
        assert all(record.status == "ok" for record in found.values())
        labels = [{r.label for r in found.values() if r.split == s} for s in NAMES]
        assert len(labels[0] & labels[1]) == classes
        assert all(len(r.facts["captions"]) == 10 for r in found.values())
        assert all(len(r.facts["attributes"]) == 6 for r in found.values())
