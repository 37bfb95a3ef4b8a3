"""Genre accuracy: does the music nearest to a generated clip belong to the dance's genre?

Protocol `genre.retrieval/v1`: a database of original train segments of the same length, whose
songs are no test songs; the prediction is the genre of the nearest entry by Euclidean distance.
Protocol `genre.classifier/v1`: a logistic regression on the same features. Published numbers rest
on a VGGish feature; `mfcc40` needs no weights, and its numbers are not comparable to the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.evaluation.result import Metric, mean_metric
from cdcd.evaluation.statistics import wilson_interval

Features = NDArray[np.float64]


class GenreError(ValueError):
    """Genre accuracy is not defined for these clips; the message is one line."""


@dataclass(frozen=True, eq=False)
class Database:
    """Original segments to retrieve from, sorted by key.

    Attributes:
        keys: distinct names.
        features: float64 `[n, d]`.
        genres: genre of each entry.
        songs: song of each entry, or None.
    """

    keys: tuple[str, ...]
    features: Features
    genres: tuple[str, ...]
    songs: tuple[str, ...] | None = None

    @classmethod
    def build(
        cls,
        features: Mapping[str, NDArray[np.floating]],
        genres: Mapping[str, str],
        songs: Mapping[str, str] | None = None,
    ) -> Database:
        """Sort the entries of `features` by key, so that ties go to the smallest key."""
        keys = tuple(sorted(features))
        if not keys:
            raise GenreError("a genre database needs entries: got none; shard some train clips")
        return cls(
            keys,
            np.stack([np.asarray(features[key], dtype=np.float64) for key in keys]),
            tuple(genres[key] for key in keys),
            tuple(songs[key] for key in keys) if songs else None,
        )


def mfcc40(log_mel: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return mean and standard deviation over time of 20 MFCCs: float32 `[40]`.

    Args:
        log_mel: decibels, float `[bands, frames]`.
    """
    import librosa

    coefficients = librosa.feature.mfcc(S=log_mel, n_mfcc=20)
    return np.concatenate([coefficients.mean(axis=1), coefficients.std(axis=1)]).astype(np.float32)


def _neighbours(query: Features, database: Database, allowed: NDArray[np.bool_]) -> list[int]:
    distances = ((database.features - query) ** 2).sum(axis=1)
    order = np.argsort(distances, kind="stable")  # stable: equal distances keep the order of keys
    return [int(i) for i in order if allowed[i]]


def _majority(genres: Sequence[str]) -> str:
    # Among equally frequent genres the one with the nearest member wins.
    return max(dict.fromkeys(genres), key=lambda genre: (genres.count(genre), -genres.index(genre)))


def confusion_matrix(
    true: Mapping[str, str], predicted: Mapping[str, str]
) -> dict[str, dict[str, int]]:
    """Count predictions; rows are true genres, columns predicted ones, zeros left out."""
    matrix: dict[str, dict[str, int]] = {}
    for key in sorted(predicted):
        row = matrix.setdefault(true[key], {})
        row[predicted[key]] = row.get(predicted[key], 0) + 1
    return {genre: dict(sorted(row.items())) for genre, row in sorted(matrix.items())}


def _accuracy(
    predictions: Mapping[str, str],
    true: Mapping[str, str],
    skipped: Mapping[str, str],
    config: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Metric:
    scores: dict[str, float | str] = {
        key: float(predictions[key] == true[key]) for key in predictions
    }
    matrix = confusion_matrix(true, predictions)
    recall = {genre: row.get(genre, 0) / sum(row.values()) for genre, row in matrix.items()}
    details: dict[str, Any] = {
        "confusion": matrix,
        "recall": recall,
        "predictions": dict(predictions),
    }
    if predictions:
        share = sum(found == true[key] for key, found in predictions.items()) / len(predictions)
        low, high = wilson_interval(share, len(predictions))
        details |= {
            "macro": sum(recall.values()) / len(recall),
            "wilson_low": low,
            "wilson_high": high,
        }
    return mean_metric(scores | dict(skipped), config, extra=details | dict(extra))


def retrieval_accuracy(
    queries: Mapping[str, NDArray[np.floating] | str],
    true: Mapping[str, str | None],
    database: Database,
    *,
    feature: str,
    query_songs: Mapping[str, str] | None = None,
    leave_song_out: bool = False,
) -> Metric:
    """Score a set of clips by retrieval.

    Args:
        queries: feature `[d]` by key, or the reason why the clip has none.
        true: genre of the conditioning dance by key.
        database: what is retrieved from. An entry with a query's own key is never retrieved.
        feature: name of the feature; anything but `vggish` is not comparable to the paper.
        query_songs: song by key, needed by `leave_song_out`.
        leave_song_out: hide the entries of the query's own song.

    Returns:
        Accuracy; `extra`: `confusion`, `recall`, `macro`, `majority_5` (vote of five), Wilson
        interval, `predictions`.

    Raises:
        GenreError: a clip has no genre, or a genre asked for has no entry left in the database.
    """
    if leave_song_out and (database.songs is None or query_songs is None):
        raise GenreError(
            "leave_song_out needs the songs of clips and database: got none; pass them"
        )
    predictions: dict[str, str] = {}
    votes: dict[str, bool] = {}
    skipped: dict[str, str] = {}
    labels: dict[str, str] = {}
    db_keys, db_genres = np.array(database.keys), np.array(database.genres)
    db_songs = np.array(database.songs) if leave_song_out else None
    for key in sorted(queries):
        query, genre = queries[key], true.get(key)
        if genre is None:
            raise GenreError(
                f"genre accuracy needs every clip's genre: {key} has none; leave it out"
            )
        labels[key] = genre
        if isinstance(query, str):
            skipped[key] = query
            continue
        allowed = db_keys != key
        if db_songs is not None and query_songs is not None:
            allowed &= db_songs != query_songs[key]
        if not (allowed & (db_genres == genre)).any():
            raise GenreError(
                f"the genre database needs at least 1 entry of {genre} for {key}: got 0; "
                "add songs of this genre"
            )
        found = [database.genres[i] for i in _neighbours(np.asarray(query), database, allowed)[:5]]
        predictions[key], votes[key] = found[0], _majority(found) == genre
    config = {
        "metric": "genre.retrieval/v1",
        "feature": feature,
        "k": 1,
        "distance": "euclidean",
        "standardise": False,
        "leave_song_out": leave_song_out,
        "num_database": len(database.keys),
        "comparable_to_paper": feature == "vggish" and not leave_song_out,
    }
    extra = {"majority_5": sum(votes.values()) / len(votes) if votes else None}
    return _accuracy(predictions, labels, skipped, config, extra)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A logistic regression on standardised features; `fit_classifier` makes one."""

    genres: tuple[str, ...]
    mean: Features
    scale: Features
    weights: Features  # d+1 k

    def predict(self, features: NDArray[np.floating]) -> list[str]:
        """Return the likeliest genre of each row of `[n, d]`."""
        inputs = _with_bias((np.asarray(features, dtype=np.float64) - self.mean) / self.scale)
        return [self.genres[i] for i in (inputs @ self.weights).argmax(axis=1)]


def _with_bias(features: Features) -> Features:
    return np.hstack([features, np.ones((len(features), 1))])


def fit_classifier(database: Database, penalty: float = 1.0) -> Classifier:
    """Fit a multinomial logistic regression; convex, so the result does not depend on a seed.

    Args:
        database: features and genres to learn.
        penalty: weight of the squared norm of the weights (the bias is free).
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    genres = tuple(sorted(set(database.genres)))
    mean, scale = database.features.mean(axis=0), database.features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    inputs = _with_bias((database.features - mean) / scale)
    targets = np.array([[genre == name for name in genres] for genre in database.genres], float)
    shape = (inputs.shape[1], len(genres))

    def objective(flat: Features) -> tuple[float, Features]:
        weights = flat.reshape(shape)
        log_probs = log_softmax(inputs @ weights, axis=1)
        free = weights.copy()
        free[-1] = 0
        loss = -(targets * log_probs).sum() + 0.5 * penalty * (free**2).sum()
        gradient = inputs.T @ (np.exp(log_probs) - targets) + penalty * free
        return float(loss), gradient.ravel()

    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B")
    return Classifier(genres, mean, scale, found.x.reshape(shape))


def classifier_accuracy(
    queries: Mapping[str, NDArray[np.floating] | str],
    true: Mapping[str, str],
    classifier: Classifier,
    *,
    feature: str,
) -> Metric:
    """Score a set of clips by `genre.classifier/v1`; arguments as in `retrieval_accuracy`."""
    scored = {k: q for k, q in sorted(queries.items()) if not isinstance(q, str)}
    skipped = {key: query for key, query in queries.items() if isinstance(query, str)}
    found = classifier.predict(np.stack(list(scored.values()))) if scored else []
    config = {
        "metric": "genre.classifier/v1",
        "feature": feature,
        "penalty": 1.0,
        "comparable_to_paper": False,
    }
    return _accuracy(dict(zip(scored, found, strict=True)), true, skipped, config, {})
