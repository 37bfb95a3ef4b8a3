"""Beats coverage and beats hit, as the two public scripts define them.

A clip becomes a vector with one bin a second: 1 if an onset falls into it. Two detectors and two
formulas carry the same names in the literature; here they are always told apart as `d2m` (Zhu et
al.) and `loris`. Both prove little: a steady sound fakes an onset at 0.07 s, so white noise hits
half of a two-second reference. See `cdcd.evaluation.rhythm` for scores that cannot be met by
accident.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cdcd.data.samples import SAMPLE_RATE_HZ
from cdcd.evaluation.result import Metric, mean_metric

HOP = 512
MIN_SHARE = 0.9
_SINGLE_PEAK_LEVEL = 0.4
_SINGLE_PEAK_FRAMES = 3

Vector = NDArray[np.int8]


@dataclass(frozen=True)
class Detector:
    """Parameters of librosa's peak picking, in frames of 512 samples (`delta`: of the maximum)."""

    name: Literal["d2m", "loris"]
    pre_max: int
    post_max: int
    pre_avg: int
    post_avg: int
    delta: float = 0.2
    wait: int = 1


D2M = Detector("d2m", pre_max=1, post_max=1, pre_avg=1, post_avg=1)
LORIS = Detector("loris", pre_max=3, post_max=3, pre_avg=3, post_avg=3)


@dataclass(frozen=True, eq=False)
class BeatTrack:
    """Onsets of one clip.

    Attributes:
        times: float64 `[n]`, seconds, increasing.
        vector: int8 `[ceil(seconds)]`, 1 where an onset falls into the second.
        is_single_peak: the one onset found dwarfs the rest of the clip, whose beats are lost.
    """

    times: NDArray[np.float64]
    vector: Vector
    is_single_peak: bool


def fit_length(audio: NDArray[np.floating], seconds: int) -> NDArray[np.float32] | str:
    """Cut or zero-pad a clip to its nominal length, so that every clip has the same bins.

    Args:
        audio: float `[n]`, mono, 22,050 Hz.
        seconds: nominal length.

    Returns:
        float32 `[seconds * 22050]`, or the reason to skip the clip: `too_short` (under 90 % of the
        nominal length) or `nonfinite_audio`.
    """
    wanted = seconds * SAMPLE_RATE_HZ
    audio = np.asarray(audio)[:wanted]
    if len(audio) < MIN_SHARE * wanted:
        return "too_short"
    if not np.isfinite(audio).all():
        return "nonfinite_audio"
    return np.pad(audio.astype(np.float32), (0, wanted - len(audio)))


def onset_envelope(audio: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return librosa's onset strength with its defaults: float32 `[1 + n // 512]`."""
    from librosa.onset import onset_strength

    return np.asarray(onset_strength(y=audio, sr=SAMPLE_RATE_HZ))


def track_beats(
    envelope: NDArray[np.floating], num_samples: int, detector: Detector = D2M
) -> BeatTrack:
    """Pick the onsets of an envelope and sort them into one-second bins.

    Args:
        envelope: float `[frames]`, see `onset_envelope`.
        num_samples: length of the clip it was taken from.
        detector: `D2M` or `LORIS`.
    """
    from librosa.onset import onset_detect

    frames = onset_detect(
        onset_envelope=envelope,
        sr=SAMPLE_RATE_HZ,
        hop_length=HOP,
        pre_max=detector.pre_max,
        post_max=detector.post_max,
        pre_avg=detector.pre_avg,
        post_avg=detector.post_avg,
        delta=detector.delta,
        wait=detector.wait,
    )
    times = np.asarray(frames, dtype=np.float64) * HOP / SAMPLE_RATE_HZ
    vector = np.zeros(math.ceil(num_samples / SAMPLE_RATE_HZ), dtype=np.int8)
    # The envelope's last frame may lie exactly at the end, one past the last bin.
    vector[np.minimum(times.astype(int), len(vector) - 1)] = 1
    return BeatTrack(times, vector, _is_single_peak(envelope, frames))


def _is_single_peak(envelope: NDArray[np.floating], frames: NDArray[np.integer]) -> bool:
    if len(frames) != 1:
        return False
    shifted = envelope - envelope.min()
    normalised = shifted / (shifted.max() + np.finfo(shifted.dtype).tiny)
    far = np.abs(np.arange(len(envelope)) - frames[0]) > _SINGLE_PEAK_FRAMES
    return bool((normalised[far] < _SINGLE_PEAK_LEVEL).all())


def beat_vector(audio: NDArray[np.floating], detector: Detector = D2M) -> Vector:
    """Return a whole clip's vector, without the length rule: int8 `[ceil(n / 22050)]`."""
    if not len(audio):
        return np.zeros(0, dtype=np.int8)
    return track_beats(onset_envelope(audio), len(audio), detector).vector


def pair_scores(
    reference: Vector, generated: Vector, variant: Literal["d2m", "loris"]
) -> tuple[float | None, float | None]:
    """Score one pair of vectors.

    d2m: coverage = generated beats / reference beats (may exceed 1), hit = common beats /
    reference beats; both None when the reference has no beat.
    loris: coverage = common beats / generated beats (a precision), hit as above (a recall); 0 where
    a denominator is 0. The reference is first cut to the generated length.

    Raises:
        AssertionError: the vectors differ in length, as in the public scripts.
    """
    if variant == "loris":
        reference = reference[: len(generated)]
    if len(reference) != len(generated):
        raise AssertionError(
            f"vectors must have equal numbers of bins: got {len(reference)} and "
            f"{len(generated)}; apply fit_length to both clips"
        )
    common = int((reference & generated).sum())
    num_reference, num_generated = int(reference.sum()), int(generated.sum())
    if variant == "d2m":
        if num_reference == 0:
            return None, None
        return num_generated / num_reference, common / num_reference
    coverage = common / num_generated if num_generated else 0.0
    return coverage, common / num_reference if num_reference else 0.0


def _f1(coverage: float, hit: float) -> float:
    return 2 * coverage * hit / (coverage + hit) if coverage + hit else 0.0


def _std(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def score_vectors(
    reference: Mapping[str, Vector | str],
    generated: Mapping[str, Vector | str],
    detector: Detector = D2M,
) -> dict[str, Metric]:
    """Score a set of clips from their vectors.

    Args:
        reference: vector by key, or the reason why the clip has none.
        generated: likewise; keys missing here are skipped as `not_generated`.
        detector: names the formulas; the vectors must come from the same detector.

    Returns:
        `coverage` and `hit` (for loris these are BCS and BHS). `extra` of both: `f1` of the set
        means (may exceed 1 for d2m), `coverage_std`, `hit_std` (ddof 1), `n_no_reference_beats`,
        and for d2m `coverage_abs_dev`, the mean of |coverage - 1|.
    """
    coverage: dict[str, float | str] = {}
    hit: dict[str, float | str] = {}
    num_without = 0
    for key, expected in reference.items():
        got = generated.get(key, "not_generated")
        if isinstance(expected, str) or isinstance(got, str):
            reason = f"reference_{expected}" if isinstance(expected, str) else str(got)
            coverage[key] = hit[key] = reason
            continue
        num_without += not expected.any()
        pair = pair_scores(expected, got, detector.name)
        coverage[key], hit[key] = ("no_reference_beats" if x is None else x for x in pair)
    warnings = (f"{num_without} references have no beats",) if num_without else ()
    config = {"metric": f"beats.{detector.name}", "hop": HOP, "detector": asdict(detector)}
    ratios = {
        name: [x for x in scores.values() if not isinstance(x, str)]
        for name, scores in (("coverage", coverage), ("hit", hit))
    }
    extra: dict[str, float | int | None] = {"n_no_reference_beats": num_without, "f1": None}
    if ratios["coverage"]:
        means = {name: sum(values) / len(values) for name, values in ratios.items()}
        extra["f1"] = _f1(means["coverage"], means["hit"])
        extra["coverage_std"], extra["hit_std"] = (_std(ratios[x]) for x in ("coverage", "hit"))
        if detector.name == "d2m":
            deviations = [abs(x - 1) for x in ratios["coverage"]]
            extra["coverage_abs_dev"] = sum(deviations) / len(deviations)
    return {
        "coverage": mean_metric(coverage, {**config, "score": "coverage"}, warnings, extra),
        "hit": mean_metric(hit, {**config, "score": "hit"}, warnings, extra),
    }


def beat_scores(
    reference: Mapping[str, NDArray[np.floating]],
    generated: Mapping[str, NDArray[np.floating]],
    *,
    seconds: int,
    detector: Detector = D2M,
    strict: bool = False,
) -> dict[str, Metric]:
    """Score a set of clips from their sound; see `score_vectors`.

    Args:
        reference: float `[n]` at 22,050 Hz by key.
        generated: likewise.
        seconds: nominal length of the clips.
        detector: `D2M` or `LORIS`.
        strict: leave the clips at their own lengths, as the public scripts do.

    Raises:
        AssertionError: strict, and a pair has different numbers of bins.
    """

    def vectors(clips: Mapping[str, NDArray[np.floating]]) -> dict[str, Vector | str]:
        out: dict[str, Vector | str] = {}
        for key, audio in clips.items():
            clip = audio if strict else fit_length(audio, seconds)
            out[key] = clip if isinstance(clip, str) else beat_vector(clip, detector)
        return out

    return score_vectors(vectors(reference), vectors(generated), detector)
