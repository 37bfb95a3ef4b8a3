"""Drawings: every pixel where it belongs, words that fit, files all at once or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdcd import pictures
from cdcd.pictures import GAP, MAX_PIXELS


def _images(num: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


@pytest.mark.parametrize(
    ("num", "columns", "shape"),
    [(1, None, (1, 1)), (5, None, (2, 3)), (16, None, (4, 4)), (5, 2, (3, 2)), (2, 9, (1, 2))],
)
def test_a_grid_keeps_every_pixel(
    tmp_path: Path, num: int, columns: int | None, shape: tuple[int, int]
) -> None:
    images = _images(num, 6, 10)
    assert pictures.grid_shape(num, columns) == shape
    pictures.grid(images, tmp_path / "new" / "g.png", columns=columns)
    drawn = _read(tmp_path / "new" / "g.png")
    assert drawn.shape == (shape[0] * (6 + GAP) - GAP, shape[1] * (10 + GAP) - GAP, 3)
    for index, image in enumerate(images):
        top, left = index // shape[1] * (6 + GAP), index % shape[1] * (10 + GAP)
        np.testing.assert_array_equal(drawn[top : top + 6, left : left + 10], image)


def test_equal_pictures_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures.grid(_images(3), tmp_path / f"{name}.png", captions=["x", "y", "z"])
        pictures.gif(_images(3), tmp_path / f"{name}.gif")
    for suffix in ("png", "gif"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_captions_make_room_for_their_lines(tmp_path: Path) -> None:
    images = _images(2, 64, 64)
    heights = []
    for text in ("a bird", "a small red bird with black wings and a white belly " * 3, "x" * 900):
        pictures.grid(images, tmp_path / "g.png", captions=[text, ""])
        drawn = _read(tmp_path / "g.png")
        heights.append(drawn.shape[0])
        enlarged = images[0].repeat(3, 0).repeat(3, 1)
        np.testing.assert_array_equal(drawn[:192, 2 * GAP : 2 * GAP + 192], enlarged)
        assert (drawn[192:, : 192 + 4 * GAP] < 128).any(), "there are letters"
        assert (drawn[192:, 192 + 6 * GAP :] == 255).all(), "there are none"
    assert heights[0] < heights[1] == heights[2]


@pytest.mark.parametrize("text", ["", "a", "птица и ещё слова, много слов", "鸟" * 100, "a " * 999])
def test_wrapped_lines_fit_their_width(text: str) -> None:
    lines = pictures._wrapped(text, 120).split("\n")
    assert len(lines) <= pictures.MAX_LINES
    assert all(pictures._font().getlength(line) <= 120 for line in lines)
    whole = "".join(lines).replace(" ", "")
    assert whole.endswith("…") or whole == text.replace(" ", "")


def test_rows_stand_under_each_other(tmp_path: Path) -> None:
    real, made = _images(3, 96, 96), _images(3, 32, 32)[::-1]
    rows = {"real": real, "generated": made}
    pictures.rows(rows, tmp_path / "r.png")
    drawn = _read(tmp_path / "r.png")
    (left,) = {drawn.shape[1] - 3 * (96 + 2 * GAP)}
    np.testing.assert_array_equal(drawn[GAP : GAP + 96, left : left + 96], real[0])
    top = GAP + 96 + 2 * GAP
    second = drawn[top : top + 96, left + 96 + 2 * GAP :][:, :96]
    np.testing.assert_array_equal(second[::3, ::3], made[1])
    pictures.rows(rows, tmp_path / "c.png", captions=["a", "b", "c"])
    assert _read(tmp_path / "c.png").shape[0] > drawn.shape[0]


def test_a_strip_has_the_first_and_the_last_frame(tmp_path: Path) -> None:
    frames = _images(25, 96, 96)
    pictures.strip(frames, tmp_path / "s.png", num=4)
    drawn = _read(tmp_path / "s.png")
    assert drawn.shape == (96, 4 * 98 - GAP, 3)
    np.testing.assert_array_equal(drawn[:, :96], frames[0])
    np.testing.assert_array_equal(drawn[:, -96:], frames[-1])


def test_a_gif_has_all_frames_and_repeats(tmp_path: Path) -> None:
    flat = np.zeros((7, 64, 64, 3), dtype=np.uint8)
    flat[:, :, :, 0] = np.arange(7)[:, None, None] * 40
    pictures.gif(flat, tmp_path / "m.gif", seconds=0.7, hold_seconds=1.0)
    with Image.open(tmp_path / "m.gif") as moving:
        assert (moving.n_frames, moving.size, moving.info["loop"]) == (7, (256, 256), 0)
        times = []
        for index in range(7):
            moving.seek(index)
            times.append(moving.info["duration"])
            assert moving.convert("RGB").getpixel((128, 128)) == (index * 40, 0, 0)
    assert times == [100] * 6 + [1100]


def test_a_veil_lies_over_what_is_open_alone() -> None:
    image = _images(1)[0]
    is_open = np.array([[True, False], [False, False]])
    veiled = pictures.veiled(image, is_open, strength=1.0)
    assert (veiled[:4, :4] == pictures.GREY).all()
    np.testing.assert_array_equal(veiled[4:], image[4:])
    np.testing.assert_array_equal(veiled[:, 4:], image[:, 4:])
    np.testing.assert_array_equal(pictures.veiled(image, is_open, strength=0.0), image)


@pytest.mark.parametrize("counts", [np.zeros(4, int), np.array([5, 0, 0, 0]), np.full(512, 3)])
def test_codebook_use_is_drawn_for_any_counts(tmp_path: Path, counts: np.ndarray) -> None:
    pictures.codebook_use(counts, tmp_path / "c.png", "a codec")
    assert _read(tmp_path / "c.png").shape[1] > 300


def test_the_spread_of_a_codebook() -> None:
    assert pictures._perplexity(np.full(8, 3)) == pytest.approx(8)
    assert pictures._perplexity(np.array([0, 7, 0])) == pytest.approx(1)
    assert pictures._perplexity(np.zeros(3, int)) == 0


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), r"at least one: got uint8 \[0, 8, 8, 3\]"),
        (np.zeros((2, 8, 8, 3)), r"must be uint8 \[n, h, w, 3\], at least one: got float64"),
        (np.zeros((8, 8, 3), np.uint8), r"got uint8 \[8, 8, 3\]"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"got uint8 \[1, 3, 8, 8\]"),
    ],
)
def test_what_is_no_picture_is_one_line(tmp_path: Path, images: Any, words: str) -> None:
    for draw in (pictures.grid, pictures.strip, pictures.gif):
        with pytest.raises(ValueError, match=words) as caught:
            draw(images, tmp_path / "x.png")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_together_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captions must be one for each picture: got 1 for 2"):
        pictures.grid(_images(2), tmp_path / "x.png", captions=["a"])
    with pytest.raises(ValueError, match=r"rows must hold equally many pictures.*'a': 2, 'b': 3"):
        pictures.rows({"a": _images(2), "b": _images(3)}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="rows must hold equally many pictures"):
        pictures.rows({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=f"a grid must have at most {MAX_PIXELS} pixels: 10000"):
        pictures.check_grid(10_000, 256, 256)


def test_a_drawing_that_fails_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.png"
    pictures.grid(_images(1), path)
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ValueError, match="no space left"):
        pictures.grid(_images(2), path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["g.png"]
