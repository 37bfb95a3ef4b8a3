from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cdcd.evaluation import beats
from cdcd.evaluation.beats import D2M, LORIS, beat_scores, beat_vector, fit_length, pair_scores

RATE = 22050


def clicks(num_samples: int, *times: float) -> np.ndarray:
    audio = np.zeros(num_samples, np.float32)
    audio[[round(time * RATE) for time in times]] = 1.0
    return audio


def click_at(num_samples: int, index: int) -> np.ndarray:
    audio = np.zeros(num_samples, np.float32)
    audio[index] = 1.0
    return audio


SINE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(132300) / RATE)).astype(np.float32)
EVERY_HALF = np.arange(0.5, 5.6, 0.5)
SYNTHETIC = {
    "silence": (np.zeros(44100, np.float32), [], [0, 0]),
    "one click": (click_at(132300, int(2.5 * RATE)), [2.507755], [0, 0, 1, 0, 0, 0]),
    "four": (
        clicks(132300, 0.25, 1.25, 3.25, 4.75),
        [0.255420, 1.253878, 3.274014, 4.760091],
        [1, 1, 0, 1, 1, 0],
    ),
    "other four": (
        clicks(132300, 0.25, 2.25, 3.25, 5.25),
        [0.255420, 2.252336, 3.274014, 5.270930],
        [1, 0, 1, 1, 0, 1],
    ),
    "last sample of a second": (click_at(44100, 22049), [1.021678], [0, 1]),
    "sine": (SINE, [0.069660], [1, 0, 0, 0, 0, 0]),
    "constant": (np.full(44100, 0.5, np.float32), [0.069660], [1, 0]),
    "odd length": (click_at(33075, 11025), [0.510839], [1, 0]),
}


@pytest.mark.parametrize("detector", [D2M, LORIS], ids=["d2m", "loris"])
@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_signals_give_the_golden_onsets(name, detector):
    audio, onsets, vector = SYNTHETIC[name]
    track = beats.track_beats(beats.onset_envelope(audio), len(audio), detector)
    if detector is D2M:  # the golden onsets are its own; the vectors agree
        np.testing.assert_allclose(track.times, onsets, atol=1e-6)
    assert track.vector.tolist() == vector


def test_several_onsets_in_a_second_count_once():
    audio = clicks(132300, *EVERY_HALF)
    track = beats.track_beats(beats.onset_envelope(audio), len(audio), D2M)
    assert len(track.times) == 11
    np.testing.assert_allclose(track.times[[0, 1, 2, -1]], [0.510839, 1.021678, 1.509297, 5.503129])
    assert track.vector.tolist() == [1] * 6


@pytest.mark.parametrize("seed", range(5))
def test_peak_picking_equals_its_closed_form(seed):
    generator = np.random.default_rng(seed)
    audio = generator.standard_normal(44100) * np.exp(-np.arange(44100) % 5000 / 500)
    envelope = beats.onset_envelope(audio.astype(np.float32))
    normalised = (envelope - envelope.min()) / (envelope - envelope.min()).max()
    expected, last = [], -10
    for n in range(1, len(normalised)):
        if normalised[n] - normalised[n - 1] >= 0.4 and n - last > 1:
            expected.append(n)
            last = n
    found = beats.track_beats(envelope, 44100, D2M).times * RATE / 512
    assert found.round().astype(int).tolist() == expected


def test_white_noise_fakes_an_onset_in_the_first_second():
    noise = 0.1 * np.random.default_rng(0).standard_normal(44100).astype(np.float32)
    assert beat_vector(noise).tolist() == [1, 0]


@pytest.mark.parametrize("gain", [0.5, 0.01])
def test_gain_changes_nothing(gain):
    # Bursts rather than clicks: librosa's absolute floor of 1e-10 eats very quiet single samples.
    n = np.arange(88200)
    audio = np.random.default_rng(0).standard_normal(len(n)) * np.exp(-(n % 14000) / 900)
    audio = (0.5 * audio).astype(np.float32)
    assert beat_vector(np.float32(gain) * audio).tolist() == beat_vector(audio).tolist()


def test_an_onset_at_the_very_end_falls_into_the_last_bin():
    envelope = np.zeros(87, np.float32)
    envelope[86] = 1.0  # 86 * 512 / 22050 s = 1.997 s, but the clip is 1.9 s long
    assert beats.track_beats(envelope, 22050, D2M).vector.tolist() == [1]


def test_empty_sound_has_an_empty_vector():
    assert beat_vector(np.zeros(0, np.float32)).tolist() == []


def test_one_dominating_attack_is_reported():
    lonely = clicks(44100, 1.0)
    assert beats.track_beats(beats.onset_envelope(lonely), 44100).is_single_peak
    envelope = np.zeros(87, np.float32)
    envelope[40], envelope[70:80] = 1.0, np.linspace(0.05, 0.5, 10)
    assert not beats.track_beats(envelope, 44100).is_single_peak  # a slow swell above 0.4
    envelope[40], envelope[60] = 1.0, 1.0
    assert not beats.track_beats(envelope, 44100).is_single_peak


@pytest.mark.parametrize("num_samples", [44032, 45056, 46080, 44100])
def test_the_length_rule_gives_two_bins(num_samples):
    fitted = fit_length(np.ones(num_samples, np.float32), 2)
    assert not isinstance(fitted, str)
    assert fitted.shape == (44100,)
    assert beat_vector(fitted).shape == (2,)
    assert (fitted[num_samples:] == 0).all()


@pytest.mark.parametrize("num_samples", [0, 1, 512, 39689])
def test_short_clips_are_skipped(num_samples):
    assert fit_length(np.ones(num_samples, np.float32), 2) == "too_short"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_clips_are_skipped(bad):
    audio = np.ones(44100, np.float32)
    audio[7] = bad
    assert fit_length(audio, 2) == "nonfinite_audio"


def vector(*bits: int) -> np.ndarray:
    return np.array(bits, np.int8)


def test_pair_scores():
    first, second = vector(1, 1, 0, 1, 1, 0), vector(1, 0, 1, 1, 0, 1)
    assert pair_scores(first, second, "d2m") == (1.0, 0.5)
    assert pair_scores(first, second, "loris") == (0.5, 0.5)
    assert pair_scores(vector(1, 0, 0, 0, 0), vector(0, 1, 1, 1, 1), "d2m") == (4.0, 0.0)
    assert pair_scores(vector(0, 0), vector(1, 1), "d2m") == (None, None)
    assert pair_scores(vector(0, 0), vector(1, 1), "loris") == (0.0, 0.0)
    assert pair_scores(vector(1, 1), vector(0, 0), "d2m") == (0.0, 0.0)
    assert pair_scores(vector(1, 1, 1), vector(1, 0), "loris") == (1.0, 0.5)  # reference is cut


def test_unequal_bins_are_refused_as_in_the_public_script():
    with pytest.raises(AssertionError, match="got 2 and 3"):
        pair_scores(vector(1, 1), vector(1, 1, 0), "d2m")
    clips = {"a": np.zeros(44032, np.float32)}, {"a": np.zeros(46080, np.float32)}
    with pytest.raises(AssertionError):
        beat_scores(*clips, seconds=2, strict=True)
    assert beat_scores(*clips, seconds=2)["hit"].skip_counts == {"no_reference_beats": 1}


def test_set_scores_are_means_of_ratios():
    reference = {
        "a": vector(1, 0, 0, 1, 0, 0, 0),
        "b": vector(1, 1, 1, 1, 1, 1, 0),
        "c": vector(1, 1, 1, 1, 1, 1, 0),
    }
    generated = {
        "a": vector(1, 1, 1, 1, 1, 1, 0),
        "b": vector(1, 1, 1, 0, 1, 1, 0),
        "c": vector(1, 1, 1, 1, 1, 1, 0),
    }
    found = beats.score_vectors(reference, generated, D2M)
    ratios = np.array([3.0, 5 / 6, 1.0])
    assert found["coverage"].value == pytest.approx(ratios.mean())
    extra = found["coverage"].extra
    assert extra["coverage_std"] == pytest.approx(ratios.std(ddof=1))
    assert extra["coverage_abs_dev"] == pytest.approx(np.abs(ratios - 1).mean())
    hit = (1 + 5 / 6 + 1) / 3
    assert extra["f1"] == pytest.approx(2 * ratios.mean() * hit / (ratios.mean() + hit))


def test_golden_loris_set():
    reference = dict.fromkeys("abc", vector(1, 0, 0, 0, 0))
    generated = {
        "a": vector(1, 0, 1, 0, 0),
        "b": vector(1, 1, 1, 1, 1),
        "c": vector(1, 1, 1, 1, 1),
    }
    found = beats.score_vectors(reference, generated, LORIS)
    assert found["coverage"].value == pytest.approx(0.3)
    assert found["hit"].value == 1.0
    extra = found["hit"].extra
    assert extra["coverage_std"] == pytest.approx(0.173205, abs=1e-6)
    assert extra["hit_std"] == 0
    assert extra["f1"] == pytest.approx(0.461538, abs=1e-6)
    assert "coverage_abs_dev" not in extra


def test_nothing_is_dropped_silently():
    full = clicks(44100, 0.25, 1.25)
    broken = full.copy()
    broken[3] = np.nan
    reference = {"ok": full, "mute": 0 * full, "broken": broken, "gone": full, "short": full}
    generated = {"ok": full, "mute": full, "broken": full, "short": full[:100]}
    metric = beat_scores(reference, generated, seconds=2)["coverage"]
    assert metric.per_sample == {"ok": 1.0}
    assert metric.skipped == {
        "mute": "no_reference_beats",
        "broken": "reference_nonfinite_audio",
        "gone": "not_generated",
        "short": "too_short",
    }
    assert metric.extra["n_no_reference_beats"] == 1
    assert metric.warnings
    assert metric.as_dict()["n_total"] == len(reference)


CLIPS = {
    "cdcd_motivation_gt": (48000, 235520, "10000", "10000"),
    "cdcd_recons_gt": (22050, 108544, "10000", "10100"),
    "cdcd_cd2": (22050, 133120, "1001000", "1111110"),
    "cdcd_cd_tiktok": (22050, 44032, "11", "11"),
    "d2m_D2M_low1": (22050, 45056, "110", "110"),
    "d2m_tiktok_low1": (22050, 46080, "110", "110"),
}


def load_clip(name: str) -> tuple[np.ndarray, int, int]:
    """Decode everything at the native rate to 16 bits, then mono and 22,050 Hz as librosa loads."""
    import av
    import librosa

    folder = os.environ.get("CDCD_REAL_DATA")
    if not folder:
        pytest.skip("CDCD_REAL_DATA is not set")
    path = Path(folder) / "clips" / f"{name}.mp4"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        resampler = av.AudioResampler(format="s16p", rate=rate)
        parts = [
            out.to_ndarray()
            for frame in container.decode(audio=0)
            for out in resampler.resample(frame)
        ]
        parts += [out.to_ndarray() for out in resampler.resample(None)]
    wave = np.concatenate(parts, axis=1)
    mono = (wave.astype(np.float32) / 32768).mean(axis=0)
    if rate != RATE:
        mono = librosa.resample(mono, orig_sr=rate, target_sr=RATE)
    return mono, rate, wave.shape[1]


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips_give_the_golden_vectors(name):
    expected_rate, num_decoded, d2m, loris = CLIPS[name]
    audio, rate, decoded = load_clip(name)
    assert (rate, decoded) == (expected_rate, num_decoded)
    assert "".join(map(str, beat_vector(audio, D2M))) == d2m
    assert "".join(map(str, beat_vector(audio, LORIS))) == loris


def test_real_pair_gives_the_golden_scores():
    reference, generated = ({"a": load_clip(f"cdcd_{x}_gt")[0]} for x in ("motivation", "recons"))
    whole = beat_scores(reference, generated, seconds=2, strict=True)
    assert (whole["coverage"].value, whole["hit"].value) == (1.0, 1.0)
    loris = beat_scores(reference, generated, seconds=2, detector=LORIS, strict=True)
    assert (loris["coverage"].value, loris["hit"].value) == (0.5, 1.0)
    first = beat_scores(reference, generated, seconds=2)
    assert (first["coverage"].value, first["hit"].value) == (1.0, 1.0)


def test_near_silence_before_the_music_hides_later_beats():
    audio, _, _ = load_clip("cdcd_motivation_gt")
    assert beats.track_beats(beats.onset_envelope(audio), len(audio)).is_single_peak
    assert beat_vector(audio[int(0.3 * RATE) :]).tolist() == [1] * 5


def test_context_changes_a_vector_so_segments_are_scored_alone():
    audio, _, _ = load_clip("cdcd_cd2")
    assert beat_vector(audio[: 2 * RATE]).tolist() == [1, 1]


MUSIC = {
    ("sorohanro_-_solo-trumpet-06", 0, 2): ("11", None, [0.603719, 1.114558, 1.416417]),
    ("Kevin_MacLeod_-_Vibe_Ace", 0, 6): (
        "111110",
        None,
        [0.069660, 1.671837, 2.368435, 3.297234, 4.202812, 4.899410],
    ),
    ("Kevin_MacLeod_-_Vibe_Ace", 12, 18): ("001111", "101111", None),
}


@pytest.mark.parametrize("case", MUSIC, ids=lambda case: f"{case[0][:5]}-{case[1]}")
def test_real_music_gives_the_golden_vectors(case):
    import librosa

    folder = os.environ.get("CDCD_REAL_DATA")
    if not folder:
        pytest.skip("CDCD_REAL_DATA is not set")
    name, start, stop = case
    audio, _ = librosa.load(Path(folder) / "audio" / f"{name}.ogg", sr=RATE)
    audio = audio[start * RATE : stop * RATE]
    d2m, loris, onsets = MUSIC[case]
    track = beats.track_beats(beats.onset_envelope(audio), len(audio))
    assert "".join(map(str, track.vector)) == d2m
    if loris:
        assert "".join(map(str, beat_vector(audio, LORIS))) == loris
    if onsets:
        np.testing.assert_allclose(track.times, onsets, atol=1e-6)
