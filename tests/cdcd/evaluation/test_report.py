"""The page of a report is the same from run to run, its sound unharmed."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from cdcd.data.samples import SAMPLE_RATE_HZ
from cdcd.evaluation import report


def _sound(player: str) -> bytes:
    return base64.b64decode(player.partition("base64,")[2].partition('"')[0])


def test_a_player_of_the_same_sound_is_the_same_and_plays_it() -> None:
    random = np.random.default_rng(0)
    tone = np.sin(np.arange(2 * SAMPLE_RATE_HZ) * 0.06)
    audio = 0.3 * tone + 0.05 * random.standard_normal(tone.size)
    # An encoder marks its pages with a number of its own.
    first, second = (_sound(report._player(audio)) for _ in range(2))
    assert first == second
    heard, rate = soundfile.read(io.BytesIO(first))
    assert (rate, heard.size) == (SAMPLE_RATE_HZ, audio.size)
    stream = io.BytesIO()
    soundfile.write(stream, audio, rate, format="OGG", subtype="VORBIS")
    stream.seek(0)
    np.testing.assert_array_equal(heard, soundfile.read(stream)[0])
