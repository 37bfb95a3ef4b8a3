"""Pictures of other people as RGB arrays, and the crops that training and evaluation take of them.

The header is looked at before a pixel is decoded, so that a small file cannot claim a picture that
fills the memory. EXIF is ignored: published crops and statistics ignore it too, and real sets hold
broken blocks.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 64_000_000
"""Pictures above this are refused; the largest of ImageNet has 14 million."""


class ImageError(ValueError):
    """Bytes that are no whole picture of a reasonable size; one line."""


@dataclass(frozen=True)
class ImageInfo:
    """What a header says: format, colour mode as PIL names it, width and height in pixels."""

    format: str
    mode: str
    width: int
    height: int


def _opened(data: bytes) -> Any:
    # WebP is known once its plugin is loaded.
    from PIL import Image, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

    if not data:
        raise ImageError("a picture must have bytes: got an empty file; download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is the rule
            try:
                picture = Image.open(io.BytesIO(data), formats=FORMATS)
            except UnidentifiedImageError:
                # PIL takes the resolution from EXIF, and some broken blocks make it give up.
                picture = Image.open(io.BytesIO(_without_exif(data)), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"a picture must have at most {MAX_PIXELS} pixels: {error}; scale it down"
        ) from None
    except Exception as error:  # damaged headers raise almost anything
        told = " ".join(str(error).split("<")[0].split()) or type(error).__name__
        raise ImageError(
            f"a picture must be one of {', '.join(FORMATS)}: {told}; download it again"
        ) from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"a picture must have at most {MAX_PIXELS} pixels: its header says {width} x {height}; "
            "scale it down"
        )
    return picture


def _without_exif(data: bytes) -> bytes:
    """Return a JPEG without its APP1 segments, which hold EXIF; anything else as it is."""
    if not data.startswith(b"\xff\xd8\xff"):
        return data
    kept, at = [data[:2]], 2
    # Segments with a length of their own come first; the pixels start at FF DA.
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        if data[at + 1] != 0xE1:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def probe_image(data: bytes) -> ImageInfo:
    """Read a picture's header.

    Raises:
        ImageError: no known format, or too many pixels.
    """
    picture = _opened(data)
    return ImageInfo(str(picture.format), str(picture.mode), *picture.size)


def decode_image(data: bytes, shorter_side: int | None = None) -> NDArray[np.uint8]:
    """Decode a picture, of any colour mode, to RGB.

    Transparent parts are laid over white; 16-bit grey is scaled to 8 bits; of an animation the
    first picture is taken.

    Args:
        data: the file.
        shorter_side: scale down to this many pixels (Lanczos) where the picture is larger; None
            keeps its size.

    Returns:
        uint8 `[h, w, 3]` in 0 .. 255.

    Raises:
        ImageError: the picture is damaged, cut short or too large.
    """
    from PIL import Image

    picture = _opened(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
            rgb = _to_rgb(picture)
            width, height = rgb.size
            if shorter_side is not None and min(width, height) > shorter_side:
                scale = shorter_side / min(width, height)
                size = (max(1, round(width * scale)), max(1, round(height * scale)))
                rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    except ImageError:
        raise
    except Exception as error:  # decoders raise almost anything on damage
        told = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"a picture must be whole: {told}; download it again") from None
    return np.asarray(rgb, dtype=np.uint8)


def _to_rgb(picture: Any) -> Any:
    from PIL import Image

    if picture.mode.startswith("I;16"):
        # By a table: a large picture as floats would take eight times the memory.
        table = np.round(np.arange(65536) / 257).astype(np.uint8)
        return Image.fromarray(table[np.asarray(picture)], "L").convert("RGB")
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        grey = np.clip(values / top * 255.0, 0, 255).round().astype(np.uint8)
        return Image.fromarray(grey, "L").convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return picture.convert("RGB")


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """Return a picture uint8 `[h, w, 3]` as PNG: lossless, equal bytes for equal pictures."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image, "RGB").save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def evaluation_crop(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale the shorter side to `size` and take the centre: uint8 `[size, size, 3]`."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(image[top : top + side, left : left + side], size)


def training_crop(
    image: NDArray[np.uint8], size: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Take the random crop of the published loaders: uint8 `[size, size, 3]`.

    A square as large as the shorter side, its offset drawn from the middle quarter of where it can
    lie, is scaled to a random size between `size` and 9/8 of it, and cut to `size` at random.

    Args:
        image: uint8 `[h, w, 3]`, of any size.
        size: pixels per side.
        generator: the sample's own, see `cdcd.data.samples.sample_generator`.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    room = max(height, width) - side
    offset = int(generator.integers(room * 3 // 8, room - room * 3 // 8 + 1))
    top, left = (offset, 0) if height > width else (0, offset)
    scaled_to = int(generator.integers(size, size * 9 // 8 + 1))
    scaled = _resize(image[top : top + side, left : left + side], scaled_to)
    top, left = generator.integers(0, scaled_to - size + 1, 2)
    return scaled[top : top + size, left : left + size]


def _resize(square: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    from PIL import Image

    if square.shape[0] == size:
        return np.ascontiguousarray(square)
    picture = Image.fromarray(np.ascontiguousarray(square), "RGB")
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))
