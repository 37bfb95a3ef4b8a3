from __future__ import annotations

import numpy as np
import pytest

from cdcd.evaluation.controls import derange, silence, white_noise


def clips(sizes: list[int]) -> dict[str, str]:
    return {f"s{song}k{i}": f"s{song}" for song, size in enumerate(sizes) for i in range(size)}


@pytest.mark.parametrize("sizes", [[1, 1], [3, 3], [1, 2, 3], [4, 4, 4, 5], [1] * 9, [5, 1, 1, 3]])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_everyone_gets_another_song_once(sizes, seed):
    songs = clips(sizes)
    other = derange(list(songs), songs, seed)
    assert sorted(other) == sorted(other.values()) == sorted(songs)
    assert all(songs[key] != songs[other[key]] for key in songs)


def test_seed_alone_decides():
    songs = clips([3, 3, 4, 5])
    first = derange(list(songs), songs, 0)
    assert derange(list(reversed(songs)), songs, 0) == first
    assert derange(list(songs), songs, 1) != first


def test_partners_of_a_song_come_from_many_songs():
    songs = clips([4] * 10)
    other = derange(list(songs), songs, 0)
    partners = {songs[other[key]] for key in songs if songs[key] == "s0"}
    assert len(partners) > 1
    seen = {derange(list(songs), songs, seed)["s0k0"] for seed in range(60)}
    assert len({songs[key] for key in seen}) >= 7


def test_one_dominating_song_still_gets_other_clips():
    songs = clips([5, 1])
    other = derange(list(songs), songs, 0)
    assert all(key != other[key] for key in songs)
    with pytest.raises(ValueError, match="at least 2 clips: got 1"):
        derange(["a"], {"a": "s"}, 0)


def test_noise_and_silence():
    noise = white_noise(["b", "a"], 2, 0)
    assert noise["a"].shape == (44100,)
    assert noise["a"].dtype == np.float32
    assert (noise["a"] != noise["b"]).any()
    np.testing.assert_array_equal(noise["a"], white_noise(["a", "b"], 2, 0)["a"])
    assert (white_noise(["a"], 2, 1)["a"] != noise["a"]).any()
    assert not silence(["a"], 2)["a"].any()
