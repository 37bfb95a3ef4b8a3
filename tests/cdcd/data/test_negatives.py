import time
from collections import Counter

import numpy as np
import pytest

from cdcd.data.negatives import NegativePool

KEYS = [f"{label:03d}~{number}" for label in range(6) for number in range(5)]
LABELS = [label for label in range(6) for _ in range(5)]


@pytest.mark.parametrize("num", [0, 1, 10, 25])
def test_negatives_are_distinct_and_of_another_class(num):
    pool = NegativePool(KEYS, LABELS)
    label_of = dict(zip(KEYS, LABELS, strict=True))
    for key, label in label_of.items():
        drawn = pool.draw(0, key, label, num)
        assert len(drawn) == len(set(drawn)) == num
        assert all(label_of[other] != label for other in drawn)


def test_draws_depend_on_seed_and_key_alone():
    pool = NegativePool(KEYS, LABELS)
    order = np.random.default_rng(0).permutation(len(KEYS))
    shuffled = NegativePool([KEYS[i] for i in order], [LABELS[i] for i in order])
    drawn = [pool.draw(3, key, label, 10) for key, label in zip(KEYS, LABELS, strict=True)]
    assert drawn == [shuffled.draw(3, k, n, 10) for k, n in zip(KEYS, LABELS, strict=True)]
    assert len({tuple(row) for row in drawn}) == len(KEYS)
    assert pool.draw(4, KEYS[0], 0, 10) != drawn[0]


def test_these_draws_stay_as_they_are():
    # Stored negatives of one run must be those of the next.
    drawn = NegativePool(KEYS, LABELS).draw(0, KEYS[0], 0, 4)
    assert drawn == ["005~4", "004~4", "005~0", "003~0"]


def test_sets_of_categories_must_differ():
    labels = [frozenset({"cat"}), frozenset({"cat", "dog"}), frozenset(), frozenset({"cat"})]
    pool = NegativePool(["a", "b", "c", "d"], labels)
    for seed in range(20):
        assert set(pool.draw(seed, "a", frozenset({"cat"}), 2)) == {"b", "c"}
        assert set(pool.draw(seed, "c", frozenset(), 3)) == {"a", "b", "d"}


def test_without_labels_any_other_key_is_a_negative():
    pool = NegativePool(["a", "b", "c", "d"], None)
    for seed in range(20):
        assert set(pool.draw(seed, "b", None, 3)) == {"a", "c", "d"}


def test_an_anchor_need_not_be_in_the_pool():
    drawn = NegativePool(KEYS, LABELS).draw(0, "new", 2, 25)
    assert set(drawn) == {k for k, label in zip(KEYS, LABELS, strict=True) if label != 2}
    assert set(NegativePool(KEYS, LABELS).draw(0, "new", "new", 30)) == set(KEYS)


@pytest.mark.parametrize("labels", [[0] * 3 + [1] * 5, None])
def test_every_negative_is_as_likely(labels):
    keys = [f"k{i}" for i in range(8)]
    pool = NegativePool(keys, labels)
    counts = Counter(key for seed in range(3000) for key in pool.draw(seed, "k0", 0, 4))
    allowed = keys[3:] if labels else keys[1:]
    assert set(counts) == set(allowed)
    expected = 3000 * 4 / len(allowed)
    assert all(abs(count - expected) < 0.1 * expected for count in counts.values())


@pytest.mark.parametrize("common", [0.0, 0.999])
def test_a_large_pool_is_not_listed_for_every_anchor(common):
    count = 200_000
    labels = np.random.default_rng(0).integers(1, 1000, count)
    labels[: int(common * count)] = 0
    keys = [f"{i:06d}" for i in range(count)]
    pool = NegativePool(keys, labels.tolist())
    start = time.process_time()
    for i in range(100):
        drawn = pool.draw(0, keys[i], int(labels[i]), 10)
        assert len(set(drawn)) == 10
        assert all(labels[int(key)] != labels[i] for key in drawn)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0, 0, 0, 1], "1 keys of another label among 4"), (None, "3 other keys among 4")],
)
def test_too_few_negatives_are_an_error(labels, words):
    pool = NegativePool(["a", "b", "c", "d"], labels)
    with pytest.raises(ValueError, match=r"num_negatives .* got 10 for 'a'.*lower it") as caught:
        pool.draw(0, "a", 0, 10)
    assert words in str(caught.value)
    with pytest.raises(ValueError, match="there are 0"):
        NegativePool([], labels and []).draw(0, "a", 0, 1)


def test_a_pool_has_distinct_keys_and_a_label_for_each():
    with pytest.raises(ValueError, match="'a' twice"):
        NegativePool(["a", "b", "a"], None)
    with pytest.raises(ValueError, match="1 labels for 2 keys"):
        NegativePool(["a", "b"], [0])
