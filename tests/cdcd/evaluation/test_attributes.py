import numpy as np
import pytest

from cdcd.evaluation.attributes import SIZE, UNKNOWN, fit_classifier


def squares(num, seed):
    """Pictures with one to three squares of one of three colours."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 60, (num, SIZE, SIZE, 3)).astype(np.uint8)
    colour, count = rng.integers(0, 3, num), rng.integers(0, 3, num)
    for picture, c, n in zip(pictures, colour, count, strict=True):
        for place in rng.permutation(9)[: n + 1]:
            y, x = 4 + 20 * (place // 3), 4 + 20 * (place % 3)
            picture[y : y + 12, x : x + 12] = np.eye(3)[c] * 200
    return pictures, {"colour": colour, "count": count}


def test_colours_and_counts_are_read_back_on_held_out_pictures():
    pictures, labels = squares(1000, 0)
    model = fit_classifier(pictures, labels, num_epochs=8, width=16)
    accuracy = model.accuracy(*squares(150, 1))
    assert min(accuracy.values()) > 0.95
    shuffled = {
        name: np.random.default_rng(2).permutation(v) for name, v in squares(150, 1)[1].items()
    }
    assert max(model.accuracy(squares(150, 1)[0], shuffled).values()) < 0.55


def test_equal_seeds_give_equal_predictions_and_unknown_labels_are_left_out():
    pictures, labels = squares(64, 0)
    labels["colour"][:20] = UNKNOWN
    one, two = (fit_classifier(pictures, labels, num_epochs=1) for _ in range(2))
    for name in labels:
        np.testing.assert_array_equal(one.predict(pictures)[name], two.predict(pictures)[name])
    assert np.isnan(one.accuracy(pictures, {"colour": np.full(64, UNKNOWN)})["colour"])


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"must be \[n, 64, 64, 3\]"):
        fit_classifier(np.zeros((3, 32, 32, 3), np.uint8), {"a": np.zeros(3, np.int64)})
