import itertools

import numpy as np
import pytest

from cdcd.data.embedded import music
from cdcd.data.samples import GENRES

SEED = 0


@pytest.fixture(scope="module")
def songs():
    scores = {genre: music.compose(genre, 2, seed=SEED) for genre in GENRES}
    return {genre: (score, music.render(score)) for genre, score in scores.items()}


def test_tempo_rule():
    assert [music.bpm_of("BR", n) for n in range(6)] == [80, 90, 100, 110, 120, 130]
    assert [music.bpm_of("HO", n) for n in range(6)] == [110, 115, 120, 125, 130, 135]


@pytest.mark.parametrize("genre", GENRES)
def test_score_follows_the_tempo_and_is_sorted(genre):
    for digit in range(6):
        score = music.compose(genre, digit, seed=SEED)
        assert score.name == f"m{genre}{digit}"
        assert score.bpm == music.bpm_of(genre, digit)
        assert score.duration == pytest.approx(16 * 60 / score.bpm + 2)
        times = [event.time for event in score.events]
        assert times == sorted(times)
        assert times[0] == 0.0
        assert times[-1] < score.duration
        beats = np.array(times) / score.beat_seconds
        steps = np.stack([8 * beats, 3 * beats])
        assert np.abs(steps - np.round(steps)).min(axis=0).max() < 1e-6


@pytest.mark.parametrize("genre", GENRES)
def test_hits_are_few_enough_to_be_told_apart(genre):
    for digit in range(6):
        score = music.compose(genre, digit, seed=SEED)
        times = np.unique([event.time for event in score.events])
        assert 1.5 < len(times) / score.duration < 5
        assert np.diff(times).min() > 0.09


def test_a_score_depends_on_the_seed_and_nothing_else():
    assert music.compose("LO", 3, seed=1) == music.compose("LO", 3, seed=1)
    assert music.compose("LO", 3, seed=1) != music.compose("LO", 3, seed=2)


def test_songs_of_a_genre_differ():
    scores = [music.compose("BR", digit, seed=SEED) for digit in range(6)]
    assert len({score.timbre for score in scores}) == 6
    patterns = {
        tuple(round(e.time / s.beat_seconds, 3) for e in s.events if e.time < 8 * s.beat_seconds)
        for s in scores
    }
    assert len(patterns) > 1


def test_patterns_differ_between_genres():
    cores = [music.PATTERNS[genre].core for genre in GENRES]
    assert len(set(cores)) == len(GENRES)
    assert set(music.SOUNDS) == set(music.PATTERNS) == set(GENRES)


@pytest.mark.parametrize("genre", GENRES)
def test_sound_is_stereo_at_full_level_and_outlasts_the_dance(songs, genre):
    score, sound = songs[genre]
    assert sound.dtype == np.int16
    assert sound.shape == (round(score.duration * 48000), 2)
    assert sound.shape[0] / 48000 > 16 * score.beat_seconds + 1
    assert np.abs(sound.astype(int)).max() == pytest.approx(0.9 * 32767, abs=1)
    assert np.abs(sound[-1]).max() < 50
    assert not np.array_equal(sound[:, 0], sound[:, 1])


def _onsets(sound):
    import librosa

    mono = librosa.resample(sound.mean(axis=1) / 32768, orig_sr=48000, target_sr=22050)
    return librosa.onset.onset_detect(y=mono.astype(np.float32), sr=22050, units="time")


def _f_measure(found, expected):
    import mir_eval

    return mir_eval.onset.f_measure(np.array(expected), np.array(found), window=0.05)[0]


def test_heard_onsets_are_the_hits_of_the_score_and_of_no_other_song(songs):
    heard = {genre: _onsets(sound[: 10 * 48000]) for genre, (_, sound) in songs.items()}
    # A detector with windows cannot place the very first hit.
    times = {
        genre: np.unique([e.time for e in score.events if 0.05 < e.time < 9.9])
        for genre, (score, _) in songs.items()
    }
    own = {genre: _f_measure(heard[genre], times[genre]) for genre in songs}
    assert min(own.values()) > 0.9, own
    other = [_f_measure(heard[a], times[b]) for a, b in itertools.permutations(songs, 2)]
    assert np.mean(other) < 0.5


def test_named_generators_are_independent_and_repeatable():
    draws = {
        music.generator(*key).random() for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", "b")]
    }
    assert len(draws) == 4
    assert music.generator(0, "a").random() in draws
