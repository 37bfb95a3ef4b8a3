from itertools import islice

import numpy as np
import pytest
import torch

from cdcd.data import batches
from cdcd.data.batches import ShuffledBatches, read_pairs
from cdcd.data.cache import write_split

NUM = 23


def write(folder):
    rng = np.random.default_rng(0)
    keys = [f"k{i:02d}" for i in range(NUM)]
    labels = {
        "keys": keys,
        "genres": [i % 3 for i in range(NUM)],
        "songs": [f"m{i % 5}" for i in range(NUM)],
        "sequences": keys,
    }
    write_split(folder / "tokens", "train", {"tokens": rng.integers(0, 9, (NUM, 7))}, labels)
    arrays = {
        "motion": rng.standard_normal((NUM, 6, 4)).astype("f4"),
        "has_motion": np.ones(NUM, np.uint8),
        "video": rng.standard_normal((NUM, 3, 5)).astype("f4"),
        "has_video": np.ones(NUM, np.uint8),
    }
    write_split(folder / "features", "train", arrays, labels)
    return read_pairs(folder / "tokens", folder / "features", "train")


def take(pairs, num, step=0):
    source = ShuffledBatches(pairs, 5, 3, step, torch.device("cpu"))
    return [(b.z_0, b.inputs.motion, b.inputs.video) for b in islice(iter(source), num)]


def equal(one, other):
    return all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_a_resumed_order_is_the_uninterrupted_one(tmp_path):
    pairs = write(tmp_path)
    whole = take(pairs, 14)
    assert equal(take(pairs, 9, step=5), whole[5:])
    assert not equal(whole[:4], whole[4:8]), "every epoch has an order of its own"


def test_an_epoch_reads_no_clip_twice(tmp_path):
    pairs = write(tmp_path)
    motion = torch.cat([batch[1] for batch in take(pairs, NUM // 5)])
    assert len(torch.unique(motion.flatten(1), dim=0)) == NUM // 5 * 5


def test_memory_that_is_given_back_changes_no_row(tmp_path, monkeypatch):
    pairs = write(tmp_path)
    whole = take(pairs, 14)
    released = []
    monkeypatch.setattr(batches, "_RELEASE_BYTES", 1)
    monkeypatch.setattr(batches, "release", lambda array: released.append(array.shape))
    assert equal(take(pairs, 14), whole)
    assert len(released) == 13 * 3
    monkeypatch.undo()
    monkeypatch.setattr(batches, "_RELEASE_BYTES", 1)
    assert equal(take(pairs, 14), whole)


def test_inter_negatives_are_of_another_class_and_the_same_for_seed_and_key(tmp_path):
    pairs = write(tmp_path)
    drawn = pairs.with_inter_negatives(7, 10)
    rows, labels = drawn.inter_rows, pairs.labels.numpy()
    assert rows.shape == (NUM, 10)
    assert (labels[rows] != labels[:, None]).all()
    assert all(len(set(row)) == 10 for row in rows.tolist())
    np.testing.assert_array_equal(rows, pairs.with_inter_negatives(7, 10).inter_rows)
    assert (rows != pairs.with_inter_negatives(8, 10).inter_rows).any()
    batch = drawn.batch(np.array([3, 20]), torch.device("cpu"))
    for own, row in zip(batch.inter_negatives, (3, 20), strict=True):
        np.testing.assert_array_equal(own.numpy(), pairs.tokens[rows[row]])


def test_too_few_of_another_class(tmp_path):
    with pytest.raises(ValueError, match=r"train\.contrast\.num_negatives must not exceed.*got 20"):
        write(tmp_path).with_inter_negatives(0, 20)
