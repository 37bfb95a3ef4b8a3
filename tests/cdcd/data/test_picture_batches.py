"""Pairs of pictures and conditions: which crop meets which caption, and what a negative is."""

import numpy as np
import pytest
import torch

from cdcd.data.batches import ShuffledBatches
from cdcd.data.cache import write_split
from cdcd.data.picture_batches import read_conditions, read_picture_pairs

CPU = torch.device("cpu")
CROPS, LENGTH = 2, 4


def tokens_of(picture, crop):
    return np.full(LENGTH, 10 * picture + crop)


def write_tokens(root, labels, label_sets=None, split="train"):
    n = len(labels)
    tokens = np.array([[tokens_of(i, c) for c in range(CROPS)] for i in range(n)], np.int32)
    info = {
        "kind": "picture", "keys": [f"p{i}" for i in range(n)], "labels": labels,
        "label_sets": label_sets, "num_codes": 100, "grid": [2, 2], "image_size": 8,
        "codec_sha256": "x",
    }  # fmt: skip
    write_split(root / "tokens", split, {"tokens": tokens}, info)


def write_captions(root, picture, split="train"):
    m = len(picture)
    keys = [f"p{p}_c{i}" for i, p in enumerate(picture)]
    arrays = {
        "text": np.arange(m * 6, dtype=np.float16).reshape(m, 3, 2),
        "length": np.array([2 + i % 2 for i in range(m)], np.int32),
        "picture": np.array(picture, np.int32),
    }
    info = {
        "kind": "text", "keys": keys, "captions": [f"caption {k}" for k in keys],
        "picture_keys": [f"p{i}" for i in range(max(picture) + 1)],
        "encoder": {"width": 2, "context_length": 3},
    }  # fmt: skip
    write_split(root / "features", split, arrays, info)


def write_classes(root, labels, split="train"):
    info = {
        "kind": "class", "keys": [f"p{i}" for i in range(len(labels))],
        "class_names": ["a", "b", "c"], "num_classes": 3,
    }  # fmt: skip
    write_split(root / "features", split, {"label": np.array(labels, np.int32)}, info)


def test_captions_of_a_picture_meet_its_crops_in_turn(tmp_path):
    write_tokens(tmp_path, [0, 1, 2])
    write_captions(tmp_path, [0, 0, 0, 1, 2, 2])
    pairs = read_picture_pairs(tmp_path / "tokens", tmp_path / "features", "train")
    assert len(pairs) == 6
    batch = pairs.batch(np.arange(6), CPU)
    wanted = [(0, 0), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1)]
    assert batch.z_0.tolist() == [tokens_of(*w).tolist() for w in wanted]
    assert batch.labels.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.inputs.length.tolist() == [2, 3, 2, 3, 2, 3]
    assert batch.inputs.text.shape == (6, 3, 2)
    # Nothing beyond the longest caption of the batch is read.
    assert pairs.batch(np.array([0, 2]), CPU).inputs.text.shape == (2, 2, 2)


def test_a_class_meets_every_crop(tmp_path):
    write_tokens(tmp_path, [2, 0])
    write_classes(tmp_path, [2, 0])
    pairs = read_picture_pairs(tmp_path / "tokens", tmp_path / "features", "train")
    batch = pairs.batch(np.arange(4), CPU)
    assert batch.z_0[:, 0].tolist() == [0, 1, 10, 11]
    assert batch.inputs.label.tolist() == [2, 2, 0, 0]
    assert batch.inputs.text is None


@pytest.mark.parametrize("kind", ["labels", "sets"])
def test_inter_negatives_are_of_another_class_and_of_the_same_crop(tmp_path, kind):
    labels, sets = [0, 0, 1, 1, 2, 2], None
    if kind == "sets":
        labels, sets = [-1] * 6, [["dog"], ["dog"], ["cat", "dog"], ["dog", "cat"], [], []]
    write_tokens(tmp_path, labels, sets)
    write_classes(tmp_path, [0, 0, 1, 1, 2, 2])
    pairs = read_picture_pairs(tmp_path / "tokens", tmp_path / "features", "train")
    drawn = pairs.with_inter_negatives(0, 4)
    batch = drawn.batch(np.arange(len(drawn)), CPU)
    assert batch.inter_negatives.shape == (12, 4, LENGTH)
    own = batch.z_0[:, 0] // 20  # pictures come in pairs of one class
    theirs = batch.inter_negatives[:, :, 0] // 20
    assert not (theirs == own[:, None]).any()
    assert (batch.inter_negatives[:, :, 0] % 10 == (batch.z_0[:, 0] % 10)[:, None]).all()
    assert all(len(set(row)) == 4 for row in batch.inter_negatives[:, :, 0].tolist())
    again = pairs.with_inter_negatives(0, 4)
    np.testing.assert_array_equal(drawn.inter_rows, again.inter_rows)


def test_too_few_of_another_class_are_told(tmp_path):
    write_tokens(tmp_path, [0, 0, 1])
    write_classes(tmp_path, [0, 0, 1])
    pairs = read_picture_pairs(tmp_path / "tokens", tmp_path / "features", "train")
    with pytest.raises(ValueError, match=r"num_negatives must not exceed .*got 2"):
        pairs.with_inter_negatives(0, 2)


def test_partners_must_hold_the_same_pictures(tmp_path):
    write_tokens(tmp_path, [0, 1, 2])
    write_classes(tmp_path, [0, 1])
    with pytest.raises(ValueError, match="must hold the same train pictures: got 3 and 2"):
        read_picture_pairs(tmp_path / "tokens", tmp_path / "features", "train")


def test_an_epoch_meets_every_pair_once(tmp_path):
    write_tokens(tmp_path, [0, 1, 2])
    write_captions(tmp_path, [0, 0, 1, 1, 2, 2])
    pairs = read_picture_pairs(tmp_path / "tokens", tmp_path / "features", "train")
    batches = iter(ShuffledBatches(pairs, 2, 0, 0, CPU))
    seen = torch.cat([next(batches).inputs.text[:, 0, 0] for _ in range(3)])
    everything = read_conditions(tmp_path / "features", "train").text[:, 0, 0]
    assert sorted(seen.tolist()) == sorted(everything.tolist())
