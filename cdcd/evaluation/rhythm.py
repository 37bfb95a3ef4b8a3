"""Strict rhythm scores: F-measures of onsets at 50 ms and of beats at 70 ms against the reference.

Choices, all for segments of a few seconds:

- Onsets: librosa's detector with its defaults on a hop of 512 samples (23 ms), no backtracking.
- Beats: librosa's dynamic-programming tracker at its own tempo estimate, without trimming weak
  beats at the ends. mir_eval's `trim_beats`, which drops the first 5 s, stays off: nothing would
  be left.
- Reference and generated clip pass the same detectors, so the ground truth scores 1 and the
  distance to 1 is the music's, not the detector's.
- A reference without events has no score (`no_reference_events`); a generated clip without events
  scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cdcd.data.samples import SAMPLE_RATE_HZ
from cdcd.evaluation.beats import HOP
from cdcd.evaluation.result import Metric, mean_metric

WINDOW_SECONDS: dict[str, float] = {"onset": 0.05, "beat": 0.07}

Times = NDArray[np.float64]


def onset_times(envelope: NDArray[np.floating]) -> Times:
    """Return the onsets of a mean-aggregated envelope in seconds, float64 `[n]`, increasing."""
    from librosa.onset import onset_detect

    times = onset_detect(onset_envelope=envelope, sr=SAMPLE_RATE_HZ, hop_length=HOP, units="time")
    return np.asarray(times, dtype=np.float64)


def beat_times(envelope: NDArray[np.floating], bpm: float) -> Times:
    """Return the beats of a median-aggregated envelope in seconds, float64 `[n]`, increasing.

    Args:
        envelope: float `[frames]` at a hop of 512; silence has no beats.
        bpm: tempo to which the tracker holds, above 0.
    """
    from librosa.beat import beat_track

    if not envelope.any():
        return np.zeros(0)
    _, times = beat_track(
        onset_envelope=envelope,
        sr=SAMPLE_RATE_HZ,
        hop_length=HOP,
        bpm=bpm,
        trim=False,
        units="time",
    )
    return np.asarray(times, dtype=np.float64)


def f_measure(reference: Times, generated: Times, kind: Literal["onset", "beat"]) -> float | None:
    """Match events one to one within the window of `kind`; None if the reference has none.

    Args:
        reference: seconds, increasing.
        generated: seconds, increasing.
        kind: `onset` (50 ms) or `beat` (70 ms).

    Returns:
        Between 0 and 1.
    """
    import mir_eval

    if not len(reference):
        return None
    if not len(generated):
        return 0.0
    window = WINDOW_SECONDS[kind]
    if kind == "onset":
        return float(mir_eval.onset.f_measure(reference, generated, window=window)[0])
    return float(mir_eval.beat.f_measure(reference, generated, f_measure_threshold=window))


def event_f1(
    reference: Mapping[str, Times | str],
    generated: Mapping[str, Times | str],
    kind: Literal["onset", "beat"],
) -> Metric:
    """Score a set of clips from their event times: the mean of per-clip F-measures.

    Args:
        reference: event times by key, or the reason why the clip has none.
        generated: likewise; keys missing here are skipped as `not_generated`.
        kind: `onset` or `beat`.
    """
    scores: dict[str, float | str] = {}
    for key, expected in reference.items():
        got = generated.get(key, "not_generated")
        if isinstance(expected, str):
            scores[key] = f"reference_{expected}"
        elif isinstance(got, str):
            scores[key] = got
        else:
            score = f_measure(expected, got, kind)
            scores[key] = "no_reference_events" if score is None else score
    config = {"metric": f"{kind}_f1", "window_seconds": WINDOW_SECONDS[kind], "hop": HOP}
    if kind == "beat":
        config |= {"trim": False, "trim_beats": False}
    return mean_metric(scores, config)
