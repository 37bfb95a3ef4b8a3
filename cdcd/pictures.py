"""Pictures that people look at: grids, rows, strips, GIFs, codebook use, spectrograms.

Pictures come as uint8 `[n, h, w, 3]` RGB and leave as files, each written under a temporary name
and renamed. Equal input gives equal files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.compiled import load_librosa
from cdcd.data.files import atomic_path

Pictures = NDArray[np.uint8]
"""uint8 `[n, h, w, 3]`, RGB in 0 .. 255."""

MAX_PIXELS = 64_000_000
"""The largest drawing; viewers and browsers give up soon after."""
GAP = 2
CAPTIONED_SIDE = 144
"""Pictures with words are enlarged to at least this many pixels, so that the words fit."""
FONT_SIZE = 12
MAX_LINES = 4
GREY = np.array([128, 128, 128], dtype=np.uint8)
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def check_pictures(images: Any) -> Pictures:
    """Return pictures as an array, or refuse what is none.

    Raises:
        ValueError: not uint8 `[n, h, w, 3]` with at least one picture.
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"pictures must be uint8 [n, h, w, 3], at least one: got {array.dtype} "
            f"{list(array.shape)}"
        )
    return array


def grid_shape(num: int, columns: int | None = None) -> tuple[int, int]:
    """Rows and columns of a grid of `num` pictures; nearly square where columns are not given."""
    columns = min(num, columns or math.ceil(math.sqrt(num)))
    return math.ceil(num / columns), columns


def check_grid(num: int, height: int, width: int, columns: int | None = None) -> None:
    """Refuse a grid that nobody could open, before anything is generated for it.

    Raises:
        ValueError: more than `MAX_PIXELS` pixels.
    """
    rows, across = grid_shape(num, columns)
    pixels = rows * (height + GAP) * across * (width + GAP)
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"a grid must have at most {MAX_PIXELS} pixels: {num} pictures of {width} x {height} "
            f"are {pixels}; write them into a folder instead, one file each"
        )


def grid(
    images: Pictures,
    path: str | Path,
    *,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Draw pictures side by side, row by row, into a PNG.

    Without captions every pixel stays as it is. With captions pictures are enlarged by a whole
    factor where they are small, and each has its words below it, wrapped and cut after four lines.

    Args:
        images: uint8 `[n, h, w, 3]`.
        path: ends in .png.
        columns: pictures in a row; None for a nearly square grid.
        captions: n texts.
    """
    images = check_pictures(images)
    check_grid(len(images), images.shape[1], images.shape[2], columns)
    rows, columns = grid_shape(len(images), columns)
    if captions is None:
        _save(_tiled(images, rows, columns), path)
        return
    images = _enlarged(images, CAPTIONED_SIDE)
    height, width = images.shape[1:3]
    texts = [_wrapped(text, width) for text in _checked(captions, len(images))]
    line = _line_height()
    deepest = [
        max(text.count("\n") + 1 for text in texts[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    tops = np.cumsum([0, *(height + lines * line + 3 * GAP for lines in deepest)])
    canvas, draw = _canvas(int(tops[-1]), columns * (width + 4 * GAP))
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        left, top = index % columns * (width + 4 * GAP) + 2 * GAP, int(tops[index // columns])
        _paste(canvas, image, left, top)
        draw.text((left, top + height + GAP), text, fill=_INK, font=_font())
    _save_picture(canvas, path)


def rows(
    pictures: Mapping[str, Pictures], path: str | Path, *, captions: Sequence[str] | None = None
) -> None:
    """Draw one named row for each entry, such as real, reconstructed and generated, into a PNG.

    Args:
        pictures: name of a row -> uint8 `[n, h, w, 3]`; the same n in every row, any sizes.
        path: ends in .png.
        captions: n texts above the columns.

    Raises:
        ValueError: rows of different lengths.
    """
    checked = {name: check_pictures(images) for name, images in pictures.items()}
    nums = {len(images) for images in checked.values()}
    if len(nums) != 1:  # none at all, or different ones
        counts = {name: len(images) for name, images in checked.items()}
        raise ValueError(f"rows must hold equally many pictures, in at least one row: got {counts}")
    num = nums.pop()
    least = max(CAPTIONED_SIDE if captions else 96, *(i.shape[2] for i in checked.values()))
    checked = {name: _enlarged(images, least) for name, images in checked.items()}
    width = max(images.shape[2] for images in checked.values())
    line, font = _line_height(), _font()
    margin = math.ceil(max(font.getlength(name) for name in checked)) + 4 * GAP
    texts = [_wrapped(text, width) for text in _checked(captions or [""] * num, num)]
    top = max(text.count("\n") + 1 for text in texts) * line + 2 * GAP if captions else GAP
    step = width + 2 * GAP
    height = top + sum(images.shape[1] + 2 * GAP for images in checked.values())
    canvas, draw = _canvas(height, margin + num * step)
    for column, text in enumerate(texts):
        draw.text((margin + column * step, GAP), text, fill=_INK, font=font)
    for name, images in checked.items():
        draw.text((2 * GAP, top + images.shape[1] // 2 - line // 2), name, fill=_INK, font=font)
        for column, image in enumerate(images):
            _paste(canvas, image, margin + column * step, top)
        top += images.shape[1] + 2 * GAP
    _save_picture(canvas, path)


def strip(frames: Pictures, path: str | Path, *, num: int = 10) -> None:
    """Draw `num` of the frames, evenly spread from the first to the last, in one row of a PNG."""
    frames = check_pictures(frames)
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(num, len(frames))).round().astype(int))
    grid(_enlarged(frames[chosen], 96), path, columns=len(chosen))


def gif(
    frames: Pictures, path: str | Path, *, seconds: float = 4.0, hold_seconds: float = 2.0
) -> None:
    """Write frames as a GIF that repeats for ever.

    Args:
        frames: uint8 `[n, h, w, 3]`; small ones are enlarged by a whole factor.
        path: ends in .gif.
        seconds: all frames together; none is shorter than 1/50 s, the least that browsers show.
        hold_seconds: further time of the last frame.
    """
    from PIL import Image

    frames = _enlarged(check_pictures(frames), 256)
    each = max(20, round(1000 * seconds / len(frames) / 10) * 10)
    times = [each] * (len(frames) - 1) + [each + round(1000 * hold_seconds)]
    pictures = [Image.fromarray(frame, "RGB").quantize(256) for frame in frames]
    with atomic_path(path) as part:
        pictures[0].save(
            part,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=times,
            loop=0,
            disposal=1,
        )


def veiled(image: Pictures, is_open: NDArray[np.bool_], strength: float = 0.65) -> Pictures:
    """Lay grey over the parts of a picture that are not decided yet.

    Args:
        image: uint8 `[h, w, 3]`.
        is_open: bool `[rows, columns]` over the token grid: True where a token is still masked.
        strength: 1 hides the picture below, 0 shows it all.
    """
    height, width = image.shape[:2]
    share = np.repeat(
        np.repeat(is_open, height // is_open.shape[0], 0), width // is_open.shape[1], 1
    )
    under = image * (1 - strength) + GREY * strength
    return np.where(share[..., None], np.round(under), image).astype(np.uint8)


def _perplexity(counts: NDArray[np.integer[Any]]) -> float:
    """Two to the entropy of code counts `[k]` in bits, in 1 .. k; 0 where nothing was counted.

    As many codes, used equally often, would be as hard to guess.
    """
    share = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def codebook_use(counts: NDArray[np.integer[Any]], path: str | Path, title: str) -> None:
    """Draw how often each code is used, most used first, into a PNG.

    Args:
        counts: `[k]` over the whole codebook.
        path: ends in .png.
        title: above the numbers of codes used, and of all codes, and the perplexity.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.sort(np.asarray(counts, dtype=np.int64))[::-1]
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.fill_between(np.arange(len(counts)), counts, step="mid", color="tab:blue", linewidth=0)
    axis.axhline(counts.mean(), color="black", linewidth=0.8, linestyle=":", label="used equally")
    axis.set_xlim(0, max(1, len(counts) - 1))
    axis.set_ylim(bottom=0)
    axis.set_xlabel("codes, most used first")
    axis.set_ylabel("tokens")
    axis.legend(frameon=False, fontsize=8)
    used = int((counts > 0).sum())
    told = f"{used} of {len(counts)} codes used, perplexity {_perplexity(counts):.1f}"
    axis.set_title(f"{title}\n{told}", fontsize=9)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=100, format="png")


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


def _checked(captions: Sequence[str], num: int) -> Sequence[str]:
    if len(captions) != num:
        raise ValueError(f"captions must be one for each picture: got {len(captions)} for {num}")
    return captions


def _enlarged(images: Pictures, least: int) -> Pictures:
    """Repeat pixels until pictures are at least `least` wide: what was made, not smoothed."""
    times = math.ceil(least / images.shape[2])
    return images.repeat(times, axis=1).repeat(times, axis=2) if times > 1 else images


def _tiled(images: Pictures, rows: int, columns: int) -> Pictures:
    """White paper with the pictures on it, uint8 `[H, W, 3]`."""
    height, width = images.shape[1:3]
    paper = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        paper[top : top + height, left : left + width] = image
    return paper


def _font() -> Any:
    import matplotlib as mpl
    from PIL import ImageFont

    # It comes with matplotlib and knows Latin, Greek and Cyrillic letters, among others.
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), FONT_SIZE)


def _line_height() -> int:
    return FONT_SIZE + 4


def _wrapped(text: str, width: int) -> str:
    """Lines of at most `width` pixels; words longer than a line are broken, the rest is cut."""
    font = _font()
    lines: list[str] = []
    rest = " ".join(text[:1000].split())
    while rest and len(lines) < MAX_LINES:
        fits = len(rest)
        while font.getlength(rest[:fits]) > width and fits > 1:
            fits -= max(1, fits // 8) if fits > 24 else 1
        if fits < len(rest):
            blank = rest.rfind(" ", 0, fits + 1)
            fits = blank if blank > 0 else fits
        lines.append(rest[:fits])
        rest = rest[fits:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines[-1] = f"{last}…"
    return "\n".join(lines)


def _canvas(height: int, width: int) -> tuple[Any, Any]:
    from PIL import Image, ImageDraw

    if height * width > MAX_PIXELS:
        raise ValueError(
            f"a drawing must have at most {MAX_PIXELS} pixels: got {width} x {height}; "
            "draw fewer pictures"
        )
    canvas = Image.new("RGB", (width, height), _PAPER)
    return canvas, ImageDraw.Draw(canvas)


def _paste(canvas: Any, image: Pictures, left: int, top: int) -> None:
    from PIL import Image

    canvas.paste(Image.fromarray(np.ascontiguousarray(image), "RGB"), (left, top))


def save_png(image: Pictures, path: str | Path) -> None:
    """Write one picture, uint8 `[h, w, 3]`, as PNG."""
    _save(check_pictures(np.asarray(image)[None])[0], path)


def _save(image: Pictures, path: str | Path) -> None:
    from PIL import Image

    _save_picture(Image.fromarray(np.ascontiguousarray(image), "RGB"), path)


def _save_picture(picture: Any, path: str | Path) -> None:
    with atomic_path(path) as part:
        picture.save(part, "PNG", compress_level=6)
