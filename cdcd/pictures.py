"""Pictures of sound: spectrograms side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cdcd.compiled import load_librosa


def compare_spectrograms(
    sounds: Mapping[str, np.ndarray], sample_rate_hz: int, path: Path, title: str
) -> None:
    """Draw the log-mel spectrograms of some sounds under each other into a PNG.

    Args:
        sounds: name -> mono float [n] in [-1, 1].
        sample_rate_hz: of all of them.
        path: where the picture goes.
        title: above the picture.
    """
    load_librosa()
    import librosa
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2 * len(sounds) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(sounds), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, sound) in zip(axes, sounds.items(), strict=True):
        mel = librosa.feature.melspectrogram(
            y=np.asarray(sound, dtype=np.float32), sr=sample_rate_hz, hop_length=256, n_mels=96
        )
        seconds = mel.shape[1] * 256 / sample_rate_hz
        axis.imshow(
            librosa.power_to_db(mel, ref=1.0, top_db=80),
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, 96),
            cmap="magma",
        )
        axis.set_ylabel(f"{name}\nmel band", fontsize=8)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=100)
