"""Songs of the stand-in data: a score per song, and its sound synthesised per genre.

A genre is a drum pattern, a drum kit, a bass, a pad and the air of its recordings; a song adds its
key, chords, variants of the pattern and a small change of timbre. Only drum hits have sharp
attacks, so the onsets that one hears and detects are the events of the score, which the dance is
locked to.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kind = Literal["kick", "snare", "hat"]

SAMPLE_RATE_HZ = 48000
BEATS_PER_BAR = 4
BASIC_BEATS = 16
"""Beats of a dance filmed in the situation `sBM`."""

_KINDS: dict[str, Kind] = {"K": "kick", "S": "snare", "H": "hat"}
_STRENGTHS: dict[Kind, float] = {"kick": 1.0, "snare": 0.9, "hat": 0.7}


@dataclass(frozen=True)
class Event:
    """One drum hit: its time in seconds, what is hit, and how hard (0 to 1)."""

    time: float
    kind: Kind
    strength: float


@dataclass(frozen=True)
class Score:
    """A song before it sounds.

    Attributes:
        name: music id such as `mBR0`.
        genre: genre code.
        bpm: tempo in beats per minute; beat 1 is at time 0.
        events: drum hits sorted by time, up to `duration`.
        chords: for each bar the pitches of its chord in semitones over the genre's root.
        duration: seconds of music.
        key: transposition in semitones.
        timbre: factors near one that scale pitch, decay and brightness of this song's kit.
    """

    name: str
    genre: str
    bpm: int
    events: tuple[Event, ...]
    chords: tuple[tuple[int, ...], ...]
    duration: float
    key: int
    timbre: tuple[float, float, float]

    @property
    def beat_seconds(self) -> float:
        """Seconds from one beat to the next."""
        return 60.0 / self.bpm


@dataclass(frozen=True)
class Pattern:
    """One bar of drums: hits that always sound, and hits of which a song takes some.

    Hits are written as letter and beat, `K0 S1 H1.5`; several letters sound together.
    """

    core: str
    extra: str
    num_extra: int


@dataclass(frozen=True)
class Sound:
    """Kit, bass, pad and air of a genre; frequencies in Hz, times in seconds, levels linear."""

    kick: tuple[float, float, float, float]  # start, end, decay, click level
    snare: tuple[float, float, float, float, float]  # tone, tone level, centre, octaves, decay
    hat: tuple[float, float, float, float]  # centre, octaves, decay, level
    bass: tuple[float, Sequence[float], float]  # root, harmonics, level
    pad: tuple[float, Sequence[float], float, float]  # root, harmonics, level, tremolo per beat
    air: float  # where the recording's noise floor is loudest


THIRD = 1.0 / 3.0

PATTERNS: dict[str, Pattern] = {
    "BR": Pattern("K0 S1 K2.5 S3", "K1.75 H0.5 H2 H3.5", 2),
    "PO": Pattern("K0 K1.5 S2 K2.75", "H0.75 H3.5 H2.375", 2),
    "LO": Pattern("K0 K0.5 S1 K2.25 S3", "H1.75 H2.75 S3.75", 2),
    "MH": Pattern("K0 S1 K1t2 S3", "H0t2 K2t2 H3t2 H2t1", 2),
    "LH": Pattern("K0 K0.75 S2 K3.25", "H1.5 H2.5 H2.75 H1.25", 2),
    "HO": Pattern("K0 KS1 K2 KS3 H0.5 H2.5", "H1.5 H3.5 H3.75", 2),
    "WA": Pattern("K0 H0.75 S1 K2 H2.75 S3", "H1.75 H3.75 H1.5", 1),
    "KR": Pattern("K0 S1t1 K2 K2t2 S3t1", "K0t2 H0t1 H3", 1),
    "JS": Pattern("K0 S1.5 K2 S3.25", "H0.75 H2.5 H3.75", 2),
    "JB": Pattern("K0 S1t1 K2 S3", "H2t2 H0t2 H3t2", 2),
}

SOUNDS: dict[str, Sound] = {
    "BR": Sound(
        kick=(140, 58, 0.09, 0.5),
        snare=(210, 0.5, 2600, 1.6, 0.075),
        hat=(5600, 0.7, 0.03, 0.55),
        bass=(55.0, (1.0, 0.6, 0.35, 0.2), 0.24),
        pad=(220.0, (1.0, 0.0, 0.5, 0.0, 0.3), 0.07, 0.0),
        air=300,
    ),
    "PO": Sound(
        kick=(95, 46, 0.15, 0.25),
        snare=(330, 0.2, 1500, 0.7, 0.11),
        hat=(6600, 0.35, 0.022, 0.5),
        bass=(65.4, (1.0, 0.0, 0.5, 0.0, 0.35, 0.0, 0.25), 0.3),
        pad=(523.3, (1.0, 0.7, 0.5, 0.35, 0.25), 0.07, 2.0),
        air=1000,
    ),
    "LO": Sound(
        kick=(170, 75, 0.06, 0.6),
        snare=(240, 0.8, 3800, 0.8, 0.05),
        hat=(5200, 0.5, 0.045, 0.6),
        bass=(82.4, (1.0, 0.8, 0.6, 0.4, 0.3, 0.2), 0.26),
        pad=(329.6, (1.0, 0.9, 0.0, 0.6), 0.07, 4.0),
        air=3000,
    ),
    "MH": Sound(
        kick=(115, 52, 0.12, 0.35),
        snare=(170, 0.6, 1100, 1.1, 0.09),
        hat=(3600, 0.6, 0.035, 0.6),
        bass=(49.0, (1.0, 0.25), 0.38),
        pad=(196.0, (1.0, 0.2), 0.10, 0.0),
        air=600,
    ),
    "LH": Sound(
        kick=(75, 40, 0.2, 0.3),
        snare=(0, 0.0, 4200, 1.2, 0.06),
        hat=(7400, 0.3, 0.018, 0.65),
        bass=(43.7, (1.0, 0.1), 0.42),
        pad=(698.5, (1.0, 0.1), 0.055, 0.0),
        air=6000,
    ),
    "HO": Sound(
        kick=(160, 50, 0.13, 0.45),
        snare=(0, 0.0, 2100, 0.9, 0.07),
        hat=(5000, 1.0, 0.06, 0.5),
        bass=(55.0, (1.0, 0.5, 0.3), 0.22),
        pad=(392.0, (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.25, 0.2), 0.06, 1.0),
        air=4000,
    ),
    "WA": Sound(
        kick=(130, 62, 0.07, 0.4),
        snare=(280, 0.4, 4600, 0.7, 0.09),
        hat=(6000, 0.3, 0.05, 0.6),
        bass=(73.4, (1.0, 0.7, 0.2), 0.22),
        pad=(784.0, (1.0, 0.6, 0.7, 0.3, 0.3), 0.075, 6.0),
        air=2000,
    ),
    "KR": Sound(
        kick=(210, 44, 0.17, 0.8),
        snare=(120, 0.9, 800, 1.3, 0.13),
        hat=(2400, 0.4, 0.04, 0.7),
        bass=(41.2, (1.0, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2), 0.3),
        pad=(110.0, (1.0, 0.8, 0.7, 0.6, 0.5, 0.4), 0.06, 0.0),
        air=150,
    ),
    "JS": Sound(
        kick=(105, 68, 0.06, 0.3),
        snare=(430, 0.9, 4600, 0.5, 0.035),
        hat=(4300, 0.3, 0.07, 0.45),
        bass=(98.0, (1.0, 0.3, 0.1), 0.25),
        pad=(466.2, (1.0, 0.0, 0.0, 0.8), 0.09, 0.0),
        air=1400,
    ),
    "JB": Sound(
        kick=(85, 70, 0.1, 0.15),
        snare=(620, 0.9, 1900, 0.4, 0.06),
        hat=(1250, 0.15, 0.09, 0.6),
        bass=(110.0, (1.0, 0.1), 0.16),
        pad=(261.6, (1.0, 0.45, 0.2, 0.1), 0.17, 0.0),
        air=500,
    ),
}  # fmt: skip

_PROGRESSIONS = ((0, 0, 5, 7), (0, 8, 3, 10), (0, 5, 0, 7), (0, 10, 8, 7))
_KEYS = (-3, -1, 0, 2, 3)
_AIR_RMS = 0.02
"""34 dB below full scale: recordings have no digital silence between their partials, and features
in decibels, such as MFCCs, would measure nothing else there."""


def bpm_of(genre: str, digit: int) -> int:
    """Return the tempo that AIST++ gives to a piece: 80 + 10 n, or 110 + 5 n for House."""
    return 110 + 5 * digit if genre == "HO" else 80 + 10 * digit


def generator(seed: int, *names: str) -> np.random.Generator:
    """Return the random generator of a named thing; equal seed and names give equal draws."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _parse(text: str) -> list[tuple[float, Kind]]:
    hits: list[tuple[float, Kind]] = []
    for word in text.split():
        place = word.lstrip("KSH")
        # `1t2` is the second third of beat 1: triplets have no finite decimal.
        beat, _, third = place.partition("t")
        position = float(beat) + (int(third) * THIRD if third else 0.0)
        hits += [(position, _KINDS[letter]) for letter in word[: len(word) - len(place)]]
    return hits


def _bars(genre: str, num_bars: int, rng: np.random.Generator) -> list[list[tuple[float, Kind]]]:
    pattern = PATTERNS[genre]
    core, extra = _parse(pattern.core), _parse(pattern.extra)
    # Two variants of the bar; every second one answers the first.
    variants = [
        [extra[i] for i in sorted(rng.permutation(len(extra))[: pattern.num_extra])]
        for _ in range(2)
    ]
    return [core + variants[bar % 2] for bar in range(num_bars)]


def compose(genre: str, digit: int, *, seed: int, tail_seconds: float = 2.0) -> Score:
    """Write the song `m<genre><digit>`.

    Args:
        genre: genre code of `cdcd.data.samples.GENRES`.
        digit: number of the piece within its genre, 0 to 5; it sets the tempo.
        seed: seed of the whole data set.
        tail_seconds: music after the last of the 16 beats that are danced.
    """
    name = f"m{genre}{digit}"
    rng = generator(seed, name, "score")
    bpm = bpm_of(genre, digit)
    beat = 60.0 / bpm
    duration = BASIC_BEATS * beat + tail_seconds
    num_bars = int(np.ceil(duration / (BEATS_PER_BAR * beat)))
    events = [
        Event((BEATS_PER_BAR * bar + position) * beat, kind, _STRENGTHS[kind])
        for bar, hits in enumerate(_bars(genre, num_bars, rng))
        for position, kind in hits
    ]
    progression = _PROGRESSIONS[rng.integers(len(_PROGRESSIONS))]
    # Two voices: a small codec can follow them.
    interval = (3, 4, 7)[rng.integers(3)]
    chords = tuple(
        (progression[bar % 4], progression[bar % 4] + interval) for bar in range(num_bars)
    )
    return Score(
        name=name,
        genre=genre,
        bpm=bpm,
        events=tuple(
            sorted((e for e in events if e.time < duration - 0.1), key=lambda e: (e.time, e.kind))
        ),
        chords=chords,
        duration=duration,
        key=int(rng.choice(_KEYS)),
        timbre=(rng.uniform(0.96, 1.04), rng.uniform(0.9, 1.1), rng.uniform(0.93, 1.07)),
    )


def _decay(num_samples: int, seconds: float, attack: float = 0.0015) -> Array:
    t = np.arange(num_samples) / SAMPLE_RATE_HZ
    # The last quarter fades to zero: a truncated tail would click.
    fade = np.clip((num_samples - np.arange(num_samples)) / (0.25 * num_samples), 0, 1)
    return np.minimum(t / attack, 1.0) * np.exp(-t / seconds) * fade


def _band_noise(num_samples: int, centre: float, octaves: float, name: str) -> Array:
    # One fixed burst per genre and drum, as from a drum machine: a codec can learn it.
    noise = generator(0, name).standard_normal(num_samples)
    spectrum = np.fft.rfft(noise)
    frequency = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    distance = np.log2(np.maximum(frequency, 1.0) / centre) / octaves
    shaped = np.fft.irfft(spectrum * np.exp(-0.5 * distance**2), num_samples)
    return np.asarray(shaped / np.abs(shaped).max())


def _kit(score: Score) -> dict[Kind, Array]:
    sound = SOUNDS[score.genre]
    pitch, decay, bright = score.timbre
    start, end, seconds, click = sound.kick
    n = int(min(4 * seconds * decay, 0.45) * SAMPLE_RATE_HZ)
    t = np.arange(n) / SAMPLE_RATE_HZ
    sweep = pitch * (end * t + (start - end) * 0.03 * (1 - np.exp(-t / 0.03)))
    kick = np.sin(2 * np.pi * sweep) * _decay(n, seconds * decay)
    tick = _band_noise(n, 2200 * bright, 1.3, f"{score.genre} click") * _decay(n, 0.006)
    kick += click * tick / np.abs(tick).max()

    tone, tone_level, centre, octaves, seconds = sound.snare
    n = int(4 * seconds * decay * SAMPLE_RATE_HZ)
    t = np.arange(n) / SAMPLE_RATE_HZ
    snare = _band_noise(n, centre * bright, octaves, f"{score.genre} snare")
    snare += tone_level * np.sin(2 * np.pi * tone * pitch * t)
    snare *= _decay(n, seconds * decay)

    centre, octaves, seconds, level = sound.hat
    n = int(4 * seconds * decay * SAMPLE_RATE_HZ)
    hat = _band_noise(n, centre * bright, octaves, f"{score.genre} hat")
    hat *= _decay(n, seconds * decay)
    return {
        "kick": kick / np.abs(kick).max(),
        "snare": 0.85 * snare / np.abs(snare).max(),
        "hat": level * hat / np.abs(hat).max(),
    }


def _partials(t: Array, frequency: float, harmonics: Sequence[float]) -> Array:
    total = np.zeros_like(t)
    for number, level in enumerate(harmonics, start=1):
        if level:
            total += level * np.sin(2 * np.pi * number * frequency * t)
    return total / sum(harmonics)


def _envelope(num_samples: int, attack: float, release: float) -> Array:
    rise, fall = int(attack * SAMPLE_RATE_HZ), int(release * SAMPLE_RATE_HZ)
    position = np.arange(num_samples)
    return np.sin(0.5 * np.pi * np.clip(position / rise, 0, 1)) * np.sin(
        0.5 * np.pi * np.clip((num_samples - position) / fall, 0, 1)
    )


def _bass(score: Score, num_samples: int) -> Array:
    root, harmonics, level = SOUNDS[score.genre].bass
    bass = np.zeros(num_samples)
    kicks = [event.time for event in score.events if event.kind == "kick"]
    bar_seconds = BEATS_PER_BAR * score.beat_seconds
    for start, stop in zip(kicks, [*kicks[1:], score.duration], strict=True):
        first, last = round(start * SAMPLE_RATE_HZ), round(stop * SAMPLE_RATE_HZ)
        t = np.arange(last - first) / SAMPLE_RATE_HZ
        degree = score.chords[int(start / bar_seconds + 1e-6)][0]
        frequency = root * 2 ** ((score.key + (degree + 5) % 12 - 5) / 12)
        note = _partials(t, frequency, harmonics) * np.exp(-t / 0.5)
        bass[first:last] += note * _envelope(len(t), 0.012, 0.03)
    return level * bass


def _pad(score: Score, num_samples: int) -> Array:
    root, harmonics, level, tremolo = SOUNDS[score.genre].pad
    pad = np.zeros(num_samples)
    bar_seconds = BEATS_PER_BAR * score.beat_seconds
    overlap = 0.08
    for bar, chord in enumerate(score.chords):
        first = max(round((bar * bar_seconds - overlap / 2) * SAMPLE_RATE_HZ), 0)
        last = min(round(((bar + 1) * bar_seconds + overlap / 2) * SAMPLE_RATE_HZ), num_samples)
        if first >= last:
            break
        t = np.arange(first, last) / SAMPLE_RATE_HZ
        tones = sum(
            _partials(t, root * 2 ** ((score.key + (pitch + 5) % 12 - 5) / 12), harmonics)
            for pitch in chord
        )
        pad[first:last] += tones * _envelope(len(t), overlap, overlap)
    if tremolo:
        t = np.arange(num_samples) / SAMPLE_RATE_HZ
        # Falls at the beat's subdivisions and rises slowly, so that it adds no onset of its own.
        pad *= 0.75 + 0.25 * np.cos(2 * np.pi * tremolo * t / score.beat_seconds)
    return level * pad


def _air(score: Score, num_samples: int) -> Array:
    noise = generator(0, score.genre, "air").standard_normal(num_samples)
    frequency = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    octave = np.log2(np.maximum(frequency, 20.0))
    bump = np.exp(-0.5 * ((octave - np.log2(SOUNDS[score.genre].air)) / 0.8) ** 2)
    # Falls by 3 dB an octave, with 12 dB more around the genre's own place.
    level = 10 ** ((12 * bump - 3 * octave) / 20) * (frequency > 40)
    air = np.fft.irfft(np.fft.rfft(noise) * level, num_samples)
    return np.asarray(_AIR_RMS * air / np.sqrt(np.mean(air**2)))


def render(score: Score) -> NDArray[np.int16]:
    """Synthesise a song as PCM16 stereo `[n, 2]` at 48 kHz, peak 0.9."""
    n = round(score.duration * SAMPLE_RATE_HZ)
    drums: dict[Kind, Array] = {kind: np.zeros(n) for kind in _STRENGTHS}
    kit = _kit(score)
    for event in score.events:
        first = round(event.time * SAMPLE_RATE_HZ)
        hit = kit[event.kind][: n - first]
        drums[event.kind][first : first + len(hit)] += event.strength * hit
    bass, pad = _bass(score, n), _pad(score, n)
    centre = drums["kick"] + drums["snare"] + bass
    stereo = np.stack(
        [centre + 0.9 * drums["hat"] + 1.1 * pad, centre + 1.1 * drums["hat"] + 0.9 * pad], axis=1
    )
    stereo *= 0.9 / np.abs(stereo).max()
    stereo += _air(score, n)[:, None]
    stereo *= 0.9 / np.abs(stereo).max()
    # The end fades out within the tail that nobody dances to.
    stereo *= np.clip((n - np.arange(n)) / (0.2 * SAMPLE_RATE_HZ), 0, 1)[:, None]
    return np.round(stereo * 32767).astype(np.int16)
