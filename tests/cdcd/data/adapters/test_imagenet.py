import io
import json
import os
import pickle
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cdcd.config import ImagenetEmbedded, ImagenetSource
from cdcd.data.adapters import imagenet
from cdcd.data.adapters.base import Options
from cdcd.data.manifest import CHOSEN_REASONS, SkipItem, without_duplicates
from cdcd.data.samples import safe_key

OPTIONS = Options(segment_seconds=2, video_fps=30, video_height=48, image_size=32)

# Official wnids and, in the order of the official kit, ids that are not in sorted order.
WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n02017213": "crane",
}
WNIDS = sorted(WORDS)
KIT_IDS = {"n01440764": 3, "n01443537": 1, "n02017213": 2}
TRAIN = [f"{wnid}/{wnid}_{number}" for wnid in WNIDS for number in (10026, 9)]
# The numbers of val pictures say nothing about their classes.
VAL = {1: "n02017213", 2: "n01440764", 3: "n01443537"}
VAL |= {4: "n01440764", 5: "n02017213", 6: "n01443537"}


def val_stem(number):
    return f"ILSVRC2012_val_{number:08d}"


def picture(seed, kind="JPEG", mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def content(index):
    """A CMYK picture, a PNG in JPEG's clothes, one cut short, and ordinary ones."""
    match index:
        case 0:
            return picture(0, mode="CMYK")
        case 1:
            return picture(1, "PNG")
        case 2:
            return picture(2)[:700]
    return picture(index)


def write(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def write_train(folder):
    for i, name in enumerate(TRAIN):
        write(folder / f"{name}.JPEG", content(i))


def write_flat_val(folder):
    for number in VAL:
        write(folder / f"{val_stem(number)}.JPEG", picture(100 + number))


def write_sorted_val(folder):
    for number, wnid in VAL.items():
        write(folder / wnid / f"{val_stem(number)}.JPEG", picture(100 + number))


def synsets(ids=KIT_IDS, words=WORDS):
    """The kit's table: leaves first, by id, then a node above them."""
    kinds = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
        ("children", object),
        ("wordnet_height", object),
        ("num_train_images", object),
    ]
    rows = [
        (float(ids[wnid]), wnid, words[wnid], "a gloss", 0.0, np.zeros((1, 0)), 0.0, 1300.0)
        for wnid in sorted(ids, key=ids.__getitem__)
    ]
    rows.append((1001.0, "n00001740", "entity", "a gloss", 3.0, np.array([[1.0, 2.0]]), 9.0, 0.0))
    table = np.empty((len(rows), 1), dtype=kinds)
    for i, row in enumerate(rows):
        table[i, 0] = row
    return table


def write_devkit(folder, val=VAL, ids=KIT_IDS):
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "meta.mat", {"synsets": synsets(ids)}, do_compression=True)
    lines = [str(ids[val[number]]) for number in sorted(val)]
    write(folder / "ILSVRC2012_validation_ground_truth.txt", "\n".join(lines) + "\n")


def layout_a(root):
    write_train(root / "train")
    write_sorted_val(root / "val")


def layout_b(root, devkit="ILSVRC2012_devkit_t12/data"):
    write_train(root / "train")
    write_flat_val(root / "val")
    write_devkit(root / devkit)


def solution(val=VAL):
    lines = [
        f"{val_stem(number)},{wnid} 85 1 499 272 {wnid} 1 2 3 4" for number, wnid in val.items()
    ]
    return "ImageId,PredictionString\n" + "\n".join(reversed(lines)) + "\n"


def layout_c(root, with_solution=True):
    folder = root / "ILSVRC" / "Data" / "CLS-LOC"
    write_train(folder / "train")
    write_flat_val(folder / "val")
    write(folder / "test" / "ILSVRC2012_test_00000001.JPEG", picture(7))
    names = [f"{val_stem(number)} {number}" for number in VAL]
    write(root / "ILSVRC" / "ImageSets" / "CLS-LOC" / "val.txt", "\n".join(names))
    write(
        root / "LOC_synset_mapping.txt",
        "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()),
    )
    if with_solution:
        write(root / "LOC_val_solution.csv", solution())


def layout_d(root):
    write_train(root / "pool")
    write_sorted_val(root / "pool")
    # Blanks and a label after the name, CRLF, a BOM, a blank line, no line end at the end.
    write(root / "train.txt", "\ufeff" + "\r\n".join(f"{x}.JPEG 7" for x in reversed(TRAIN)))
    lines = [f"{wnid}/{val_stem(number)}.JPEG" for number, wnid in VAL.items()]
    write(root / "val.txt", "\n".join([*lines, "", ""]))


def setting(root=None, train_list=None, val_list=None):
    size = ImagenetEmbedded(train_per_class=2, val_per_class=1, image_height=64)
    return ImagenetSource(root=root, train_list=train_list, val_list=val_list, embedded=size)


def opened(root):
    return imagenet.open_source(setting(), root)


def opened_lists(root):
    lists = {"train_list": str(root / "train.txt"), "val_list": str(root / "val.txt")}
    return imagenet.open_source(setting(**lists), root / "pool")


LAYOUTS = {
    "class_folders": (layout_a, opened),
    "official": (layout_b, opened),
    "kaggle": (layout_c, opened),
    "lists": (layout_d, opened_lists),
}


@pytest.fixture(params=LAYOUTS)
def source(request, tmp_path):
    build, open_it = LAYOUTS[request.param]
    build(tmp_path / "in")
    found = open_it(tmp_path / "in")
    assert found.settings["layout"] == request.param
    return found


def records(source):
    return [source.inspect(item) for item in source.items()]


def by_stem(source):
    return {item.name.rpartition("/")[2]: item for item in source.items()}


def skips(source):
    found = without_duplicates(records(source))
    return {record.key: record.reason for record in found if record.status == "skipped"}


# All layouts


def test_every_layout_gives_equal_labels_for_equal_pictures(source):
    found = by_stem(source)
    expected = {name.partition("/")[2]: name[:9] for name in TRAIN}
    expected |= {val_stem(number): wnid for number, wnid in VAL.items()}
    assert {stem: item.label for stem, item in found.items()} == {
        stem: WNIDS.index(wnid) for stem, wnid in expected.items()
    }
    for stem, item in found.items():
        assert item.split == ("val" if "val" in stem else "train")
        assert dict(item.facts)["wnid"] == expected[stem]


def test_every_layout_has_its_published_keys_in_order(source):
    keys = [record.key for record in records(source)]
    assert keys == sorted(keys)
    assert set(keys) >= {safe_key(name) for name in TRAIN}
    is_flat = source.settings["layout"] in ("official", "kaggle")
    assert set(keys) >= {
        f"val~{val_stem(number)}" if is_flat else f"{wnid}~{val_stem(number)}"
        for number, wnid in VAL.items()
    }
    assert len(keys) == len(TRAIN) + len(VAL)


def test_every_layout_finds_the_files_that_it_names(source):
    for item in source.items():
        assert source.resolve(item.path).name == item.name.rpartition("/")[2] + ".JPEG"
        assert source.resolve(item.path).is_file()


def test_only_the_truncated_picture_is_lost_and_nothing_takes_its_place(source):
    found = records(source)
    assert {record.status for record in found} == {"ok"}  # headers are whole
    lost, pictures = [], {}
    for record in found:
        try:
            [(listed, loaded)] = source.load(record, OPTIONS)
        except SkipItem as skip:
            lost.append((record.key, skip.reason))
            continue
        assert listed.key == loaded.key == record.key == source.planned_keys(record, OPTIONS)[0]
        assert loaded.image.shape == (32, 40, 3)
        assert loaded.label == record.label
        assert loaded.meta["wnid"] == WNIDS[record.label]
        pictures[record.key] = record.facts
    assert lost == [(safe_key(TRAIN[2]), "unreadable_image")]
    assert pictures[safe_key(TRAIN[0])]["mode"] == "CMYK"
    assert pictures[safe_key(TRAIN[1])]["format"] == "PNG"


def test_nothing_is_written_into_the_download(source, tmp_path):
    def state():
        return {
            path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in sorted((tmp_path / "in").rglob("*"))
        }

    before = state()
    for path in (tmp_path / "in").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for record in records(source):
        try:
            list(source.load(record, OPTIONS))
        except SkipItem:
            continue
    imagenet.check(tmp_path / "in")
    for path in (tmp_path / "in").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert state() == before


def test_a_source_is_its_roots_and_settings(source):
    settings = json.loads(json.dumps(source.settings))
    again = imagenet.Imagenet(source.roots, settings)
    assert list(again.items()) == list(source.items())
    assert list(pickle.loads(pickle.dumps(source)).items()) == list(source.items())
    assert len(pickle.dumps(source)) < 2000  # it goes to a worker with every task


def test_items_come_while_later_folders_are_unread(tmp_path, monkeypatch):
    layout_a(tmp_path)
    found = opened(tmp_path)
    scanned = []
    listed = imagenet._listed
    monkeypatch.setattr(imagenet, "_listed", lambda path: scanned.append(path.name) or listed(path))
    assert len(list(islice(found.items(), 2))) == 2
    assert WNIDS[2] not in scanned


def test_the_published_counts():
    expected = imagenet.Imagenet({}, {}).expected()
    assert expected.items == {"train": 1_281_167, "val": 50_000}
    assert expected.samples == {"train": 1_281_166, "val": 50_000}
    assert imagenet.Imagenet({}, {}).num_items() is None


# Classes


def test_the_kits_ids_are_not_labels(tmp_path):
    layout_b(tmp_path)
    found = by_stem(opened(tmp_path))
    for number, wnid in VAL.items():
        label = found[val_stem(number)].label
        assert label == WNIDS.index(wnid)
        assert label != KIT_IDS[wnid] - 1


@pytest.mark.parametrize("devkit", ["ILSVRC2012_devkit_t12/data", "data", "devkit/data", "."])
def test_places_of_the_kit(tmp_path, devkit):
    layout_b(tmp_path, devkit)
    assert by_stem(opened(tmp_path))[val_stem(1)].label == 2


def test_names_come_from_the_class_index_and_may_be_equal(tmp_path):
    layout_a(tmp_path)
    index = {"0": [WNIDS[2], "crane"], "1": [WNIDS[0], "crane"], "2": [WNIDS[1], "maillot"]}
    write(tmp_path / "class_index.json", json.dumps(index))
    found = opened(tmp_path)
    assert found.settings["num_classes"] == 3
    items = {dict(item.facts)["wnid"]: (item.label, item.class_name) for item in found.items()}
    assert items == {
        WNIDS[0]: (1, "crane"),
        WNIDS[1]: (2, "maillot"),
        WNIDS[2]: (0, "crane"),
    }


def test_classes_of_equal_names_stay_apart_in_every_table(tmp_path):
    layout_b(tmp_path)
    words = dict.fromkeys(WNIDS, "crane")
    savemat(tmp_path / "ILSVRC2012_devkit_t12/data/meta.mat", {"synsets": synsets(words=words)})
    items = list(opened(tmp_path).items())
    assert {item.class_name for item in items} == {"crane"}
    assert {item.label for item in items} == {0, 1, 2}


@pytest.mark.parametrize(
    ("layout", "name"), [("class_folders", "n01440764"), ("official", "tench"), ("kaggle", "tench")]
)
def test_names_come_from_the_tables_there_are(tmp_path, layout, name):
    LAYOUTS[layout][0](tmp_path)
    found = by_stem(opened(tmp_path))
    assert found["n01440764_9"].class_name == name
    record = opened(tmp_path).inspect(found["n01440764_9"])
    assert record.facts["class"] == name


def test_a_class_index_with_more_classes_keeps_the_official_labels(tmp_path):
    layout_a(tmp_path)
    shutil.rmtree(tmp_path / "train" / WNIDS[0])
    index = {str(i): [wnid, "x"] for i, wnid in enumerate(WNIDS)}
    write(tmp_path / "class_index.json", json.dumps(index))
    assert by_stem(opened(tmp_path))["n02017213_9"].label == 2


def test_a_class_outside_the_class_index_has_no_label(tmp_path):
    layout_a(tmp_path)
    write(tmp_path / "class_index.json", json.dumps({"0": [WNIDS[0], "tench"]}))
    found = skips(opened(tmp_path))
    assert found["n02017213~n02017213_9"] == "missing_label"
    assert len(found) == 8


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "7",
        "[" * 100_000,
        '{"0": "n01440764"}',
        '{"0": []}',
        '{"0": [5, "tench"]}',
        '{"1": ["n01440764", "tench"]}',
        '{"a": ["n01440764", "tench"]}',
        '{"0": ["tench", "n01440764"]}',
        '{"0": ["n01440764", "a"], "1": ["n01440764", "b"]}',
    ],
)
def test_a_class_index_of_another_shape_is_refused(tmp_path, text):
    layout_a(tmp_path)
    write(tmp_path / "class_index.json", text)
    told = one_line(tmp_path)
    assert told.startswith("ingest.imagenet.root must hold a whole class_index.json: got ")
    assert "or remove it" in told


def test_a_val_class_that_train_does_not_have_has_no_label(tmp_path):
    layout_a(tmp_path)
    write(tmp_path / "val" / "n03126707" / f"{val_stem(7)}.JPEG", picture(7))
    found = opened(tmp_path)
    assert skips(found) == {f"n03126707~{val_stem(7)}": "missing_label"}
    assert by_stem(found)[val_stem(1)].label == 2
    [record] = [r for r in records(found) if r.status == "skipped"]
    assert (record.label, record.split) == (None, "val")


def test_a_flat_val_picture_of_a_class_that_train_does_not_have_has_no_label(tmp_path):
    layout_b(tmp_path)
    shutil.rmtree(tmp_path / "train" / WNIDS[0])
    found = opened(tmp_path)
    lost = [number for number, wnid in VAL.items() if wnid == WNIDS[0]]
    assert skips(found) == {f"val~{val_stem(n)}": "missing_label" for n in lost}


# Flat val folders


def test_val_pictures_beyond_the_ground_truth_have_no_label(tmp_path):
    layout_b(tmp_path)
    for name in (val_stem(0), val_stem(7), "holiday"):
        write(tmp_path / "val" / f"{name}.JPEG", picture(7))
    write_devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data")
    found = skips(opened(tmp_path))
    assert found == dict.fromkeys(
        (f"val~{val_stem(0)}", f"val~{val_stem(7)}", "val~holiday"), "missing_label"
    )


def test_ids_that_the_kit_does_not_explain_have_no_label(tmp_path):
    layout_b(tmp_path)
    write(
        tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
        "2\r\n3\r\n1\r\n3\r\n2\r\n999\r\n",
    )
    found = opened(tmp_path)
    assert skips(found) == {f"val~{val_stem(6)}": "missing_label"}
    assert by_stem(found)[val_stem(5)].label == 2


@pytest.mark.parametrize("text", ["2\n\n3\n1\n3\n2\n1\n", "2\nn01440764\n", "9" * 40])
def test_a_ground_truth_without_one_id_per_line_is_refused(tmp_path, text):
    # A blank line left out would give every later picture its neighbour's class.
    layout_b(tmp_path)
    write(tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", text)
    told = one_line(tmp_path)
    assert "must hold a whole ILSVRC2012_validation_ground_truth.txt" in told
    assert "ILSVRC2012_devkit_t12.tar.gz of image-net.org" in told


def broken_metas():
    good = io.BytesIO()
    savemat(good, {"synsets": synsets()})
    data = good.getvalue()
    other = io.BytesIO()
    savemat(other, {"classes": synsets()})
    flat = io.BytesIO()
    savemat(flat, {"synsets": np.eye(3)})
    twice = io.BytesIO()
    savemat(twice, {"synsets": synsets(dict.fromkeys(WNIDS, 1))})
    unnamed = io.BytesIO()
    savemat(
        unnamed,
        {"synsets": synsets({"tench": 1}, {"tench": "n01440764"})},
    )
    return {
        "empty": b"",
        "text": b"not a table\n" * 40,
        "short": data[: len(data) // 2],
        "another_table": other.getvalue(),
        "numbers": flat.getvalue(),
        "ids_twice": twice.getvalue(),
        "no_wnids": unnamed.getvalue(),
        "newer_format": b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(500),
        "zeros": bytes(1000),
    }


@pytest.mark.parametrize("kind", broken_metas())
def test_a_broken_meta_is_refused_in_one_line(tmp_path, kind):
    layout_b(tmp_path)
    write(tmp_path / "ILSVRC2012_devkit_t12/data/meta.mat", broken_metas()[kind])
    told = one_line(tmp_path)
    assert told.startswith("ingest.imagenet.root must hold a whole meta.mat: got ")
    assert told.endswith("unpack ILSVRC2012_devkit_t12.tar.gz of image-net.org again")


def test_damage_to_a_meta_does_not_end_the_program(tmp_path):
    # Among these are some that SciPy does not survive.
    path = tmp_path / "meta.mat"
    savemat(path, {"synsets": synsets()})
    data = path.read_bytes()
    told = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for place in rng.integers(128, len(data), 30):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="whole meta") as caught:
            imagenet.read_meta(path)
        told.append(str(caught.value))
    assert not any("\n" in text for text in told)


def test_a_reader_that_dies_is_told_like_any_damage(tmp_path, monkeypatch):
    layout_b(tmp_path)
    monkeypatch.setattr(imagenet, "_META_READER", "import os; os.abort()")
    assert "SciPy does not survive it" in one_line(tmp_path)
    imagenet._meta.cache_clear()
    monkeypatch.setattr(imagenet, "_META_READER", "import time; time.sleep(60)")
    monkeypatch.setattr(imagenet, "READ_SECONDS", 0.2)
    assert "timed out" in one_line(tmp_path)


def test_a_broken_meta_does_not_matter_where_val_has_class_folders(tmp_path):
    layout_a(tmp_path)
    write(tmp_path / "data" / "meta.mat", b"broken")
    assert by_stem(opened(tmp_path))["n01440764_9"].class_name == "n01440764"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must hold a whole LOC_val_solution.csv"),
        ("ImageId,PredictionString\n", "no line like"),
        ('a,"' + "x" * 200_000, "must hold a whole LOC_val_solution.csv"),
    ],
)
def test_a_broken_solution_is_refused(tmp_path, text, told):
    layout_c(tmp_path)
    write(tmp_path / "LOC_val_solution.csv", text)
    assert told in one_line(tmp_path)


def test_pictures_that_the_solution_leaves_out_or_gives_two_classes_have_no_label(tmp_path):
    layout_c(tmp_path)
    lines = "\r\n".join(
        f"{val_stem(n)},{wnid} 1 2 3 4" for n, wnid in VAL.items() if n not in (1, 2)
    )
    write(tmp_path / "LOC_val_solution.csv", f"{lines}\r\n{val_stem(2)},{WNIDS[0]} 1 {WNIDS[1]} 1")
    found = dict.fromkeys((f"val~{val_stem(1)}", f"val~{val_stem(2)}"), "missing_label")
    assert skips(opened(tmp_path)) == found


def test_kaggle_annotations_say_the_class_where_the_solution_is_missing(tmp_path):
    layout_c(tmp_path, with_solution=False)
    folder = tmp_path / "ILSVRC" / "Annotations" / "CLS-LOC" / "val"
    for number, wnid in VAL.items():
        boxes = f"<object><name>{wnid}</name></object>" * 2
        write(folder / f"{val_stem(number)}.xml", f"<annotation>{boxes}</annotation>")
    (folder / f"{val_stem(6)}.xml").unlink()
    found = opened(tmp_path)
    assert found.settings["labels"]["kind"] == "annotations"
    assert skips(found) == {f"val~{val_stem(6)}": "missing_label"}
    assert by_stem(found)[val_stem(4)].label == 0


def test_a_list_of_names_alone_is_not_taken_for_labels(tmp_path):
    layout_c(tmp_path, with_solution=False)
    told = one_line(tmp_path)
    assert "ImageSets/CLS-LOC/val.txt has names alone" in told
    assert "LOC_val_solution.csv" in told


def test_val_pictures_left_between_class_folders_have_no_label(tmp_path):
    layout_a(tmp_path)
    write(tmp_path / "val" / f"{val_stem(9)}.JPEG", picture(9))
    assert skips(opened(tmp_path)) == {f"val~{val_stem(9)}": "missing_label"}


# Where a download lies


def one_line(root, given=None):
    with pytest.raises(ValueError, match=r"^ingest\.imagenet\.") as caught:
        imagenet.open_source(given or setting(), root)
    told = str(caught.value)
    assert "\n" not in told
    return told


@pytest.mark.parametrize("layout", ["class_folders", "official", "kaggle"])
@pytest.mark.parametrize("below", ["..", "train", "val"])
def test_a_root_one_level_off_is_recognised(tmp_path, layout, below):
    root = tmp_path / "up" / "root"
    LAYOUTS[layout][0](root)
    expected = {item.name: item.label for item in opened(root).items()}
    if below == "..":
        given = root.parent
    else:
        given = next(path for path in root.rglob(below) if path.is_dir())
    found = opened(given)
    assert {item.name: item.label for item in found.items()} == expected
    assert skips(found) == {}


@pytest.mark.parametrize("below", ["ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_tables_are_found_from_further_down(tmp_path, below):
    layout_c(tmp_path)
    found = opened(tmp_path / below)
    assert found.roots == {"root": tmp_path.resolve()}
    assert list(found.items()) == list(opened(tmp_path).items())


def test_the_kit_may_lie_beside_the_folder_that_holds_both_splits(tmp_path):
    layout_a(tmp_path / "imagenet")
    shutil.rmtree(tmp_path / "imagenet" / "val")
    write_flat_val(tmp_path / "imagenet" / "val")
    write_devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data")
    found = opened(tmp_path)
    assert by_stem(found)[val_stem(1)].path == f"root/imagenet/val/{val_stem(1)}.JPEG"
    assert skips(found) == {}


def test_folders_named_like_the_archives_are_recognised(tmp_path):
    layout_a(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split).rename(tmp_path / f"ILSVRC2012_img_{split}")
    assert skips(opened(tmp_path)) == {}


def test_several_downloads_in_one_folder_are_refused(tmp_path):
    for name in ("a", "b"):
        layout_a(tmp_path / name)
    assert "has several (a, b); name the one to use" in one_line(tmp_path)


def without(*names):
    def change(root):
        layout_b(root)
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def packed(root):
    write_flat_val(root / "val")
    write(root / "train" / "n01440764.tar")


def no_val_pictures(root):
    layout_a(root)
    shutil.rmtree(root / "val")
    write(root / "val" / "readme.txt")


KIT = "ILSVRC2012_devkit_t12/data"
FAULTS = {
    "empty": (lambda root: root.mkdir(), "holds neither train/ nor val/", "image-net.org"),
    "missing": (lambda root: None, "must be an existing folder", "image-net.org"),
    "file": (lambda root: write(root), "must be an existing folder", "image-net.org"),
    "class_folders_alone": (write_train, "name the folder above", "train/ and val/"),
    "train": (without("train"), "must hold train/", "ILSVRC2012_img_train.tar of image-net.org"),
    "val": (without("val"), "must hold val/", "ILSVRC2012_img_val.tar of image-net.org"),
    "val_pictures": (no_val_pictures, "must have pictures in val/", "ILSVRC2012_img_val.tar"),
    "packed": (packed, "it holds n01440764.tar", "each tar inside into a folder of its own name"),
    "kit": (
        without("ILSVRC2012_devkit_t12"),
        "must say the classes of its flat val/",
        "ILSVRC2012_devkit_t12.tar.gz of image-net.org",
    ),
    "meta": (
        without(f"{KIT}/meta.mat"),
        "without the meta.mat",
        "ILSVRC2012_devkit_t12.tar.gz of image-net.org",
    ),
    "ground_truth": (
        without(f"{KIT}/ILSVRC2012_validation_ground_truth.txt"),
        "has neither ILSVRC2012_validation_ground_truth.txt",
        "ILSVRC2012_devkit_t12.tar.gz of image-net.org",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_missing_is_said_in_one_line(tmp_path, fault):
    change, told, remedy = FAULTS[fault]
    root = tmp_path / "download"
    change(root)
    message = one_line(root)
    assert message.startswith("ingest.imagenet.root must ")
    assert str(root) in message
    assert told in message
    assert remedy in message


# Files


def test_extensions_in_any_case_and_nothing_else(tmp_path):
    layout_a(tmp_path)
    folder = tmp_path / "train" / WNIDS[0]
    for name in ("a.JPEG", "b.jpeg", "c.jpg", "d.JPG", "e.Png"):
        write(folder / name, picture(5))
    for name in ("f.txt", "g.gif", "h", "._a.JPEG", ".JPEG", "i.JPEG.part"):
        write(folder / name, picture(5))
    write(tmp_path / "train" / "readme.txt")
    write(tmp_path / "train" / "stray.JPEG", picture(5))
    write(tmp_path / "train" / "lost+found" / "x.JPEG", picture(5))
    write(tmp_path / "train" / "n01440764x" / "x.JPEG", picture(5))
    write(tmp_path / "train" / "n01440765")  # a file, so no class
    found = opened(tmp_path)
    stems = {item.name for item in found.items() if item.split == "train"}
    assert stems == {*TRAIN, *(f"{WNIDS[0]}/{letter}" for letter in "abcde")}
    assert by_stem(found)["n02017213_9"].label == 2


def test_the_picture_that_vqgan_excludes_is_left_out_by_choice(tmp_path):
    layout_a(tmp_path)
    for number in (9591, 9592):
        write(tmp_path / "train" / "n06596364" / f"n06596364_{number}.JPEG", picture(number))
    assert skips(opened(tmp_path)) == {"n06596364~n06596364_9591": "ignored_image"}
    assert not [r for r in records(opened(tmp_path)) if r.reason not in (None, *CHOSEN_REASONS)]


def test_pictures_with_one_stem_are_both_listed_and_one_is_a_duplicate(tmp_path):
    layout_a(tmp_path)
    folder = tmp_path / "train" / WNIDS[0]
    write(folder / "a.png", picture(5, "PNG"))
    write(folder / "a.JPEG", picture(6))
    items = [item.path for item in opened(tmp_path).items() if item.name.endswith("/a")]
    assert items == [f"root/train/{WNIDS[0]}/a.JPEG", f"root/train/{WNIDS[0]}/a.png"]
    assert skips(opened(tmp_path)) == {f"{WNIDS[0]}~a": "duplicate_key"}


def test_the_order_is_that_of_keys_not_of_names(tmp_path):
    layout_a(tmp_path)
    names = ["a", "a-b", "a.b", "a_b", "a b", "aB", "a0", "ä", "~", "Z", "_"]
    for name in names:
        write(tmp_path / "train" / WNIDS[0] / f"{name}.JPEG", picture(5))
        write(tmp_path / "val" / f"{name}.JPEG", picture(5))
    items = list(opened(tmp_path).items())
    keys = [safe_key(item.name) for item in items]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(TRAIN) + len(VAL) + 2 * len(names)
    assert [item.name for item in items] != sorted(item.name for item in items)


def test_folders_loops_and_broken_links_become_skips(tmp_path):
    layout_a(tmp_path)
    folder = tmp_path / "train" / WNIDS[0]
    (folder / "folder.JPEG").mkdir()
    (folder / "loop.JPEG").symlink_to("loop.JPEG")
    (folder / "gone.JPEG").symlink_to("nowhere.JPEG")
    (tmp_path / "train" / "n01440765").symlink_to("n01440765")
    (tmp_path / "val" / "n01443537").rename(tmp_path / "elsewhere")
    (tmp_path / "val" / "n01443537").symlink_to("../elsewhere")
    (tmp_path / "val" / "n02017214").symlink_to("nowhere")
    found = opened(tmp_path)
    assert skips(found) == {
        f"{WNIDS[0]}~folder": "unreadable_file",
        f"{WNIDS[0]}~loop": "unreadable_file",
        f"{WNIDS[0]}~gone": "unreadable_file",
        "n01440765": "unreadable_file",
        "n02017214": "unreadable_file",
    }
    # The class behind the loop still counts, or all later labels would shift.
    assert by_stem(found)["n02017213_9"].label == 3
    assert by_stem(found)[val_stem(3)].label == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_becomes_a_skip(tmp_path):
    layout_a(tmp_path)
    (tmp_path / "train" / f"{TRAIN[0]}.JPEG").chmod(0)
    (tmp_path / "train" / WNIDS[1]).chmod(0)
    found = skips(opened(tmp_path))
    (tmp_path / "train" / WNIDS[1]).chmod(0o755)
    assert found == {safe_key(TRAIN[0]): "unreadable_file", WNIDS[1]: "unreadable_file"}


def test_a_folder_that_may_not_be_read_becomes_a_skip_even_for_root(tmp_path, monkeypatch):
    layout_a(tmp_path)
    found = opened(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == WNIDS[1] and Path(path).parent.name == "train":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert skips(found) == {WNIDS[1]: "unreadable_file"}


def test_empty_and_foreign_files_become_skips(tmp_path):
    layout_a(tmp_path)
    folder = tmp_path / "train" / WNIDS[0]
    write(folder / "empty.JPEG")
    write(folder / "page.JPEG", "<html>")
    found = dict.fromkeys((f"{WNIDS[0]}~empty", f"{WNIDS[0]}~page"), "unreadable_image")
    assert skips(opened(tmp_path)) == found


def test_a_file_that_goes_away_meanwhile_becomes_a_skip(tmp_path):
    layout_a(tmp_path)
    found = opened(tmp_path)
    items = list(found.items())
    (tmp_path / "train" / f"{TRAIN[0]}.JPEG").unlink()
    [record] = [r for item in items if (r := found.inspect(item)).status == "skipped"]
    assert (record.key, record.reason) == (safe_key(TRAIN[0]), "missing_image")


# Lists


def test_list_entries_that_are_no_use_become_skips(tmp_path):
    layout_d(tmp_path)
    write(tmp_path / "n01440764" / "outside.JPEG", picture(5))
    strange = {
        "../n01440764/outside.JPEG": "unsupported_name",
        f"{tmp_path}/n01440764/outside.JPEG": "unsupported_name",
        "n01440764/../../n01440764/outside.JPEG": "unsupported_name",
        "outside.JPEG": "unsupported_name",
        "tench/outside.JPEG": "unsupported_name",
        "n01440764/notes.txt": "unsupported_name",
        "n01440764/nul\0.JPEG": "unsupported_name",
        "n01440764/gone.JPEG": "missing_image",
        "n01449999/gone.JPEG": "missing_image",
        f"n01440764/{'x' * 300}.JPEG": "unreadable_file",
    }
    with (tmp_path / "train.txt").open("a") as file:
        file.write("\n" + "\n".join(strange) + f"\n{TRAIN[0]}.JPEG\n")
    found = opened_lists(tmp_path)
    keys = [safe_key(item.name) for item in found.items()]
    assert keys == sorted(keys)
    reasons = Counter(skips(found).values())
    assert reasons == Counter(strange.values()) + Counter(["duplicate_key"])
    outside = [record for record in records(found) if record.reason == "unsupported_name"]
    assert not any(record.sources for record in outside)


def test_lists_may_name_files_below_the_folder_of_their_split(tmp_path):
    layout_a(tmp_path / "pool")
    write(tmp_path / "train.txt", "\n".join(f"{name}.JPEG" for name in TRAIN))
    lines = [f"./{wnid}/{val_stem(number)}.JPEG" for number, wnid in VAL.items()]
    write(tmp_path / "val.txt", "\n".join(lines))
    found = opened_lists(tmp_path)
    assert skips(found) == {}
    assert list(found.items()) == list(opened(tmp_path / "pool").items())


def test_lists_may_be_named_relative_to_the_root(tmp_path):
    layout_d(tmp_path)
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).rename(tmp_path / "pool" / name)
    given = setting(train_list="train.txt", val_list="val.txt")
    assert skips(imagenet.open_source(given, tmp_path / "pool")) == {}


def test_labels_of_lists_follow_the_training_list_or_the_class_index(tmp_path):
    layout_d(tmp_path)
    names = [name for name in TRAIN if not name.startswith(WNIDS[0])]
    write(tmp_path / "train.txt", "\n".join(f"{name}.JPEG" for name in names))
    found = opened_lists(tmp_path)
    assert by_stem(found)["n02017213_9"].label == 1
    assert Counter(skips(found).values()) == {"missing_label": 2}
    index = {str(i): [wnid, "x"] for i, wnid in enumerate(WNIDS)}
    write(tmp_path / "pool" / "class_index.json", json.dumps(index))
    found = opened_lists(tmp_path)
    assert by_stem(found)["n02017213_9"].label == 2
    assert skips(found) == {}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("text", [None, "", "outside.JPEG\n", "\0\xff\n"])
def test_a_list_that_is_none_is_refused(tmp_path, split, text):
    layout_d(tmp_path)
    (tmp_path / f"{split}.txt").unlink()
    if text is not None:
        write(tmp_path / f"{split}.txt", text)
    lists = {f"{name}_list": str(tmp_path / f"{name}.txt") for name in ("train", "val")}
    told = one_line(tmp_path / "pool", setting(**lists))
    assert told.startswith(f"ingest.imagenet.{split}_list must ")
    assert "set both lists to null" in told


def test_lists_need_their_root(tmp_path):
    layout_d(tmp_path)
    lists = {f"{name}_list": str(tmp_path / f"{name}.txt") for name in ("train", "val")}
    assert "must be an existing folder" in one_line(tmp_path / "nowhere", setting(**lists))


# cdcd ingest --check


def told(root):
    findings = imagenet.check(root)
    assert findings
    assert all("\n" not in finding.text for finding in findings)
    return findings


@pytest.mark.parametrize("layout", ["class_folders", "official", "kaggle"])
def test_check_counts_every_part(tmp_path, layout):
    LAYOUTS[layout][0](tmp_path)
    texts = [finding.text for finding in told(tmp_path)]
    assert any("train: 6 of 1,281,167 pictures in 3 of 1,000 classes" in text for text in texts)
    assert any("val: 6 of 50,000 pictures" in text for text in texts)
    assert any(f"0 of 1,000 classes have 50 pictures; {WNIDS[0]} has 2" in text for text in texts)


def test_check_is_content_with_the_official_counts(tmp_path, monkeypatch):
    layout_b(tmp_path)
    monkeypatch.setattr(imagenet, "NUM_PICTURES", {"train": 6, "val": 6})
    monkeypatch.setattr(imagenet, "NUM_CLASSES", 3)
    monkeypatch.setattr(imagenet, "VAL_PER_CLASS", 2)
    findings = told(tmp_path)
    assert all(finding.is_fine for finding in findings)
    assert any("classes come from ILSVRC2012_devkit_t12/data" in f.text for f in findings)
    (tmp_path / "val" / f"{val_stem(1)}.JPEG").unlink()
    bad = [finding.text for finding in told(tmp_path) if not finding.is_fine]
    assert [text[:10] for text in bad] == ["val: 5 of ", "val: 2 of "]
    assert "n02017213 has 1" in bad[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_check_says_what_is_missing_and_never_raises(tmp_path, fault):
    change, _, remedy = FAULTS[fault]
    root = tmp_path / "download"
    change(root)
    bad = [finding.text for finding in told(root) if not finding.is_fine]
    assert any(remedy in text for text in bad)


def test_check_counts_what_is_there_beside_what_is_missing(tmp_path):
    without("val")(tmp_path)
    texts = [finding.text for finding in told(tmp_path)]
    assert any("train: 6 of" in text for text in texts)
    assert any("must hold val/" in text for text in texts)


@pytest.mark.parametrize("kind", broken_metas())
def test_check_reports_a_broken_meta(tmp_path, kind):
    layout_b(tmp_path)
    write(tmp_path / KIT / "meta.mat", broken_metas()[kind])
    bad = [finding.text for finding in told(tmp_path) if not finding.is_fine]
    assert any("whole meta.mat" in text for text in bad)


def test_check_survives_anything_in_the_way(tmp_path):
    layout_a(tmp_path)
    (tmp_path / "train" / "n01440765").symlink_to("n01440765")
    (tmp_path / "val" / "n01440765").symlink_to("nowhere")
    write(tmp_path / "class_index.json", "[")
    bad = [finding.text for finding in told(tmp_path) if not finding.is_fine]
    assert sum("n01440765" in text for text in bad) >= 2
    assert any("class_index.json" in text for text in bad)


def test_check_counts_the_class_index(tmp_path):
    layout_a(tmp_path)
    write(tmp_path / "class_index.json", json.dumps({"0": [WNIDS[0], "tench"]}))
    texts = [finding.text for finding in told(tmp_path)]
    assert "classes: class_index.json numbers 1 of 1,000" in texts


# The stand-in


def test_every_picture_of_the_stand_in_is_usable(tmp_path):
    embedded = pytest.importorskip("cdcd.data.embedded.imagenet")
    root = tmp_path / "download"
    embedded.write_download(root, seed=0, train_per_class=2, val_per_class=1, image_height=64)
    found = opened(root)
    index = json.loads((root / "class_index.json").read_text())
    assert found.settings["num_classes"] == len(index)
    counts = Counter()
    for record in records(found):
        assert record.status == "ok", record.detail
        [(_, loaded)] = found.load(record, OPTIONS)
        assert [loaded.meta["wnid"], loaded.meta["class"]] == index[str(loaded.label)]
        counts[loaded.split, loaded.label] += 1
    assert set(counts.values()) == {1, 2}
    assert len(counts) == 2 * len(index)
