from __future__ import annotations

import numpy as np
import pytest

from cdcd.evaluation.genre import (
    Database,
    GenreError,
    classifier_accuracy,
    fit_classifier,
    mfcc40,
    retrieval_accuracy,
)

GENRES = {"A": "BR", "B": "BR", "C": "HO", "D": "PO"}
ENTRIES = {
    "A": np.array([0.0, 0.0]),
    "B": np.array([1.0, 0.0]),
    "C": np.array([0.0, 3.0]),
    "D": np.array([4.0, 4.0]),
}
QUERIES = {
    "q1": np.array([0.2, 0.1]),
    "q2": np.array([0.1, 2.0]),
    "q3": np.array([3.0, 3.0]),
    "q4": np.array([0.5, 0.0]),
}
TRUE = {"q1": "BR", "q2": "BR", "q3": "PO", "q4": "BR"}


def test_golden_toy():
    found = retrieval_accuracy(QUERIES, TRUE, Database.build(ENTRIES, GENRES), feature="toy")
    assert found.value == 0.75
    assert found.extra["confusion"] == {"BR": {"BR": 2, "HO": 1}, "PO": {"PO": 1}}
    assert found.extra["recall"] == {"BR": pytest.approx(2 / 3), "PO": 1.0}
    assert found.extra["macro"] == pytest.approx(5 / 6)
    assert found.per_sample == {"q1": 1.0, "q2": 0.0, "q3": 1.0, "q4": 1.0}
    assert found.extra["wilson_low"] < 0.75 < found.extra["wilson_high"]
    assert found.config["comparable_to_paper"] is False


def test_ties_go_to_the_smallest_key_whatever_the_order():
    genres = {"A": "BR", "B": "HO"}
    entries = {key: ENTRIES[key] for key in "BA"}
    for mapping in (entries, dict(reversed(entries.items()))):
        found = retrieval_accuracy(
            {"q": np.array([0.5, 0.0])}, {"q": "HO"}, Database.build(mapping, genres), feature="toy"
        )
        assert found.extra["predictions"] == {"q": "BR"}


def test_a_clip_never_retrieves_itself():
    database = Database.build(ENTRIES, GENRES)
    found = retrieval_accuracy({"A": ENTRIES["A"]}, {"A": "BR"}, database, feature="toy")
    assert found.value == 1.0  # B, not A
    with pytest.raises(GenreError, match="at least 1 entry of HO for C: got 0"):
        retrieval_accuracy({"C": ENTRIES["C"]}, {"C": "HO"}, database, feature="toy")


def test_leave_song_out_hides_the_own_song():
    songs = {"A": "s1", "B": "s2", "C": "s1", "D": "s3"}
    genres = {"A": "BR", "B": "HO", "C": "BR", "D": "BR"}
    database = Database.build(ENTRIES, genres, songs)
    query = {"q": np.array([0.1, 0.0])}
    options = {"feature": "toy", "query_songs": {"q": "s1"}}
    near = retrieval_accuracy(query, {"q": "BR"}, database, **options)
    far = retrieval_accuracy(query, {"q": "BR"}, database, leave_song_out=True, **options)
    assert (near.extra["predictions"], far.extra["predictions"]) == ({"q": "BR"}, {"q": "HO"})
    with pytest.raises(GenreError, match="needs the songs"):
        retrieval_accuracy(query, {"q": "BR"}, database, feature="toy", leave_song_out=True)


def test_majority_of_five_outvotes_the_nearest():
    entries = {f"e{i}": np.array([float(i)]) for i in range(6)}
    genres = {"e0": "BR", "e1": "HO", "e2": "HO", "e3": "PO", "e4": "BR", "e5": "PO"}
    database = Database.build(entries, genres)
    query, true = {"q": np.array([-1.0])}, {"q": "BR"}
    assert retrieval_accuracy(query, true, database, feature="toy").extra["majority_5"] == 1.0
    genres["e4"] = "HO"
    database = Database.build(entries, genres)
    found = retrieval_accuracy(query, true, database, feature="toy")
    assert (found.value, found.extra["majority_5"]) == (1.0, 0.0)


def test_clips_without_feature_are_counted_and_without_genre_refused():
    database = Database.build(ENTRIES, GENRES)
    queries = {"q1": QUERIES["q1"], "q2": "too_short"}
    found = retrieval_accuracy(queries, TRUE, database, feature="toy")
    assert (found.n, found.skipped) == (1, {"q2": "too_short"})
    with pytest.raises(GenreError, match="q1 has none"):
        retrieval_accuracy(queries, {"q1": None}, database, feature="toy")
    with pytest.raises(GenreError, match="got none"):
        Database.build({}, {})


def test_classifier_separates_clusters_and_scores_like_retrieval():
    generator = np.random.default_rng(0)
    centres = {"BR": 0.0, "HO": 5.0, "PO": -5.0}
    features, genres = {}, {}
    for genre, centre in centres.items():
        for i in range(20):
            features[f"{genre}{i}"] = centre + generator.standard_normal(6)
            genres[f"{genre}{i}"] = genre
    classifier = fit_classifier(Database.build(features, genres))
    queries = {genre: np.full(6, centre) for genre, centre in centres.items()}
    found = classifier_accuracy(
        queries | {"bad": "too_short"}, {g: g for g in centres}, classifier, feature="toy"
    )
    assert found.value == 1.0
    assert found.skipped == {"bad": "too_short"}
    assert found.config["metric"] == "genre.classifier/v1"


def test_classifier_gradient_is_zero_at_the_solution():
    generator = np.random.default_rng(1)
    features = {f"k{i:02d}": generator.standard_normal(3) for i in range(30)}
    genres = {key: ("BR", "HO")[i % 2] for i, key in enumerate(features)}
    database = Database.build(features, genres)
    classifier = fit_classifier(database)
    inputs = (database.features - classifier.mean) / classifier.scale
    inputs = np.hstack([inputs, np.ones((30, 1))])
    logits = inputs @ classifier.weights
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.array([[genre == name for name in ("BR", "HO")] for genre in database.genres])
    penalty = classifier.weights.copy()
    penalty[-1] = 0
    np.testing.assert_allclose(inputs.T @ (probs - targets) + penalty, 0, atol=1e-2)


def test_mfcc_statistics_are_finite_for_silence():
    feature = mfcc40(np.full((128, 87), -80.0))
    assert feature.shape == (40,)
    assert np.isfinite(feature).all()
    np.testing.assert_allclose(feature[20:], 0, atol=1e-4)  # nothing moves
