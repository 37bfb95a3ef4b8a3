from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cdcd.features.video import MotionEnergy, _area

FEATURE = MotionEnergy(grid=4, rate_hz=30, frame_height=48)
MOTION = slice(0, 16)
FLOW = slice(16, 24)
EDGES = slice(24, 40)
LEVEL, CHANGE, CENTRE_X, CENTRE_Y = 40, 41, 42, 43
DRIFT_X, DRIFT_Y = 50, 51


def blob(x: float, y: float, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """A soft bright spot at (x, y) in -1 .. 1 of a grey frame; x to the right, y down."""
    width, height = size
    across = np.linspace(-1, 1, width)[None] - x
    down = np.linspace(-1, 1, height)[:, None] - y
    spot = np.exp(-(across**2 + down**2) / (2 * 0.15**2))
    return np.repeat((60 + 120 * spot)[..., None], 3, axis=2).round().astype(np.uint8)


def dance(num_frames: int = 12, **options: Any) -> list[np.ndarray]:
    return [blob(0.5 * np.sin(k / 3), 0.4 * np.cos(k / 2), **options) for k in range(num_frames)]


def test_shape_and_declared_dimension() -> None:
    for grid in (1, 3, 8):
        feature = MotionEnergy(grid)
        rows = feature(iter(dance(5)))
        assert rows.shape == (feature.num_steps(5), feature.dim)
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()
    assert FEATURE(iter([])).shape == (0, FEATURE.dim)


def test_a_stream_equals_the_whole_and_reads_one_frame_ahead() -> None:
    frames = dance(20)
    whole = FEATURE(iter(frames))
    taken = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal taken
        for frame in frames:
            taken += 1
            yield frame

    for index, row in enumerate(FEATURE.stream(counted())):
        assert taken <= max(index + 1, 2)
        np.testing.assert_array_equal(row, whole[index])
    # Nothing depends on later frames.
    np.testing.assert_array_equal(FEATURE(iter(frames[:7])), whole[:7])


def test_a_window_gives_the_rows_of_the_whole_after_its_first() -> None:
    frames = dance(20)
    whole, window = FEATURE(iter(frames)), FEATURE(iter(frames[8:]))
    np.testing.assert_array_equal(window[2:], whole[10:])
    np.testing.assert_array_equal(window[1][MOTION], whole[9][MOTION])


def test_the_first_row_has_the_motion_of_the_second() -> None:
    rows = FEATURE(iter(dance(5)))
    np.testing.assert_array_equal(rows[0][MOTION], rows[1][MOTION])
    assert (rows[0][EDGES] != rows[1][EDGES]).any()


def test_brightness_and_contrast_do_not_matter() -> None:
    frames = dance(16)
    dim = [(frame * 0.5 + 40).astype(np.uint8) for frame in frames]
    first, second = FEATURE(iter(frames)), FEATURE(iter(dim))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99
    assert first[:, LEVEL].mean() == pytest.approx(second[:, LEVEL].mean(), rel=0.15)


def test_a_lamp_switched_on_is_not_motion() -> None:
    still = blob(0, 0)
    rows = FEATURE(iter([still, still + 40, still + 60]))
    moving = FEATURE(iter([blob(0, 0), blob(0.05, 0), blob(0.1, 0)]))
    assert rows[:, LEVEL].max() < 0.1 * moving[:, LEVEL].min()


@pytest.mark.parametrize("size", [(48, 64), (171, 96), (1080, 1920), (63, 47), (16, 20)])
def test_size_and_aspect_do_not_matter(size: tuple[int, int]) -> None:
    frames = 4
    first, second = FEATURE(iter(dance(frames))), FEATURE(iter(dance(frames, size=size)))
    for part in (MOTION, FLOW, EDGES):
        assert np.corrcoef(first[:, part].ravel(), second[:, part].ravel())[0, 1] > 0.9
    np.testing.assert_allclose(first[:, CENTRE_X], second[:, CENTRE_X], atol=0.1)


def test_motion_is_found_where_it_is() -> None:
    for x, y in [(-0.75, -0.75), (0.75, -0.75), (-0.75, 0.75), (0.75, 0.75)]:
        row = FEATURE(iter([blob(x, y), blob(x + 0.05, y)]))[1]
        row_index, column = divmod(int(row[MOTION].argmax()), 4)
        assert (column, row_index) == (0 if x < 0 else 3, 0 if y < 0 else 3)
        assert row[CENTRE_X] * x > 0.3
        assert row[CENTRE_Y] * y > 0.3


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_direction_has_its_sign(dx: int, dy: int) -> None:
    frames = [blob(0.2 + 0.02 * dx * k, 0.2 + 0.02 * dy * k) for k in range(3)]
    row = FEATURE(iter(frames))[2]
    right, down = row[FLOW].reshape(2, 4)[:, 3]  # the cell that holds the spot
    assert np.sign([round(right, 2), round(down, 2)]).tolist() == [dx, dy]
    assert np.sign([round(row[DRIFT_X], 2), round(row[DRIFT_Y], 2)]).tolist() == [dx, dy]


def test_faster_is_more_and_change_is_its_derivative() -> None:
    steps = [0.0, 0.01, 0.03, 0.09, 0.1]
    rows = FEATURE(iter([blob(x, 0) for x in steps]))
    level = rows[:, LEVEL]
    assert level[1] < level[2] < level[3] > level[4]
    np.testing.assert_allclose(rows[2:, CHANGE], np.diff(level)[1:], atol=1e-6)


def test_a_still_picture_has_no_motion() -> None:
    rows = FEATURE(iter([blob(0, 0)] * 6))
    assert np.abs(rows[:, : FLOW.stop]).max() == 0
    assert FEATURE(iter([blob(0, 0)])).shape == (1, FEATURE.dim)


def test_repeated_frames_do_not_look_like_a_stop() -> None:
    slow = [frame for frame in dance(6) for _ in range(2)]
    rows = FEATURE(iter(slow))
    assert rows[2:, LEVEL].min() > 0.5 * rows[:, LEVEL].max()
    np.testing.assert_array_equal(rows[3], rows[2])
    stopped = FEATURE(iter(dance(3) + [dance(3)[-1]] * 5))
    assert stopped[-1, LEVEL] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": 0}, "grid must lie in 1 .. 32: got 0"),
        ({"rate_hz": 0}, "rate_hz must be positive"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotionEnergy(**arguments)


def test_frames_must_be_rgb() -> None:
    with pytest.raises(ValueError, match=r"a frame must be \[h, w, 3\]: got \[4, 4\]"):
        FEATURE(iter([np.zeros((4, 4), np.uint8)]))


@pytest.mark.parametrize("length", [1, 3, 8, 13, 64, 100])
def test_area_averages_weigh_parts_of_pixels(length: int) -> None:
    values = np.random.default_rng(0).uniform(size=(length, 2))
    fine = np.repeat(values, 8, axis=0)  # 8 cells times length pixels: every border is whole
    np.testing.assert_allclose(_area(values, 8), fine.reshape(8, length, 2).mean(axis=1))
