import numpy as np
import pytest

from cdcd.data.cache import CacheError, write_split
from cdcd.data.samples import Caption, Picture
from cdcd.evaluation.pictures.sets import (
    all_conditions,
    check_against,
    first_seeds,
    read_generated,
)
from cdcd.evaluation.systems import GeneratedError

KEYS = ["p0", "p1"]
INFO = {
    "keys": ["p0_0", "p1_0"],
    "picture_keys": KEYS,
    "captions": ["a red bird", "a blue bird"],
    "labels": [3, -1],
    "init": "mask",
    "image_size": 4,
}
ARRAYS = {"images": np.zeros((2, 4, 4, 3), np.uint8), "tokens": np.zeros((2, 4), np.int32)}


def write(folder, name="model-seed0", info=None, **arrays):
    write_split(folder, name, ARRAYS | arrays, INFO | (info or {}))
    return folder


def test_a_set_knows_what_each_picture_was_made_from(tmp_path):
    (found,) = read_generated(write(tmp_path), KEYS, "test")
    assert (found.system, found.seed, found.rows) == ("model", 0, {"p0_0": 0, "p1_0": 1})
    first, last = found.conditions
    assert (first.caption, first.label, first.group) == ("a red bird", 3, "class 3")
    assert (last.picture_key, last.label, last.group) == ("p1", None, "p1")
    assert sum(len(batch) for batch in found.batches()) == 2
    write(tmp_path, "unconditioned-seed1")
    sets = read_generated(tmp_path, KEYS, "test")
    assert all_conditions(sets) == [first, last]
    write(tmp_path, "unconditioned-seed0")
    lowest = first_seeds(read_generated(tmp_path, KEYS, "test")[::-1])
    assert {system: one.seed for system, one in lowest.items()} == {"model": 0, "unconditioned": 0}


@pytest.mark.parametrize(
    ("info", "arrays", "match"),
    [
        ({"init": "reference"}, {}, r'init must be mask: got "reference".*from the full mask'),
        ({"init": None}, {}, "init must be mask: got null"),
        ({"picture_keys": ["p0", "q"]}, {}, "must belong to split test: got q and 0 more"),
        ({"labels": [1]}, {}, "keys 2, picture_keys 2, captions 2, labels 1"),
        ({"picture_keys": None}, {}, "must name keys and picture_keys"),
        ({"image_size": 8}, {}, r"must be uint8 \[n, 8, 8, 3\].*got uint8 \[2, 4, 4, 3\]"),
        ({}, {"images": np.full((2, 4, 4, 3), np.nan, np.float32)}, "must be uint8.*got float32"),
        ({}, {"images": np.zeros((2, 4, 5, 3), np.uint8)}, r"got uint8 \[2, 4, 5, 3\]"),
        ({}, {"tokens": np.full((2, 4), -1, np.int32)}, "integers from 0 on: got int32, lowest -1"),
        ({}, {"tokens": np.full((2, 4), np.nan, np.float32)}, "integers from 0 on: got float32"),
    ],
)
def test_refused_sets(tmp_path, info, arrays, match):
    with pytest.raises(GeneratedError, match=match) as error:
        read_generated(write(tmp_path, info=info, **arrays), KEYS, "test")
    assert "\n" not in str(error.value)


def test_missing_damaged_and_contradicting_sets(tmp_path):
    with pytest.raises(GeneratedError, match="got no set; run `generate` again"):
        read_generated(tmp_path, KEYS, "test")
    write(tmp_path, "unconditioned-seed0")
    with pytest.raises(GeneratedError, match="got unconditioned; run"):
        read_generated(tmp_path, KEYS, "test")
    write(tmp_path)
    write(tmp_path, "unconditioned-seed0", {"captions": ["another", "a blue bird"]})
    with pytest.raises(GeneratedError, match="p0_0 differs; run `generate` again"):
        read_generated(tmp_path, KEYS, "test")
    big = np.zeros((2, 8, 8, 3), np.uint8)
    write(tmp_path, "unconditioned-seed0", {"image_size": 8}, images=big)
    with pytest.raises(GeneratedError, match="pictures of one size"):
        read_generated(tmp_path, KEYS, "test")
    path = tmp_path / "model-seed0.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CacheError, match="run the stage that writes it again"):
        read_generated(tmp_path, KEYS, "test")


def test_conditions_must_be_those_of_the_picture(tmp_path):
    (found,) = read_generated(write(tmp_path), KEYS, "test")
    image = np.zeros((4, 4, 3), np.uint8)
    good = Picture("p0", "test", image, (Caption("0", "a red bird"),), 3)
    check_against(good, found.conditions[:1], tmp_path)
    other = Picture("p0", "test", image, (Caption("0", "a green bird"),), 3)
    with pytest.raises(GeneratedError, match=r"'a red bird' where the picture has 'a green bird'"):
        check_against(other, found.conditions[:1], tmp_path)
    (found,) = read_generated(write(tmp_path, info={"captions": None}), KEYS, "test")
    with pytest.raises(GeneratedError, match="asked for '3' where the picture has '4'"):
        check_against(Picture("p0", "test", image, (), 4), found.conditions[:1], tmp_path)
