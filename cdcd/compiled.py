"""librosa's numba functions, compiled by one process at a time and cached on disk.

numba's cache is not safe against two processes that fill it at once: one may pair the index of the
first with the code of the second and die of a segmentation fault. Whoever uses librosa calls
`load_librosa` before; it holds a lock of the machine's while anything may still be compiled.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)


@functools.cache
def load_librosa(timeout_seconds: float = 300.0) -> None:
    """Import librosa and compile what this project calls: 20 s the first time, then a second.

    Args:
        timeout_seconds: how long another process may be at it.

    Raises:
        filelock.Timeout: it was at it for longer.
    """
    from filelock import FileLock

    _ensure_numba_cache()
    lock = FileLock(_lock_path())
    logger.info("preparing librosa; the first time on a machine this takes about 20 s")
    with lock.acquire(timeout=timeout_seconds):
        from librosa.beat import beat_track
        from librosa.feature import tempo
        from librosa.onset import onset_detect, onset_strength

        rate = 22050
        clicks = np.zeros(2 * rate, np.float32)
        clicks[:: rate // 2] = 1.0
        onset_detect(y=clicks, sr=rate)
        median = onset_strength(y=clicks, sr=rate, aggregate=np.median)
        beat_track(onset_envelope=median, sr=rate, bpm=float(tempo(onset_envelope=median)[0]))


def _lock_path() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"cdcd-numba-{user}.lock"


def _ensure_numba_cache() -> None:
    # numba refuses to import a cached function when it can write neither beside the source nor into
    # the home folder, as in a read-only container.
    if "NUMBA_CACHE_DIR" in os.environ or "numba" in sys.modules:
        return
    places = [Path(path) / "librosa" for path in sys.path if (Path(path) / "librosa").is_dir()]
    if not any(os.access(place, os.W_OK) for place in [*places, Path.home()]):
        os.environ["NUMBA_CACHE_DIR"] = str(_lock_path().with_suffix(""))
