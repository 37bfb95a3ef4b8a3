"""Tempo of a clip in beats per minute, and its distance from the tempo it should have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cdcd.data.samples import SAMPLE_RATE_HZ
from cdcd.evaluation.beats import HOP
from cdcd.evaluation.result import Metric, mean_metric

OCTAVES = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)


def estimate_tempo(envelope: NDArray[np.floating]) -> tuple[float, float] | None:
    """Estimate the tempo of an onset envelope at a hop of 512 samples.

    librosa picks the lag (its prior is log-normal around 120 BPM). Whole lags lie about 5 BPM apart
    at 120 BPM, so a parabola through the autocorrelation around the lag refines it.

    Returns:
        librosa's tempo and the refined one, in BPM; None for silence.
    """
    from librosa.feature import tempo

    if not envelope.any():
        return None
    coarse = float(tempo(onset_envelope=envelope, sr=SAMPLE_RATE_HZ, hop_length=HOP)[0])
    if not np.isfinite(coarse) or coarse <= 0:
        return None
    frame_rate = SAMPLE_RATE_HZ / HOP
    lag = round(60 * frame_rate / coarse)
    centred = envelope - envelope.mean()
    if not 1 <= lag < len(envelope) - 1:
        return coarse, coarse
    before, here, after = (
        float(centred[step:] @ centred[: len(centred) - step]) / (len(centred) - step)
        for step in (lag - 1, lag, lag + 1)
    )
    curvature = before - 2 * here + after
    shift = 0.5 * (before - after) / curvature if curvature < 0 else 0.0
    return coarse, 60 * frame_rate / (lag + float(np.clip(shift, -0.5, 0.5)))


def tempo_error(expected_bpm: float, got_bpm: float, *, octave_aware: bool = False) -> float:
    """Return the absolute difference in BPM.

    Octave-aware: the smallest difference over the generated tempo times 1/3, 1/2, 1, 2 and 3, as a
    listener may tap at any of these levels.
    """
    factors = OCTAVES if octave_aware else (1.0,)
    return min(abs(got_bpm * factor - expected_bpm) for factor in factors)


def tempo_errors(
    expected_bpm: Mapping[str, float | None],
    got_bpm: Mapping[str, float | str | None],
    *,
    octave_aware: bool = False,
) -> Metric:
    """Score a set of clips: the mean of `tempo_error`.

    Args:
        expected_bpm: annotated tempo of the reference by key; None where unknown.
        got_bpm: estimated tempo by key; None if the clip has none (silence), or a skip reason. Keys
            missing here are skipped as `not_generated`.
        octave_aware: see `tempo_error`.
    """
    scores: dict[str, float | str] = {}
    for key, expected in expected_bpm.items():
        got = got_bpm.get(key, "not_generated")
        if expected is None:
            scores[key] = "no_reference_tempo"
        elif isinstance(got, str):
            scores[key] = got
        elif got is None:
            scores[key] = "no_tempo"
        else:
            scores[key] = tempo_error(expected, got, octave_aware=octave_aware)
    config = {
        "metric": "tempo_error_bpm",
        "octave_aware": octave_aware,
        "octaves": list(OCTAVES) if octave_aware else [1.0],
        "prior_bpm": 120,
        "hop": HOP,
        "refined": True,
    }
    return mean_metric(scores, config)
