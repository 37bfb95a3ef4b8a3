import io
import json
import tarfile

import numpy as np
import pytest

from cdcd.data.samples import Caption, Picture, Sample
from cdcd.data.shards import (
    encode_sample,
    iterate_pictures,
    iterate_shards,
    read_shards_index,
    write_shards,
    write_tar,
)


def make(number, split="train", with_motion=True, with_video=True):
    rng = np.random.default_rng(number)
    return Sample(
        key=f"s{number:03d}",
        split=split,
        audio=rng.uniform(-1, 1, 500).astype("f4"),
        motion=rng.standard_normal((6, 219)).astype("f4") if with_motion else None,
        video=rng.bytes(700) if with_video else None,
        meta={"genre": number % 10, "song": "mBR0", "note": "é"},
    )


SAMPLES = [make(number) for number in range(7)] + [make(9, "val", False, False)]


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "shards", reversed(SAMPLES), samples_per_shard=3)
    return tmp_path / "shards"


def test_samples_come_back_sorted(folder):
    result = [*iterate_shards(folder, "train"), *iterate_shards(folder, "val")]
    assert [sample.key for sample in result] == [sample.key for sample in SAMPLES]
    for got, sample in zip(result, SAMPLES, strict=True):
        assert np.abs(got.audio - sample.audio).max() <= 0.5 / 32767 + 1e-7
        assert got.audio.dtype == np.float32
        assert (got.video, got.meta, got.split) == (sample.video, sample.meta, sample.split)
        if sample.motion is None:
            assert got.motion is None
        else:
            np.testing.assert_array_equal(got.motion, sample.motion)


def test_storing_twice_changes_nothing(folder, tmp_path):
    again = list(iterate_shards(folder, "train"))
    write_shards(tmp_path / "again", again + list(iterate_shards(folder, "val")), 3)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_sound_beyond_the_range_is_clipped_not_wrapped(tmp_path):
    sample = Sample("a", "test", np.array([1.5, -1.5], "f4"), None, None)
    write_shards(tmp_path / "s", [sample])
    assert next(iterate_shards(tmp_path / "s", "test")).audio.tolist() == [1.0, -1.0]


def test_index_names_every_tar_and_members_have_no_date(folder):
    shards = read_shards_index(folder)
    assert [(s["name"], s["count"]) for s in shards] == [
        ("train-000000.tar", 3),
        ("train-000001.tar", 3),
        ("train-000002.tar", 1),
        ("val-000000.tar", 1),
    ]
    with tarfile.open(folder / "train-000000.tar") as tar:
        items = tar.getmembers()
    assert {(item.mtime, item.uname) for item in items} == {(0, "cdcd")}
    assert [item.name for item in items[:4]] == [
        "s000.audio.npy",
        "s000.meta.json",
        "s000.motion.npy",
        "s000.video.mp4",
    ]


def test_webdataset_reads_them(folder):
    import webdataset

    path = str(folder / "train-000000.tar")
    read = list(webdataset.WebDataset(path, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == ["s000", "s001", "s002"]
    motion = np.load(io.BytesIO(read[1]["motion.npy"]), allow_pickle=False)
    np.testing.assert_array_equal(motion, SAMPLES[1].motion)


def test_a_shard_cut_in_the_middle(folder):
    path = folder / "train-000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    told = rf"train-000001\.tar must have {len(data)} bytes: got {len(data) // 2}.*dvc repro"
    with pytest.raises(ValueError, match=told):
        next(iterate_shards(folder, "train"))
    next(iterate_shards(folder, "val"))


def test_one_altered_byte(folder):
    path = folder / "train-000002.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    samples = iterate_shards(folder, "train")
    for _ in range(6):  # those of the sound shards before it
        next(samples)
    with pytest.raises(
        ValueError, match=r"train-000002\.tar must have SHA-256 .*: got .*dvc repro"
    ):
        next(samples)


def allow_any_size(folder):
    """Make the index agree with the sizes of damaged files, so that only reading shows it."""
    index = json.loads((folder / "shards.json").read_text())
    for shard in index["shards"]:
        shard["bytes"] = (folder / shard["name"]).stat().st_size
    (folder / "shards.json").write_text(json.dumps(index))


@pytest.mark.parametrize("place", [0.1, 0.3, 0.6])
def test_without_the_checksum_a_cut_shard_is_still_no_silent_end(folder, place):
    path = folder / "train-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * place)])
    allow_any_size(folder)
    with pytest.raises(ValueError, match=r"train-000000\.tar must .*dvc repro"):
        list(iterate_shards(folder, "train", verify=False))


def test_a_damaged_header_is_no_silent_end(folder):
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        header = tar.getmembers()[4].offset
    data[header : header + 512] = b"\xff" * 512
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"must hold 3 samples: got 1"):
        list(iterate_shards(folder, "train", verify=False))


def test_a_missing_shard_or_index_or_split(folder):
    with pytest.raises(ValueError, match="must hold shards of split test: got none"):
        next(iterate_shards(folder, "test"))
    with pytest.raises(ValueError, match="split must be one of train, val, test: got 'dev'"):
        next(iterate_shards(folder, "dev"))
    (folder / "val-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"val-000000\.tar must exist.*no such file"):
        next(iterate_shards(folder, "val"))
    (folder / "shards.json").write_text("{}")
    with pytest.raises(ValueError, match=r"shards\.json must list the shards"):
        read_shards_index(folder)
    (folder / "shards.json").unlink()
    with pytest.raises(ValueError, match=r"shards\.json must exist.*dvc repro shard"):
        read_shards_index(folder)


def test_an_index_cannot_point_elsewhere(folder):
    index = json.loads((folder / "shards.json").read_text())
    index["shards"][0]["name"] = "../train-000000.tar"
    (folder / "shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="unexpected shard"):
        read_shards_index(folder)


def rewrite(folder, change):
    """Write the first shard again with other members and let the index agree."""
    path = folder / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(item.name, tar.extractfile(item).read()) for item in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in change(members):
            item = tarfile.TarInfo(name)
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    allow_any_size(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: [("../../evil.audio.npy", m[0][1]), *m[1:]], "without a folder"),
        (lambda m: [("/etc/evil.audio.npy", m[0][1]), *m[1:]], "without a folder"),
        (lambda m: [*m[:2], m[0], *m[2:]], "is there twice"),
        (lambda m: [*m[:8], *m[:4]], "must hold keys that rise: got s000 after s001"),
        (lambda m: [(n, b"" if n.endswith("motion.npy") else d) for n, d in m], "npy file must"),
        (lambda m: [(n, b"" if n.endswith("meta.json") else d) for n, d in m], "must be readable"),
        (lambda m: [(n, d) for n, d in m if not n.startswith("s001.motion")], "has members"),
    ],
)
def test_foreign_and_damaged_members_are_no_samples(folder, tmp_path, change, words):
    before = sorted(tmp_path.rglob("*"))
    rewrite(folder, change)
    with pytest.raises(ValueError, match=words) as info:
        list(iterate_shards(folder, "train", verify=False))
    assert "\n" not in str(info.value)
    assert sorted(tmp_path.rglob("*")) == before


def picture(number, split="train"):
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    captions = tuple(Caption(str(i), f"picture {number} é") for i in range(number % 3))
    return Picture(f"p{number}", split, image, captions, number, {"class": "bird"})


def test_pictures_come_back_with_captions_and_class(tmp_path):
    write_shards(tmp_path / "s", [picture(n) for n in range(5)], 2)
    found = list(iterate_pictures(tmp_path / "s", "train"))
    for got, want in zip(found, map(picture, range(5)), strict=True):
        np.testing.assert_array_equal(got.image, want.image)
        assert (got.key, got.captions, got.label) == (want.key, want.captions, want.label)
        assert got.meta == {"class": "bird"}
    assert found[2].pairs() == [("p2_0", "picture 2 é"), ("p2_1", "picture 2 é")]
    with pytest.raises(ValueError, match="must hold dance and music: got pictures"):
        next(iterate_shards(tmp_path / "s", "train"))


def test_dances_are_no_pictures_and_features_come_back(tmp_path):
    feature = np.arange(6, dtype=np.float32).reshape(2, 3)
    sound = np.zeros(4, np.float32)
    sample = Sample("a", "train", sound, None, None, {}, video_feature=feature)
    write_shards(tmp_path / "s", [sample])
    with pytest.raises(ValueError, match="must hold pictures: got dance"):
        next(iterate_pictures(tmp_path / "s", "train"))
    np.testing.assert_array_equal(
        next(iterate_shards(tmp_path / "s", "train")).video_feature, feature
    )


def test_keys_of_a_shard_must_rise(tmp_path):
    members = encode_sample(make(1))
    with pytest.raises(ValueError, match="must rise: got a after b"):
        write_tar(tmp_path / "x.tar", [("b", members), ("a", members)])
    assert list(tmp_path.iterdir()) == []
