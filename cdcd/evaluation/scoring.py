"""All per-clip scores of one system and seed against the originals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.evaluation import beats, rhythm, tempo
from cdcd.evaluation.genre import (
    Classifier,
    Database,
    GenreError,
    classifier_accuracy,
    retrieval_accuracy,
)
from cdcd.evaluation.listening import Heard
from cdcd.evaluation.result import Metric

Hearing = Mapping[str, "Heard | str"]
Feature = Mapping[str, "NDArray[np.floating] | str"]


def _pick(heard: Hearing, get: Callable[[Heard], Any]) -> dict[str, Any]:
    return {key: one if isinstance(one, str) else get(one) for key, one in heard.items()}


def rhythm_scores(
    reference: Hearing, generated: Hearing, bpm: Mapping[str, float | None]
) -> dict[str, Metric]:
    """Score onsets, beats and tempo.

    Args:
        reference: what was heard in the originals, by key.
        generated: what was heard in the system's clips.
        bpm: tempo of the original music by key.

    Returns:
        `onset_f1`, `beat_f1`, `tempo_error_bpm`, `tempo_error_octave_bpm`, `d2m.coverage`,
        `d2m.hit`, `loris.bcs`, `loris.bhs`.
    """
    tempi = _pick(generated, lambda heard: heard.bpm)
    scores = {
        "onset_f1": rhythm.event_f1(
            _pick(reference, lambda heard: heard.onsets),
            _pick(generated, lambda heard: heard.onsets),
            "onset",
        ),
        "beat_f1": rhythm.event_f1(
            _pick(reference, lambda heard: heard.beats),
            _pick(generated, lambda heard: heard.beats),
            "beat",
        ),
        "tempo_error_bpm": tempo.tempo_errors(bpm, tempi),
        "tempo_error_octave_bpm": tempo.tempo_errors(bpm, tempi, octave_aware=True),
    }
    d2m = beats.score_vectors(
        _pick(reference, lambda heard: heard.d2m),
        _pick(generated, lambda heard: heard.d2m),
        beats.D2M,
    )
    loris = beats.score_vectors(
        _pick(reference, lambda heard: heard.loris),
        _pick(generated, lambda heard: heard.loris),
        beats.LORIS,
    )
    return scores | {
        "d2m.coverage": d2m["coverage"],
        "d2m.hit": d2m["hit"],
        "loris.bcs": loris["coverage"],
        "loris.bhs": loris["hit"],
    }


def genre_scores(
    features: Feature,
    genres: Mapping[str, str | None],
    database: Database,
    classifier: Classifier | None,
    feature: str,
) -> tuple[dict[str, Metric], list[str]]:
    """Score genres by retrieval and by classifier.

    Returns:
        `genre_accuracy` and, with a classifier, `genre_classifier`; and the reason for each metric
        that refused.
    """
    asked = {key: genres.get(key) for key in features}
    try:
        scores = {"genre_accuracy": retrieval_accuracy(features, asked, database, feature=feature)}
    except GenreError as error:
        return {}, [f"genre accuracy refused: {error}"]
    if classifier is not None:
        known = {key: genre for key, genre in asked.items() if genre is not None}
        scores["genre_classifier"] = classifier_accuracy(
            features, known, classifier, feature=feature
        )
    return scores, []


def listening_warnings(system: str, heard: Hearing) -> list[str]:
    """Say what about a system's clips makes their scores doubtful."""
    clips = [one for one in heard.values() if not isinstance(one, str)]
    warnings = []
    if silent := sum(one.is_silent for one in clips):
        warnings.append(f"{system}: {silent} of {len(clips)} clips are silent")
    if single := sum(one.is_single_peak for one in clips):
        warnings.append(
            f"{system}: single_peak: in {single} of {len(clips)} clips one attack dwarfs the other "
            "beats, which the 1-second beat scores then miss"
        )
    return warnings
