import numpy as np
import pytest

from cdcd.evaluation.pictures.accuracy import (
    attribute_scores,
    class_accuracy,
    top_classes,
)

LOGITS = [[0.1, 0.9, 0.3], [0.5, 0.2, 0.4]]


def accuracy_of(logits, labels, k):
    rows = dict(enumerate(top_classes(logits, k)))
    return class_accuracy(rows, dict(enumerate(labels)), k)


@pytest.mark.parametrize(("k", "share"), [(2, 0.5), (1, 0.0), (3, 1.0)])
def test_golden(k, share):
    found = accuracy_of(LOGITS, [2, 1], k)
    assert found.value == share
    assert found.n == 2


def test_ties_go_to_the_lower_index():
    assert top_classes([[1.0, 2.0, 2.0, 1.0]], 3).tolist() == [[1, 2, 0]]
    assert accuracy_of([[0.0, 0.0]], [1], 1).value == 0.0
    assert accuracy_of([[0.0, 0.0]], [0], 1).value == 1.0


def test_refusals():
    with pytest.raises(ValueError, match="k must be 1 to 3, the number of classes: got 4"):
        top_classes(LOGITS, 4)
    with pytest.raises(ValueError, match="got NaN in 1 of 2 rows"):
        top_classes([[0.1, np.nan, 0.3], [0.5, 0.2, 0.4]], 1)
    with pytest.raises(ValueError, match=r"must be \[n, classes\]: got \[3\]"):
        top_classes([0.1, 0.2, 0.3], 1)


def test_every_class_has_a_row_and_nothing_is_dropped():
    top = {"a": np.array([0, 1]), "b": np.array([1, 0]), "c": np.array([1, 2])}
    labels = {"a": 0, "b": 0, "c": 1, "d": 1, "e": None}
    found = class_accuracy(top, labels, 1, {0: "rings"})
    assert found.per_sample == {"a": 1.0, "b": 0.0, "c": 1.0}
    assert found.skipped == {"d": "not_generated", "e": "no_label"}
    assert found.extra["per_class"] == {
        "0 rings": {"accuracy": 0.5, "n": 2},
        "1": {"accuracy": 1.0, "n": 1},
    }
    assert class_accuracy(top, labels, 2).value == 1.0


def test_attributes_that_are_not_told_are_not_scored():
    families = {"body": "body", "wing": "wing", "count of car": "count", "count of box": "count"}
    seen = {"body": "red", "wing": "blue", "count of car": "1", "count of box": "2"}
    told = {
        "a": {"body": "red", "wing": "black"},
        "b": {"count of car": "1", "count of box": "3"},
        "c": {"body": "red"},
        "d": {},
        "e": {"body": "red"},
    }
    found = attribute_scores(told, dict.fromkeys("abcd", seen), families, {"classifier": "toy"})
    assert found["attribute_accuracy"].per_sample == {"a": 0.5, "b": 0.5, "c": 1.0}
    assert found["attribute_accuracy"].skipped == {"d": "not_told", "e": "not_generated"}
    assert found["all_attributes"].per_sample == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert found["attributes.body"].per_sample == {"a": 1.0, "c": 1.0}
    assert found["attributes.count"].per_sample == {"b": 0.5}
    errors = found["attribute_accuracy"].extra["most_frequent_errors"]
    assert errors == {"wing: black seen as blue": 1, "count of box: 3 seen as 2": 1}
    for metric in found.values():
        assert metric.n + len(metric.skipped) == 5
        assert metric.config["classifier"] == "toy"
