import io
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cdcd.data.images import (
    MAX_PIXELS,
    ImageError,
    decode_image,
    evaluation_crop,
    png_bytes,
    probe_image,
    training_crop,
)
from cdcd.data.samples import sample_generator

RED, WHITE = (255, 0, 0), (255, 255, 255)


def noise(height=24, width=31, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_claiming(height, width):
    data = bytearray(encoded(noise(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def png_claiming(height, width):
    data = bytearray(encoded(noise()))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def with_exif(data, block):
    """Put an APP1 segment in the place of the JFIF one, so that PIL looks at it."""
    after_jfif = 4 + int.from_bytes(data[4:6], "big")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    return data[:2] + segment + data[after_jfif:]


# Colour modes


def test_a_png_comes_back_as_it_was():
    image = noise()
    decoded = decode_image(png_bytes(image))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, image)
    assert png_bytes(decoded) == png_bytes(image)


def test_the_header_says_format_mode_and_size():
    info = probe_image(encoded(Image.new("L", (7, 5)), "JPEG"))
    assert (info.format, info.mode, info.width, info.height) == ("JPEG", "L", 7, 5)


def test_cmyk_becomes_rgb():
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert probe_image(data).mode == "CMYK"
    decoded = decode_image(data)
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - RED).max() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(kind):
    data = encoded(Image.new("L", (9, 6), 77), kind)
    assert np.array_equal(decode_image(data), np.full((6, 9, 3), 77, np.uint8))


def test_black_and_white_becomes_rgb():
    assert decode_image(encoded(Image.new("1", (4, 3), 1))).tolist() == [[[255] * 3] * 4] * 3


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = decode_image(encoded(Image.fromarray(values)))
    assert np.abs(decoded[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1
    dark = np.full((4, 4), 200, np.uint16)  # almost black, however small the largest value is
    assert decode_image(encoded(Image.fromarray(dark))).max() == 1


def test_transparency_is_laid_over_white():
    picture = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        picture.putpixel((x, 0), (*RED, alpha))
    clear, half, solid = decode_image(encoded(picture))[0].tolist()
    assert clear == list(WHITE)
    assert half == pytest.approx([255, 127, 127], abs=1)
    assert solid == list(RED)


def test_grey_with_alpha_is_laid_over_white():
    assert decode_image(encoded(Image.new("LA", (1, 1), (0, 0))))[0, 0].tolist() == list(WHITE)


def test_a_palette_with_a_transparent_colour_is_laid_over_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, *RED])
    picture.putpixel((1, 0), 1)
    pixels = decode_image(encoded(picture, transparency=0))[0].tolist()
    assert pixels == [list(WHITE), list(RED)]
    assert decode_image(encoded(picture))[0].tolist() == [[0, 0, 0], list(RED)]


def test_of_an_animation_the_first_picture_is_taken():
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_image(data), np.full((6, 8, 3), RED, np.uint8))


def test_a_png_named_jpeg_is_known_by_its_bytes(tmp_path):
    file = tmp_path / "n01440764_1.JPEG"
    file.write_bytes(encoded(noise()))
    assert probe_image(file.read_bytes()).format == "PNG"
    assert np.array_equal(decode_image(file.read_bytes()), noise())


def test_a_single_pixel():
    assert decode_image(encoded(Image.new("RGB", (1, 1), RED)), 256).tolist() == [[list(RED)]]


# Sizes


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 150), (64, 96)), ((150, 100), (96, 64)), ((64, 99), (64, 99))]
)
def test_larger_pictures_are_scaled_and_keep_their_proportions(size, expected):
    assert decode_image(encoded(noise(*size)), 64).shape == (*expected, 3)


def test_smaller_pictures_stay_as_they_are():
    assert np.array_equal(decode_image(encoded(noise(20, 90)), 64), noise(20, 90))


# Damage


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_what_is_cut_short_is_refused(kind, share):
    data = encoded(noise(64, 64), kind)
    with pytest.raises(ImageError, match=r"a picture must be .*; download it again"):
        decode_image(data[: int(len(data) * share)])


def test_the_header_of_what_is_cut_short_can_be_read():
    data = encoded(noise(64, 64), "JPEG")
    assert probe_image(data[: len(data) * 9 // 10]).width == 64


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "a picture must have bytes: got an empty file; download it again"),
        (
            b"<html>404 Not Found</html>\n" * 9,
            "a picture must be one of JPEG, .*: cannot identify image file; download it again",
        ),
        (b"\xff\xd8\xff", "a picture must be one of"),
        (b"\x89PNG\r\n\x1a\n", "a picture must be one of"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(data, told):
    for function in (probe_image, decode_image):
        with pytest.raises(ImageError, match=f"^{told}") as caught:
            function(data)
        assert "\n" not in str(caught.value)
        assert " 0x" not in str(caught.value)  # equal input, equal manifest


@pytest.mark.parametrize(
    "data",
    [jpeg_claiming(65_000, 65_000), png_claiming(100_000, 100_000), png_claiming(9000, 9000)],
)
def test_claims_of_a_huge_picture_are_refused_before_any_memory_is_taken(data):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for function in (probe_image, decode_image):
        with pytest.raises(
            ImageError, match=rf"at most {MAX_PIXELS} pixels: .*\d+.*; scale it down"
        ):
            function(data)
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KB


JPEG, PNG = encoded(noise(), "JPEG"), encoded(noise())
PALETTE = encoded(Image.fromarray(noise()).convert("P"), "PNG", transparency=3)
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6)


@settings(max_examples=200, deadline=None)
@given(data=st.sampled_from([JPEG, PNG, PALETTE]), flips=FLIPS, end=st.floats(0.5, 1))
def test_damage_gives_a_picture_or_an_image_error(data, flips, end):
    damaged = bytearray(data)
    for place, bits in flips:
        damaged[int(place * len(damaged))] ^= bits
    if end < 0.9:
        del damaged[int(end * len(damaged)) :]
    try:
        decoded = decode_image(bytes(damaged), 16)
    except ImageError as error:
        decoded, told = np.zeros((1, 1, 3), np.uint8), str(error)
    else:
        told = ""
    assert "\n" not in told
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3
    assert decoded.size


# Any bytes at all


def picture_or_one_line(data, shorter_side=16):
    """Decode; what comes back is a picture, or one line with a rule, what was got and a remedy."""
    for function in (probe_image, lambda given: decode_image(given, shorter_side)):
        try:
            made = function(data)
        except ImageError as error:
            told = str(error)
            assert told.startswith("a picture must ")
            assert ": " in told
            assert "; " in told
            assert len(told.splitlines()) == 1
            assert told.isprintable()
            made = None
    if made is not None:
        assert made.dtype == np.uint8
        assert made.ndim == 3
        assert made.shape[2] == 3
        assert made.size
    return made


def sixteen_bits(*shape):
    return Image.fromarray(np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16))


def turned():
    tags = Image.Exif()
    tags[0x0112] = 8
    return tags


GREY = Image.fromarray(noise()).convert("L")
CLEAR = Image.fromarray(noise()).convert("RGBA")
MOVING = [Image.fromarray(noise(seed=seed)).convert("P") for seed in range(3)]
KINDS = {
    "16 bits": encoded(sixteen_bits(24, 31)),
    "grey": encoded(GREY, "JPEG"),
    "grey with alpha": encoded(GREY.convert("LA")),
    "cmyk": encoded(Image.fromarray(noise()).convert("CMYK"), "JPEG"),
    "palette": PALETTE,
    "palette with alpha": encoded(
        Image.fromarray(noise()).convert("P"), transparency=bytes(range(256))
    ),
    "grey with a clear grey": encoded(GREY, transparency=7),
    "animated gif": encoded(MOVING[0], "GIF", save_all=True, append_images=MOVING[1:]),
    "animated png": encoded(MOVING[0], "PNG", save_all=True, append_images=MOVING[1:]),
    "animated webp": encoded(CLEAR, "WEBP", save_all=True, append_images=[CLEAR.rotate(9)]),
    "webp": encoded(noise(), "WEBP", exif=turned()),
    "bmp": encoded(noise(), "BMP"),
    "progressive and turned": encoded(noise(), "JPEG", exif=turned(), progressive=True),
    "interlaced": encoded(noise(), "PNG", exif=turned()),
    "one pixel": encoded(noise(1, 1)),
    "one pixel of 16 bits": encoded(sixteen_bits(1, 1)),
    "long and thin": encoded(noise(1, 20_000)),
    "thin and long": encoded(noise(20_000, 2), "JPEG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_can_be_read(kind):
    info = probe_image(KINDS[kind])
    assert picture_or_one_line(KINDS[kind], None).shape == (info.height, info.width, 3)
    small = picture_or_one_line(KINDS[kind])
    for size in (8, 16):
        assert evaluation_crop(small, size).shape == (size, size, 3)


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), flips=FLIPS, end=st.floats(0, 1.2))
def test_damage_of_every_kind_gives_a_picture_or_one_line(kind, flips, end):
    damaged = bytearray(KINDS[kind])
    for place, bits in flips:
        damaged[int(place * min(len(damaged), 200))] ^= bits  # mostly headers
    picture_or_one_line(bytes(damaged[: int(end * len(damaged))]))


SIGNATURES = [
    b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM",
    b"RIFF\x40\0\0\0WEBPVP8X", b"RIFF\x40\0\0\0WEBPVP8L", PNG[:33], JPEG[:24],
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from(SIGNATURES), rest=st.binary(max_size=200))
def test_bytes_give_a_picture_or_one_line(start, rest):
    picture_or_one_line(start + rest)


def webp_claiming(side):
    flat = struct.pack("<I", side - 1)[:3]
    frame = encoded(noise(8, 8), "WEBP")[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + flat * 2 + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_claiming(side):
    data = bytearray(KINDS["animated gif"])
    data[6:10] = struct.pack("<HH", side, side)
    return bytes(data)


def bmp_claiming(side):
    data = bytearray(KINDS["bmp"])
    data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


def png_with_text(size):
    """A file of a few kilobytes whose comment unpacks to `size` bytes."""
    chunk = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(size))
    block = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return PNG[:33] + block + PNG[33:]


@pytest.mark.parametrize(
    "data",
    [
        webp_claiming(16_384),
        gif_claiming(65_535),
        bmp_claiming(2**30),
        bmp_claiming(-(2**31)),
        png_with_text(100_000_000),
    ],
    ids=["webp", "gif", "bmp", "bmp upside down", "png text"],
)
def test_a_bomb_is_never_read_whole(data):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    picture_or_one_line(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # KB


def test_sixteen_bits_take_no_more_memory_than_colours():
    data = encoded(Image.fromarray(np.zeros((6000, 6000), np.uint16)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(data, 16).shape == (16, 16, 3)
    # 36 million pixels: 72 MB as they come, 36 MB of grey, 108 MB of colours.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 450_000  # KB


# EXIF


def test_exif_rotation_is_ignored():
    tags = Image.Exif()
    tags[0x0112] = 6  # turn by a quarter
    data = encoded(noise(), "JPEG", exif=tags)
    assert probe_image(data).width == 31
    assert np.array_equal(decode_image(data), decode_image(JPEG))


# Its resolution is text of no length, which makes PIL give the whole file up.
BAD_RESOLUTION = bytes.fromhex(
    "4578696600004d4d002a000000080004010e0002000023060000003e012400030000000100060000011a0001000000"
    "01000000440128000300000001000200000000000068650e6c6f000000524800000001"
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80).map(lambda tail: b"Exif\0\0MM\0*" + tail))
@example(BAD_RESOLUTION)
@example(b"Exif\0\0")
@example(b"")
def test_broken_exif_is_ignored(block):
    assert np.array_equal(decode_image(with_exif(JPEG, block)), decode_image(JPEG))


def test_the_picture_behind_broken_exif_must_still_be_whole():
    data = with_exif(JPEG, BAD_RESOLUTION)
    for end in (3, 5, 40, 120, len(data) // 2):
        with pytest.raises(ImageError):
            decode_image(data[:end])


# Crops

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, size=st.sampled_from([8, 16, 33]), value=st.integers(0, 255))
def test_crops_are_square_and_keep_a_constant_picture_constant(shape, size, value):
    image = np.full((*shape, 3), value, np.uint8)
    for crop in (
        evaluation_crop(image, size),
        training_crop(image, size, np.random.default_rng(0)),
    ):
        assert crop.shape == (size, size, 3)
        assert crop.dtype == np.uint8
        assert (crop == value).all()


def test_the_evaluation_crop_is_the_centre():
    image = noise(20, 50)
    assert np.array_equal(evaluation_crop(image, 20), image[:, 15:35])
    assert np.array_equal(evaluation_crop(image.swapaxes(0, 1), 20), image[:, 15:35].swapaxes(0, 1))


def test_small_pictures_are_scaled_up():
    image = noise(5, 9)
    assert evaluation_crop(image, 32).shape == (32, 32, 3)
    assert training_crop(image, 32, np.random.default_rng(0)).shape == (32, 32, 3)


def test_the_training_crop_follows_its_generator_alone():
    image = noise(40, 90)
    crops = [training_crop(image, 32, sample_generator(0, 3, "a")) for _ in range(2)]
    assert np.array_equal(*crops)
    others = {training_crop(image, 32, sample_generator(0, n, "a")).tobytes() for n in range(20)}
    assert len(others) > 15


@pytest.mark.parametrize("is_upright", [False, True])
def test_the_training_crop_stays_in_the_middle_quarter(is_upright):
    side, length = 64, 864  # 800 of room: the square starts between 300 and 500
    ramp = np.linspace(0, 255, length)
    image = np.broadcast_to(ramp[None, :, None], (side, length, 3)).round().astype(np.uint8)
    if is_upright:
        image = np.ascontiguousarray(image.swapaxes(0, 1))
    starts, ends = [], []
    for seed in range(200):
        crop = training_crop(image, side, np.random.default_rng(seed))
        starts.append(crop.min() / 255 * length)
        ends.append(crop.max() / 255 * length)
    assert min(starts) > 300 - 5
    assert max(ends) < 500 + side + 5
    assert min(starts) < 330
    assert max(ends) > 470 + side


def test_the_training_crop_scales_to_at_most_nine_eighths():
    # The white half is 32 to 36 pixels wide once scaled, of which up to 8 are cut off.
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = 255
    widths = {
        int((training_crop(image, 64, np.random.default_rng(seed))[0, :, 0] > 127).sum())
        for seed in range(300)
    }
    assert min(widths) >= 24
    assert max(widths) <= 36
    assert len(widths) > 5
