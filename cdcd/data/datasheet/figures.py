"""Pictures of stored samples and of what a dataset is made of, for its data sheet.

Everything is drawn without a display and without dates or versions in the files: equal samples give
equal bytes. Figures are narrow, so that their words can be read on a phone.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.compiled import load_librosa
from cdcd.data.samples import BODY_25, SAMPLE_RATE_HZ, SMPL, Sample

WIDTH_INCHES = 5.6
DPI = 140
NUM_FRAMES = 8
"""Moments of a clip that are shown."""
THUMBNAIL = 144
"""Pixels of a picture's side on a sheet."""

_COLOURS = ("#2f6fb3", "#d9822b")
_FONT = 8
_HOP = 256
_NUM_MELS = 80

_BODY_25_LIMBS = (
    *((0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11)),
    *((8, 12), (12, 13), (13, 14), (11, 22), (14, 19), (0, 15), (0, 16), (15, 17), (16, 18)),
)

Image = NDArray[np.uint8]


def _new_figure(height_inches: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path, num_colours: int | None = 256) -> None:
    """Write a PNG; with 256 colours it has a third of the size of one with all of them."""
    from PIL import Image as Pil

    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Names and captions may hold letters that the font lacks; they become boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(stream, dpi=DPI, format="png", metadata={"Software": None})
    picture = Pil.open(stream).convert("RGB")
    if num_colours is not None:
        cut = Pil.Quantize.MEDIANCUT
        picture = picture.quantize(num_colours, method=cut, dither=Pil.Dither.NONE)
    picture.save(path, format="PNG", optimize=True)


@dataclass(frozen=True)
class _Sticks:
    """Stick figures: places `[n, p, 2]` (x right, y up; nan where unknown) and pairs of points."""

    points: NDArray[np.float64]
    limbs: Sequence[tuple[int, int]]
    rate_hz: int
    unit: str


def _sticks(motion: NDArray[np.float32]) -> _Sticks | None:
    """Return the stick figures of a stored motion, None where its numbers are no body.

    SMPL's rotations are shown on the stand-in's bones, because the body model is licensed.
    """
    if motion.shape[1] == BODY_25.dim:
        body = motion.reshape(len(motion), 25, 3).astype(np.float64)
        points = np.where(body[..., 2:] > 0, body[..., :2] * (1.0, -1.0), np.nan)
        return _Sticks(points, _BODY_25_LIMBS, BODY_25.rate_hz, "pixels")
    from scipy.spatial.transform import Rotation

    from cdcd.data.embedded.skeleton import PARENTS, forward_kinematics

    matrices = motion[:, 3:].reshape(-1, 3, 3).astype(np.float64)
    try:
        poses = Rotation.from_matrix(matrices).as_rotvec().reshape(len(motion), -1)
    except ValueError:  # matrices without a direction
        return None
    joints = forward_kinematics(poses, motion[:, :3].astype(np.float64), 1.0).joints
    limbs = [(parent, joint) for joint, parent in enumerate(PARENTS) if parent >= 0]
    return _Sticks(joints[..., :2], limbs, SMPL.rate_hz, "body units")


def _movement(sticks: _Sticks) -> NDArray[np.float64]:
    """Return the mean speed of the points at each frame but the first, in units per second."""
    steps = np.linalg.norm(np.diff(sticks.points, axis=0), axis=-1) * sticks.rate_hz
    known = np.isfinite(steps)
    total = np.where(known, steps, 0.0).sum(axis=1)
    return np.asarray(total / np.maximum(known.sum(axis=1), 1))


def _moments(count: int) -> NDArray[np.int64]:
    return ((np.arange(NUM_FRAMES) + 0.5) * count / NUM_FRAMES).astype(np.int64)


def _frame_strip(clip: bytes) -> Image:
    """Return frames of a clip side by side, wide ones in two rows: uint8 `[h, w, 3]`."""
    from cdcd.media import iterate_clip

    frames = list(iterate_clip(clip))
    chosen = [frames[i] for i in _moments(len(frames))]
    height, width = chosen[0].shape[:2]
    columns = NUM_FRAMES // 2 if width > height else NUM_FRAMES
    gap = max(1, width // 60)
    padded = [np.pad(f, ((0, gap), (0, gap), (0, 0)), constant_values=255) for f in chosen]
    rows = [np.hstack(padded[i : i + columns]) for i in range(0, NUM_FRAMES, columns)]
    return np.asarray(np.vstack(rows)[:-gap, :-gap])


def _draw_frames(axis: Any, strip: Image) -> None:
    axis.imshow(strip, interpolation="lanczos")
    axis.set_axis_off()


def _draw_sticks(axis: Any, sticks: _Sticks) -> None:
    """Draw the body at each moment, its middle in the middle of its own eighth of the row."""
    from matplotlib.collections import LineCollection

    lines: list[list[tuple[float, float]]] = []
    chosen = sticks.points[_moments(len(sticks.points))]
    known = np.asarray(np.isfinite(chosen).all(axis=-1))
    if known.any():
        # One scale for all of them: jumps and crouches stay what they are.
        low, high = np.nanmin(chosen[..., 1]), np.nanmax(chosen[..., 1])
        scale = max(float(high - low), 1e-6)
        for place, (body, there) in enumerate(zip(chosen, known, strict=True)):
            if not there.any():
                continue
            x = (body[:, 0] - np.median(body[there, 0])) / scale + 1.1 * place
            y = (body[:, 1] - low) / scale
            joined = [limb for limb in sticks.limbs if there[limb[0]] and there[limb[1]]]
            lines += [[(x[point], y[point]) for point in limb] for limb in joined]
    axis.add_collection(LineCollection(lines, colors=_COLOURS[0], linewidths=1.2))
    axis.set_xlim(-0.55, 1.1 * (NUM_FRAMES - 1) + 0.55)
    axis.set_ylim(-0.04, 1.04)
    axis.set_aspect("equal")
    axis.set_axis_off()


def _log_mel(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    load_librosa()
    import librosa

    mel = librosa.feature.melspectrogram(
        y=sound, sr=SAMPLE_RATE_HZ, hop_length=_HOP, n_mels=_NUM_MELS
    )
    return np.asarray(librosa.power_to_db(mel, ref=1.0, top_db=80))


def draw_clip(sample: Sample, path: Path, title: str) -> None:
    """Draw one clip: frames, stick figures, movement, waveform and spectrogram under each other.

    What the clip does not have is left out.

    Args:
        sample: with any of video and motion.
        path: where the PNG goes.
        title: above it all.
    """
    seconds = len(sample.audio) / SAMPLE_RATE_HZ
    strip = None if sample.video is None else _frame_strip(sample.video)
    sticks = None if sample.motion is None else _sticks(sample.motion)
    heights = {"waveform": 0.7, "spectrogram": 1.5}
    if sticks is not None:
        heights = {"sticks": 0.75, "movement": 0.6, **heights}
    if strip is not None:
        heights = {"frames": WIDTH_INCHES * strip.shape[0] / strip.shape[1], **heights}
    figure = _new_figure(sum(heights.values()) + 0.3 * len(heights) + 0.4)
    figure.suptitle(title, fontsize=_FONT + 1, parse_math=False)
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=list(heights.values()))
    axes = dict(zip(heights, panels[:, 0], strict=True))
    times = f"{NUM_FRAMES} moments, evenly over {seconds:g} s"
    if strip is not None:
        _draw_frames(axes["frames"], strip)
        axes["frames"].set_title(f"video: {times}", fontsize=_FONT, loc="left")
    if sticks is not None:
        _draw_sticks(axes["sticks"], sticks)
        kind = "from the front" if sticks.unit == "body units" else "as in the picture"
        axes["sticks"].set_title(f"motion, {kind}: {times}", fontsize=_FONT, loc="left")
        speed = _movement(sticks)
        at = np.arange(1, len(speed) + 1) / sticks.rate_hz
        axes["movement"].plot(at, speed, color=_COLOURS[1], lw=1)
        axes["movement"].set_ylim(bottom=0)
        axes["movement"].set_title(
            f"mean speed of the joints, {sticks.unit} per second", fontsize=_FONT, loc="left"
        )
    axis = axes["waveform"]
    axis.plot(np.arange(len(sample.audio)) / SAMPLE_RATE_HZ, sample.audio, color="0.35", lw=0.4)
    axis.set_ylim(-1, 1)
    axis.set_title("waveform, full scale is 1", fontsize=_FONT, loc="left")
    axis = axes["spectrogram"]
    mel = _log_mel(sample.audio)
    loudest = max(float(mel.max()), -20.0)  # silence is dark
    shown = axis.imshow(
        mel,
        origin="lower",
        aspect="auto",
        extent=(0, mel.shape[1] * _HOP / SAMPLE_RATE_HZ, 0, _NUM_MELS),
        cmap="magma",
        vmin=loudest - 80,
        vmax=loudest,
    )
    axis.set_title("spectrogram, mel bands", fontsize=_FONT, loc="left")
    axis.set_xlabel("seconds", fontsize=_FONT)
    bar = figure.colorbar(shown, ax=axis, orientation="horizontal", aspect=50, pad=0.02)
    bar.set_label("dB", fontsize=_FONT)
    bar.ax.tick_params(labelsize=_FONT - 1)
    for name in ("movement", "waveform", "spectrogram"):
        if name in axes:
            axes[name].set_xlim(0, seconds)
            axes[name].tick_params(labelsize=_FONT - 1, labelbottom=name == "spectrogram")
    _save(figure, path)


def thumbnail(image: Image) -> Image:
    """Scale a whole picture into a white square of `THUMBNAIL` pixels: uint8 `[t, t, 3]`."""
    from PIL import Image as Pil

    picture = Pil.fromarray(image)
    scale = THUMBNAIL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Pil.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    scaled = picture.resize(size, Pil.Resampling.LANCZOS)
    square.paste(scaled, ((THUMBNAIL - size[0]) // 2, (THUMBNAIL - size[1]) // 2))
    return np.asarray(square)


def jpeg_bytes(image: Image) -> bytes:
    """Return a picture as JPEG, small enough for a page."""
    from PIL import Image as Pil

    stream = io.BytesIO()
    Pil.fromarray(image).save(stream, format="JPEG", quality=85)
    return stream.getvalue()


def draw_sheet(tiles: Sequence[tuple[Image, str]], path: Path, title: str, columns: int) -> None:
    """Draw pictures in rows, each with its words under it.

    Args:
        tiles: squares as `thumbnail` makes them, and words.
        path: where the PNG goes.
        title: above them.
        columns: pictures in a row.
    """
    num_rows = -(-len(tiles) // columns)
    side = WIDTH_INCHES / columns
    figure = _new_figure(num_rows * (side + 0.3) + 0.35)
    figure.suptitle(title, fontsize=_FONT + 1, parse_math=False)
    axes = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    letters = round(side * 72 / (0.62 * (_FONT - 2)))
    for axis, (image, words) in zip(axes, tiles, strict=False):
        axis.imshow(image, interpolation="lanczos")
        lines = textwrap.wrap(words, letters, max_lines=3, placeholder=" …")
        axis.text(
            0.5,
            -0.03,
            "\n".join(lines),
            transform=axis.transAxes,
            ha="center",
            va="top",
            fontsize=_FONT - 2,
            parse_math=False,
        )
    _save(figure, path, num_colours=None)


@dataclass(frozen=True)
class Panel:
    """One histogram.

    Attributes:
        title: what is counted.
        unit: of the values, under the axis.
        counts: how often each value occurs.
    """

    title: str
    unit: str
    counts: Mapping[float, int]


def draw_histograms(panels: Sequence[Panel], path: Path) -> None:
    """Draw histograms under each other; a few distinct values get a bar each.

    Args:
        panels: at least one, each with at least one value.
        path: where the PNG goes.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure(1.75 * len(panels))
    for axis, panel in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True
    ):
        values = np.array(sorted(panel.counts), dtype=np.float64)
        weights = np.array([panel.counts[value] for value in sorted(panel.counts)])
        low, high = float(values[0]), float(values[-1])
        is_whole = bool((values == np.rint(values)).all())
        if is_whole and high - low <= 60:
            gap = float(np.diff(values).min(initial=high - low or 1.0))
            axis.bar(values, weights, width=0.85 * gap, color=_COLOURS[0])
            axis.set_xlim(low - gap, high + gap)
            if len(values) <= 16:
                axis.set_xticks(values)
        else:
            axis.hist(values, bins=30, weights=weights, color=_COLOURS[0], rwidth=0.92)
        axis.set_title(panel.title, fontsize=_FONT, loc="left", parse_math=False)
        axis.set_xlabel(panel.unit, fontsize=_FONT)
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.tick_params(labelsize=_FONT - 1)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    _save(figure, path)
