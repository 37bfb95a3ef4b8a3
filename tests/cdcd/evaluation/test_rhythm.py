from __future__ import annotations

import numpy as np
import pytest

from cdcd.evaluation.listening import Clip, Heard, listen
from cdcd.evaluation.rhythm import event_f1, f_measure
from cdcd.evaluation.tempo import tempo_error, tempo_errors

RATE = 22050


def music(bpm: float, seconds: int = 2, start: float = 0.1) -> np.ndarray:
    """Decaying bursts on every beat."""
    generator = np.random.default_rng(0)
    audio = np.zeros(seconds * RATE + RATE, np.float32)
    burst = generator.standard_normal(4000) * np.exp(-np.arange(4000) / 600)
    for time in np.arange(start, seconds, 60 / bpm):
        place = int(time * RATE)
        audio[place : place + 4000] += burst.astype(np.float32)
    return 0.2 * audio[: seconds * RATE]


def hear(audio: np.ndarray, seconds: int = 2) -> Heard:
    found = listen(Clip("clip", audio, seconds))
    assert isinstance(found, Heard)
    return found


@pytest.mark.parametrize(("kind", "window"), [("onset", 0.05), ("beat", 0.07)])
def test_the_window_decides(kind, window):
    reference = np.array([0.5, 1.0, 1.5])
    assert f_measure(reference, reference, kind) == 1.0
    assert f_measure(reference, reference + window - 1e-3, kind) == 1.0
    assert f_measure(reference, reference + window + 1e-3, kind) == 0.0
    assert f_measure(reference, np.array([0.5]), kind) == pytest.approx(0.5)  # P 1, R 1/3
    both = np.array([0.49, 0.51, 1.0, 1.5])  # an event matches once
    assert f_measure(reference, both, kind) == pytest.approx(6 / 7)


def test_missing_events():
    some, none = np.array([0.5]), np.zeros(0)
    assert f_measure(some, none, "onset") == 0.0
    assert f_measure(none, some, "onset") is None
    found = event_f1(
        {"a": some, "b": none, "c": some, "d": "nonfinite_audio", "e": some},
        {"a": some, "b": some, "c": none, "d": some},
        "beat",
    )
    assert found.per_sample == {"a": 1.0, "c": 0.0}
    assert found.value == 0.5
    assert found.skipped == {
        "b": "no_reference_events",
        "d": "reference_nonfinite_audio",
        "e": "not_generated",
    }


@pytest.mark.parametrize("bpm", [90, 110, 125])
def test_bursts_are_heard_where_they_are(bpm):
    found = hear(music(bpm))
    expected = np.arange(0.1, 2, 60 / bpm)
    assert found.onsets is not None
    assert f_measure(expected, found.onsets, "onset") == 1.0


@pytest.mark.parametrize("bpm", [82, 97, 113, 126, 134])
def test_refined_tempo_is_close_up_to_its_octave(bpm):
    found = hear(music(bpm, seconds=6), seconds=6)
    assert found.bpm is not None
    assert tempo_error(bpm, found.bpm, octave_aware=True) < 1.5


def test_refining_beats_the_whole_lags():
    errors = []
    for bpm in (97, 113, 126):
        lag = round(60 * RATE / 512 / bpm)
        found = hear(music(bpm, seconds=6), seconds=6).bpm
        assert found is not None
        errors.append((abs(found - bpm), abs(60 * RATE / 512 / lag - bpm)))
    assert sum(e[0] for e in errors) < sum(e[1] for e in errors)


def test_tempo_error():
    assert tempo_error(120, 60) == 60
    assert tempo_error(120, 60, octave_aware=True) == 0
    assert tempo_error(90, 183, octave_aware=True) == pytest.approx(1.5)
    found = tempo_errors(
        {"a": 120.0, "b": 120.0, "c": None, "d": 100.0, "e": 90.0},
        {"a": 130.0, "b": None, "c": 120.0, "d": "too_short"},
    )
    assert found.per_sample == {"a": 10.0}
    assert set(found.skipped.values()) == {
        "no_tempo",
        "no_reference_tempo",
        "too_short",
        "not_generated",
    }


def test_silence_is_heard_as_nothing():
    found = hear(np.zeros(2 * RATE, np.float32))
    assert found.is_silent
    assert found.bpm is None
    assert found.onsets is not None
    assert found.beats is not None
    assert len(found.onsets) == len(found.beats) == 0


def test_what_is_heard_equals_the_stand_alone_functions():
    import librosa

    from cdcd.evaluation import beats

    audio = music(117)
    found = hear(audio)
    assert found.d2m is not None
    assert found.loris is not None
    np.testing.assert_array_equal(found.d2m, beats.beat_vector(audio, beats.D2M))
    np.testing.assert_array_equal(found.loris, beats.beat_vector(audio, beats.LORIS))
    np.testing.assert_allclose(
        found.onsets, librosa.onset.onset_detect(y=audio, sr=RATE, units="time")
    )
    _, expected = librosa.beat.beat_track(y=audio, sr=RATE, trim=False, units="time")
    np.testing.assert_allclose(found.beats, expected)
    mfcc = librosa.feature.mfcc(y=audio, sr=RATE, n_mfcc=20)
    np.testing.assert_allclose(found.mfcc[:20], mfcc.mean(axis=1), rtol=1e-4, atol=1e-3)


def test_unusable_sound_gives_a_reason():
    assert listen(Clip("short", np.zeros(100, np.float32), 2)) == "too_short"
    broken = np.full(2 * RATE, np.nan, np.float32)
    assert listen(Clip("broken", broken, 2)) == "nonfinite_audio"
