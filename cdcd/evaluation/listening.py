"""Everything the scores need to know about a clip, taken from its sound once, on many processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.compiled import load_librosa
from cdcd.data.samples import SAMPLE_RATE_HZ
from cdcd.evaluation import beats as beat_vectors
from cdcd.evaluation import genre, rhythm, tempo


@dataclass(frozen=True, eq=False)
class Heard:
    """What was heard in one clip of nominal length.

    Attributes:
        mfcc: float32 `[40]`.
        is_silent: every sample is zero.
        onsets: seconds, float64 `[n]`; with the fields below None where only genre was asked for.
        beats: seconds, float64 `[n]`.
        bpm: refined tempo; None for silence.
        d2m: the vector of `beat_vectors.D2M`.
        loris: the vector of `beat_vectors.LORIS`.
        is_single_peak: see `BeatTrack`.
    """

    mfcc: NDArray[np.float32]
    is_silent: bool
    onsets: NDArray[np.float64] | None = None
    beats: NDArray[np.float64] | None = None
    bpm: float | None = None
    d2m: beat_vectors.Vector | None = None
    loris: beat_vectors.Vector | None = None
    is_single_peak: bool = False


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip to listen to: an identifier, mono sound at 22,050 Hz, and what to do with it."""

    name: str
    audio: NDArray[np.floating]
    seconds: int
    with_rhythm: bool = True
    denoise: bool = False


def prepare(clip: Clip) -> NDArray[np.float32] | str:
    """Return the sound to score, float32 `[seconds * 22050]`, or the reason to skip the clip."""
    audio = beat_vectors.fit_length(clip.audio, clip.seconds)
    return reduce_noise(audio) if clip.denoise and not isinstance(audio, str) else audio


def listen(clip: Clip) -> Heard | str:
    """Analyse one clip; a text is the reason why it cannot be scored."""
    import librosa
    from librosa.onset import onset_strength

    audio = prepare(clip)
    if isinstance(audio, str):
        return audio
    # One log-mel spectrogram serves both envelopes and the MFCCs; librosa would compute the same
    # one three times.
    mel = librosa.feature.melspectrogram(y=audio, sr=SAMPLE_RATE_HZ, hop_length=beat_vectors.HOP)
    log_mel = librosa.power_to_db(mel)
    mfcc, is_silent = genre.mfcc40(log_mel), not audio.any()
    if not clip.with_rhythm:
        return Heard(mfcc, is_silent)
    envelope = onset_strength(S=log_mel, sr=SAMPLE_RATE_HZ)
    median = onset_strength(S=log_mel, sr=SAMPLE_RATE_HZ, aggregate=np.median)
    bpm = tempo.estimate_tempo(median)
    d2m = beat_vectors.track_beats(envelope, len(audio), beat_vectors.D2M)
    return Heard(
        mfcc=mfcc,
        is_silent=is_silent,
        onsets=rhythm.onset_times(envelope),
        beats=rhythm.beat_times(median, bpm[0]) if bpm else np.zeros(0),
        bpm=bpm[1] if bpm else None,
        d2m=d2m.vector,
        loris=beat_vectors.track_beats(envelope, len(audio), beat_vectors.LORIS).vector,
        is_single_peak=d2m.is_single_peak,
    )


def reduce_noise(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gate stationary noise as the released inference scripts do before they score."""
    import noisereduce  # type: ignore[import-not-found]

    return np.asarray(noisereduce.reduce_noise(y=audio, sr=SAMPLE_RATE_HZ), dtype=np.float32)


def check_denoise(choice: str) -> None:
    """Refuse `evaluate.denoise: noisereduce` where that package is missing.

    Raises:
        ValueError: it is asked for and not installed.
    """
    import importlib.util

    if choice == "noisereduce" and importlib.util.find_spec("noisereduce") is None:
        raise ValueError(
            "evaluate.denoise needs the package noisereduce: not installed; run "
            "`pip install noisereduce` or set evaluate.denoise: none"
        )


def _limit_threads(is_fresh: bool) -> None:
    with suppress(ImportError):
        import threadpoolctl  # type: ignore[import-untyped]

        threadpoolctl.threadpool_limits(1)
    if is_fresh:
        load_librosa()


def _listen_named(clip: Clip) -> tuple[str, Heard | str]:
    return clip.name, listen(clip)


Listen = Callable[[Iterable[Clip]], Iterator[tuple[str, Heard | str]]]


@contextmanager
def listeners(num_workers: int) -> Iterator[Listen]:
    """Give a function that listens to clips on `num_workers` processes of one thread each.

    It yields `(name, heard or skip reason)` in the order of the clips, consumed as needed. Enter
    this before anything starts threads of its own: workers are forked where that is safe, so that
    what was compiled here need not be compiled in each of them.
    """
    load_librosa()
    if num_workers == 1:
        yield lambda clips: map(_listen_named, clips)
        return
    import multiprocessing

    forks = sys.platform == "linux"
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    with context.Pool(num_workers, initializer=_limit_threads, initargs=(not forks,)) as pool:
        yield lambda clips: pool.imap(_listen_named, clips, chunksize=4)
        # Leaving the block kills the workers, and one killed while it holds the queue's lock leaves
        # the other waiting for ever: let them go home first.
        pool.close()
        pool.join()
