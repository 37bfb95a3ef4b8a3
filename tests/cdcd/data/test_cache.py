import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from cdcd.data.cache import CacheError, list_splits, new_split, read_split, write_split


def make_arrays(n=3):
    generator = np.random.default_rng(n)
    return {
        "tokens": generator.integers(0, 512, (n, 7)).astype(np.int32),
        "video": generator.standard_normal((n, 2, 5)).astype(np.float32),
        "has_video": np.ones(n, np.uint8),
        "chunks": np.empty((n, 0), np.int64),
    }


def make_info(n=3):
    return {"keys": [f"k{i}" for i in range(n)], "genres": list(range(n)), "note": "é"}


def test_what_is_written_is_read(tmp_path):
    arrays, info = make_arrays(), make_info()
    write_split(tmp_path / "new", "train", arrays, info)
    split = read_split(tmp_path / "new", "train")
    assert split.info == info
    assert len(split) == 3
    assert split.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert split.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(split.arrays[name], array)


def test_arrays_are_mapped_and_read_only(tmp_path):
    write_split(tmp_path, "train", make_arrays(), make_info())
    tokens = read_split(tmp_path, "train").arrays["tokens"]
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_equal_content_gives_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        write_split(tmp_path / folder, "val", make_arrays(), make_info())
    for name in ("val.safetensors", "val.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_reader_keeps_its_arrays_when_the_split_is_written_again(tmp_path):
    old = make_arrays()
    write_split(tmp_path, "train", old, make_info())
    split = read_split(tmp_path, "train")
    write_split(tmp_path, "train", {"tokens": np.zeros((3, 7), np.int32)}, make_info())
    np.testing.assert_array_equal(split.arrays["tokens"], old["tokens"])


def test_missing_split_names_the_file(tmp_path):
    with pytest.raises(CacheError, match=r"test\.safetensors: no such file"):
        read_split(tmp_path, "test")


@pytest.mark.parametrize("keep", [0, 5, 40, -3])
def test_truncated_arrays_are_one_clear_error(tmp_path, keep):
    write_split(tmp_path, "train", make_arrays(), make_info())
    path = tmp_path / "train.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CacheError, match="not a whole cache file") as caught:
        read_split(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_truncated_json_is_one_clear_error(tmp_path):
    write_split(tmp_path, "train", make_arrays(), make_info())
    path = tmp_path / "train.json"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(CacheError, match="not a whole cache file"):
        read_split(tmp_path, "train")


def test_files_of_two_writes_do_not_mix(tmp_path):
    write_split(tmp_path, "train", make_arrays(), make_info())
    info = make_info() | {"genres": [9, 9, 9]}
    (tmp_path / "train.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(CacheError, match="same write"):
        read_split(tmp_path, "train")


def test_lengths_must_agree(tmp_path):
    with pytest.raises(CacheError, match=r"one length.*keys 2.*tokens 3"):
        write_split(tmp_path, "train", make_arrays(), make_info(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keys", [["b", "a", "c"], ["a", "a", "b"]])
def test_keys_must_be_sorted_and_distinct(tmp_path, keys):
    with pytest.raises(CacheError, match="sorted and distinct"):
        write_split(tmp_path, "train", make_arrays(), {"keys": keys})


def test_a_failed_write_leaves_the_earlier_split(tmp_path, monkeypatch):
    old = make_arrays()
    write_split(tmp_path, "train", old, make_info())

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cdcd.data.cache._header", full)
    with pytest.raises(ValueError, match="no space left"):
        write_split(tmp_path, "train", make_arrays(4), make_info(4))
    np.testing.assert_array_equal(read_split(tmp_path, "train").arrays["tokens"], old["tokens"])
    assert len(list(tmp_path.iterdir())) == 2


def test_splits_are_listed_in_reading_order(tmp_path):
    for split in ("test", "extra", "train"):
        write_split(tmp_path, split, make_arrays(), make_info())
    (tmp_path / "val.safetensors").touch()  # without its partner
    assert list_splits(tmp_path) == ["train", "test", "extra"]


def test_the_file_is_one_of_safetensors(tmp_path):
    write_split(tmp_path, "train", make_arrays(), make_info())
    loaded = load_file(tmp_path / "train.safetensors")
    for name, array in make_arrays().items():
        np.testing.assert_array_equal(loaded[name], array)


def test_rows_are_written_one_by_one_and_the_bytes_are_the_same(tmp_path):
    arrays, info = make_arrays(), make_info()
    write_split(tmp_path / "whole", "train", arrays, info)
    layout = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    with new_split(tmp_path / "rows", "train", layout) as opened:
        for row in (2, 0, 1):
            for name, array in arrays.items():
                opened.arrays[name][row] = array[row]
        opened.info.update(info)
    for name in ("train.safetensors", "train.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "rows" / name).read_bytes()


def test_an_error_half_way_leaves_nothing(tmp_path):
    def stop():
        with new_split(tmp_path, "train", {"a": ((2, 3), np.float32)}) as opened:
            opened.arrays["a"][0] = 1
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert list(tmp_path.iterdir()) == []
